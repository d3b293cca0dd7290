"""Continuous embeddings: against float64 NumPy, autodiff, one-hot code and the closed forms."""

import importlib
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scbjax
from scbjax.base import StudyError
from scbjax.experiments import embeddings
from scbjax.experiments.embeddings import (
    as_one_hot,
    descent,
    embedded_loss,
    left_of_loss,
    path_step,
)
from scbjax.experiments.embeddings_modes import (
    Modes,
    centre,
    inverse_power,
    mode_signals,
    modes_of,
    random_embedding,
    rank_floor,
)
from scbjax.losses import excess_loss

N, T, Q = 6, 7, 2
SMALL_AND_LARGE = [3, pytest.param(11, marks=pytest.mark.slow)]  # d; compiled one by one
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def task() -> scbjax.Task:
    drawn = scbjax.random_task(
        jax.random.key(3), num_tokens=N, context_length=T, sparsity=Q, transition_signal=0.3
    )
    assert float(jnp.ptp(drawn.stationary)) > 0.05
    return drawn


def params_of(task: scbjax.Task, dim: int, seed: int = 0) -> dict[str, Any]:
    """Random parameters, of which nothing is at its start."""
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "value": 0.3 * jax.random.normal(keys[0], (N, dim)),
        "attention": 1 / T + 0.1 * jax.random.normal(keys[1], (T, N)),
        "embedding": centre(random_embedding(keys[2], "random", (dim, N)), task.stationary),
        "mean": task.stationary,
    }


def values_of(**values: float) -> dict[str, Any]:
    usual = {"rate": 0.1, "attention_rate_ratio": 1.0, "embedding_rate_ratio": 0.0, "power": 1.0}
    return {name: jnp.asarray(value) for name, value in {**usual, **values}.items()}


def plain_loss(params: dict[str, Any], batch: scbjax.Batch) -> jax.Array:
    """The learner in one-hot code: embeddings of all tokens of all contexts, [B, T, d]."""
    hot = jax.nn.one_hot(batch.tokens, N)
    embedded = jnp.einsum("dn,btn->btd", params["embedding"], hot)
    weights = params["attention"].T[batch.query]
    attended = jnp.einsum("btd,bt->bd", embedded, weights)
    mean = jnp.sum(weights, axis=1, keepdims=True) * params["mean"][None, :]
    output = mean + attended @ params["value"].T
    errors = output - jax.nn.one_hot(batch.label, N)
    return 0.5 * jnp.mean(jnp.sum(errors**2, axis=1))


@pytest.mark.parametrize("dim", SMALL_AND_LARGE)
def test_loss_and_gradients_are_those_of_one_hot_code(task: scbjax.Task, dim: int) -> None:
    params, batch = params_of(task, dim), scbjax.sample_batch(jax.random.key(4), task, 9)
    expected, wanted = jax.jit(jax.value_and_grad(plain_loss))(params, batch)
    value, found = jax.jit(jax.value_and_grad(embedded_loss))(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for name in params:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_expected_loss_is_the_mean_of_mini_batches(task: scbjax.Task) -> None:
    params = params_of(task, 4)
    keys = jax.random.split(jax.random.key(5), 64)

    def one(key: jax.Array) -> jax.Array:
        return plain_loss(params, scbjax.sample_batch(key, task, 256))

    losses = np.asarray(jax.lax.map(one, keys))
    error = losses.std() / math.sqrt(len(losses))
    assert error < 0.01
    assert abs(losses.mean() - float(embedded_loss(params, task))) < 4 * error


@pytest.mark.parametrize("kind", ["orthogonal", "random"])
@pytest.mark.parametrize("dim", SMALL_AND_LARGE)
def test_embeddings_have_the_law_that_is_named(kind: str, dim: int) -> None:
    keys = jax.random.split(jax.random.key(0), 4000 if kind != "orthogonal" else 4)
    drawn = np.asarray(
        jax.vmap(lambda key: random_embedding(key, kind, (dim, N), 0.5 * (kind != "orthogonal")))(
            keys
        ),
        float,
    )
    if kind == "orthogonal":
        wide = drawn if dim >= N else drawn.swapaxes(1, 2) * math.sqrt(dim / N)
        gram = wide.swapaxes(1, 2) @ wide
        np.testing.assert_allclose(
            gram, np.broadcast_to(np.eye(min(dim, N)), gram.shape), atol=1e-5
        )
        assert not np.allclose(drawn[0], drawn[1])
        return
    gram = (drawn.swapaxes(1, 2) @ drawn).mean(axis=0)
    lag = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
    np.testing.assert_allclose(gram, 0.5**lag, atol=5 * math.sqrt(2 / dim / len(keys)))
    rows = drawn @ drawn.swapaxes(1, 2)
    np.testing.assert_allclose(rows.mean(axis=0), np.eye(dim) * N / dim, atol=0.2)


@pytest.mark.parametrize("dim", [3, 6, 12])
def test_modes_and_inverse_are_those_of_the_covariance(task: scbjax.Task, dim: int) -> None:
    """The pseudo-inverse of E diag(mu) E^T - E mu mu^T E^T, of embeddings that aren't centred."""
    raw = np.asarray(random_embedding(jax.random.key(1), "random", (dim, N)), float)
    mu = np.asarray(task.stationary, float)
    mu /= mu.sum()  # in float32 a sum off by rounding would make the covariance definite
    covariance = raw @ np.diag(mu) @ raw.T - np.outer(raw @ mu, raw @ mu)
    modes = modes_of(centre(jnp.asarray(raw, jnp.float32), task.stationary), task.stationary)
    u, s = np.asarray(modes.directions, float), np.asarray(modes.sizes, float)
    assert s.shape == (min(dim, N - 1),)
    np.testing.assert_allclose((u * s**2) @ u.T, covariance, atol=1e-6)
    inverse = (u * np.asarray(inverse_power(modes, 1.0), float)) @ u.T
    expected = np.linalg.pinv(covariance, rcond=1e-9, hermitian=True)
    np.testing.assert_allclose(inverse, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    plain = (u * np.asarray(inverse_power(modes, 0.0), float)) @ u.T
    np.testing.assert_allclose(plain @ covariance, covariance / s[0] ** 2, atol=1e-5)


def test_modes_that_are_not_there_are_left_out(task: scbjax.Task) -> None:
    """Two embeddings that are nearly one, apart by less or by more than rounding errors."""
    drawn = np.array(random_embedding(jax.random.key(1), "random", (10, N)))
    for apart, rank in ((0.0, N - 2), (1e-8, N - 2), (1e-3, N - 1)):
        drawn[:, 1] = drawn[:, 0] * (1 + apart)
        modes = modes_of(centre(jnp.asarray(drawn), task.stationary), task.stationary)
        assert int(jnp.sum(modes.sizes > 0)) == rank
        assert bool(jnp.all(jnp.isfinite(inverse_power(modes, 1.0))))
        signals = mode_signals(task, modes)
        assert float(jnp.max(jnp.where(modes.sizes > 0, 0.0, signals))) == 0.0
    coarse = modes_of(centre(jnp.asarray(drawn), task.stationary), task.stationary, cutoff=0.5)
    kept = np.asarray(coarse.sizes)
    assert 0 < (kept > 0).sum() < N - 1
    assert kept[kept > 0].min() > 0.5 * kept[0]


@pytest.mark.parametrize("exponent", [1, 2, 3])
def test_steps_in_float32_are_those_in_float64(task: scbjax.Task, exponent: int) -> None:
    """The move of V E by a preconditioned step, at condition numbers up to 10^6."""
    rng = np.random.default_rng(exponent)
    mu = np.asarray(task.stationary, float)
    left, _, right = np.linalg.svd(rng.normal(size=(8, N)), full_matrices=False)
    raw = (left * np.geomspace(1, 10.0**-exponent, N)) @ right
    gradient = rng.normal(size=(N, N))
    gradient -= gradient.mean(axis=0)
    raw -= (raw @ mu)[:, None]
    covariance = raw @ np.diag(mu) @ raw.T
    pseudo = np.linalg.pinv(covariance, rcond=1e-12, hermitian=True)
    expected = -gradient @ raw.T @ pseudo @ raw
    e = jnp.asarray(raw, jnp.float32)
    params = {**params_of(task, 8), "embedding": e}
    grads = jax.tree.map(jnp.zeros_like, params)
    grads["value"] = jnp.asarray(gradient, jnp.float32) @ e.T
    step = descent(task, values_of(rate=float(scbjax.pattern_signal(task))))
    updates, _ = step.update(grads, step.init(params), params)
    found = updates["value"] @ e
    # Errors grow as the ratio of singular values, and not as its square.
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=size * 3e-6 * 10.0**exponent)


@pytest.mark.parametrize("dim", [N - 1, pytest.param(3 * N, marks=pytest.mark.slow)])
def test_preconditioned_steps_are_the_paper_s_where_tokens_are_apart(
    task: scbjax.Task, dim: int
) -> None:
    """For d >= N - 1, mini-batch by mini-batch, whatever the embedding is."""
    one_hot = scbjax.scb_sgd(
        task.stationary,
        0.1 / scbjax.pattern_signal(task),
        0.1 / scbjax.transition_signal(task),
    )
    params = params_of(task, dim)
    params["value"] = params["value"] - params["value"].mean(axis=0, keepdims=True)
    params["attention"] = jnp.full((T, N), 1 / T)
    paper = as_one_hot(params)
    batch = scbjax.sample_batch(jax.random.key(8), task, 20)
    step = descent(task, values_of())
    grads, wanted = jax.jit(
        lambda p, q, b: (jax.grad(embedded_loss)(p, b), jax.grad(scbjax.loss)(q, b))
    )(params, paper, batch)
    updates, _ = jax.jit(lambda g, p: step.update(g, step.init(p), p))(grads, params)
    wanted, _ = one_hot.update(wanted, one_hot.init(paper), paper)
    moved = updates["value"] @ params["embedding"]
    np.testing.assert_allclose(moved, wanted.value, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(updates["attention"], wanted.attention, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dim", SMALL_AND_LARGE)
def test_the_recursion_is_exact_for_population_steps(task: scbjax.Task, dim: int) -> None:
    static = {
        "num_tokens": N, "context_length": T, "sparsity": Q,
        "data": "population", "embedding": "random", "embedding_dim": dim,
    }  # fmt: skip
    own = embeddings._learner(
        embeddings._source(static), static, batch_size=1, record_every=60, record=("batch_loss",)
    )
    fixed = {"correlation": jnp.asarray(0.4), "transition_signal": jnp.asarray(0.3)}
    train = jax.jit(lambda values: own.train(jax.random.key(2), task, values, steps=60).state)
    for power in (0.0, 0.5, 1.0):
        state = train({**values_of(power=power, rate=0.3), **fixed})
        path = state.tracked
        value = np.asarray(state.params["value"], float) @ np.asarray(state.params["embedding"])
        np.testing.assert_allclose(value.sum(axis=0), 0.0, atol=1e-5)
        # w_i p_i from V E itself, and alpha from A.
        mu = np.asarray(task.stationary, float)
        v = np.asarray(path.modes.tokens, float)
        wanted = (np.asarray(task.transition, float) - mu[:, None]) * np.sqrt(mu) @ v.T
        got = value * np.sqrt(mu) @ v.T
        assert 0.05 < float(path.weights.min()) <= float(path.weights.max()) < 1.5
        np.testing.assert_allclose(got, wanted * np.asarray(path.weights), atol=2e-5)
        q = np.asarray(task.pattern, float)
        attention = 1 / T + float(path.attention) * (q - 1 / T)
        np.testing.assert_allclose(state.params["attention"], attention, atol=2e-5)
    np.testing.assert_allclose(path.weights, float(path.weights[0]), rtol=1e-5)


def test_a_step_of_the_path_is_the_formula_by_loops(task: scbjax.Task) -> None:
    modes = modes_of(params_of(task, 4)["embedding"], task.stationary)
    signals = mode_signals(task, modes)
    w, alpha = np.array([0.3, 0.2, 0.5, 0.1]), 0.25
    path = embeddings.Path(modes, signals, jnp.asarray(w), jnp.asarray(alpha), jnp.zeros(()))
    after = path_step(path, task, values_of(rate=0.2, attention_rate_ratio=0.5, power=0.3))
    mu, q = np.asarray(task.stationary, float), np.asarray(task.pattern, float)
    a = 1 / T + alpha * (q - 1 / T)
    overlap, size = float(mu @ (a * q).sum(0)), float(mu @ (a * a).sum(0))
    k_q = float(mu @ (q * q).sum(0)) - 1 / T
    s, p = np.asarray(modes.sizes, float), np.asarray(signals, float)
    for index in range(4):
        rate = 0.2 / k_q * (s[index] / s[0]) ** 1.4
        expected = w[index] + rate * (overlap - size * w[index])
        assert float(after.weights[index]) == pytest.approx(expected, rel=1e-5)
    pull = sum(w[i] * p[i] for i in range(4)) - alpha * sum(w[i] ** 2 * p[i] for i in range(4))
    assert float(after.attention) == pytest.approx(alpha + 0.1 / p.sum() * pull, rel=1e-5)


def test_attention_takes_over_what_slow_modes_lack() -> None:
    """What the flow keeps, on the way and at its end: alpha^4 is the mean of s_1^2 / s_i^2."""
    rng = np.random.default_rng(0)
    sizes, signals = np.geomspace(1.0, 0.1, 5), rng.uniform(0.5, 1.5, 5)
    pattern = jnp.zeros((2000, 2)).at[jnp.array([0, 1]), jnp.array([0, 1])].set(1.0)
    long = scbjax.Task(jnp.eye(2), jnp.array([0.4, 0.6]), pattern)
    modes = Modes(jnp.eye(5), jnp.asarray(sizes, jnp.float32), jnp.eye(5))
    weights = jnp.full((5,), 1e-3)
    path = embeddings.Path(
        modes, jnp.asarray(signals, jnp.float32), weights, jnp.zeros(()), jnp.zeros(())
    )
    walk = jax.jit(
        lambda path, steps: jax.lax.fori_loop(
            0, steps, lambda _, at: path_step(at, long, values_of(rate=0.01, power=0.0)), path
        )
    )
    for steps in (1000, 3000, 60000):
        end = walk(path, steps)
        w, alpha = np.asarray(end.weights, float), float(end.attention)
        kept = (signals * w**2 / sizes**2).sum() / signals.sum()
        assert alpha > 0.1
        assert alpha**2 == pytest.approx(kept, rel=0.05)
    np.testing.assert_allclose(w, 1 / alpha, rtol=0.02)
    mean = (signals / sizes**2).sum() / signals.sum()
    assert alpha**4 == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize("dim", [3, 8])
def test_the_loss_is_a_sum_over_modes_and_what_is_out_of_reach(task: scbjax.Task, dim: int) -> None:
    """Beside the excess loss of the library, where the invariants hold."""
    params = params_of(task, dim)
    params["value"] -= params["value"].mean(axis=0, keepdims=True)
    attention = params["attention"]
    params["attention"] = attention + (1 - attention.sum(axis=0, keepdims=True)) / T
    modes = modes_of(params["embedding"], task.stationary)
    signals = mode_signals(task, modes)
    path = embeddings._start_path(params, task, None)
    left = np.asarray(left_of_loss(as_one_hot(params), task, path), float)
    mu, q = np.asarray(task.stationary, float), np.asarray(task.pattern, float)
    whole = mu @ (q * q).sum(0)
    reach = float(signals.sum())
    missed = float(scbjax.transition_signal(task)) - reach
    assert (missed > 0.01) == (dim < N - 1)
    total = 0.5 * whole * (float(left @ np.asarray(signals, float)) + missed)
    assert total == pytest.approx(float(excess_loss(as_one_hot(params), task)), rel=1e-4)
    np.testing.assert_allclose(embeddings.left_of_modes(path, task), 1.0)


def test_what_is_out_of_reach_has_the_laws(task: scbjax.Task) -> None:
    """d / (N - 1) of K_P for random embeddings; the other singular values for the best ones."""
    mu, p = np.asarray(task.stationary, float), np.asarray(task.transition, float)
    squares = np.linalg.svd((p - mu[:, None]) * np.sqrt(mu), compute_uv=False) ** 2
    for dim in (2, 4, N - 1, N):
        expected = squares[dim:].sum() / squares.sum()
        assert float(rank_floor(task, dim)) == pytest.approx(expected, abs=1e-6)

    def reach(key: jax.Array) -> jax.Array:
        # The directions of tokens are uniform where those of E diag(mu)^(1/2), centred, are.
        rows = jax.random.normal(key, (2, N)) / jnp.sqrt(task.stationary)[None, :]
        modes = modes_of(centre(rows, task.stationary), task.stationary)
        return jnp.sum(mode_signals(task, modes)) / scbjax.transition_signal(task)

    shares = np.asarray(jax.vmap(reach)(jax.random.split(jax.random.key(0), 2000)))
    error = float(shares.std()) / math.sqrt(2000)
    assert shares.mean() == pytest.approx(2 / (N - 1), abs=5 * error)
    assert shares.max() < 1 - squares[2:].sum() / squares.sum() + 1e-5


def test_slowest_modes_follow_the_law_of_many_tokens() -> None:
    """Condition numbers of random embeddings at N = 200, uniform mu, beside Marchenko & Pastur."""
    tokens = 200
    mu = jnp.full((tokens,), 1 / tokens)
    for dim in (50, 400):
        drawn = random_embedding(jax.random.key(dim), "random", (dim, tokens))
        sizes = np.asarray(modes_of(centre(drawn, mu), mu).sizes, float)
        root = math.sqrt(min(dim / tokens, tokens / dim))
        expected = ((1 + root) / (1 - root)) ** 2
        assert (sizes[0] / sizes[-1]) ** 2 == pytest.approx(expected, rel=0.15)
        # The whole law, by its second moment: 1 + gamma over one squared.
        second = (sizes**4).mean() / (sizes**2).mean() ** 2
        assert second == pytest.approx(1 + root**2, rel=0.03)
    near = np.asarray(
        modes_of(
            centre(random_embedding(jax.random.key(0), "random", (tokens, tokens)), mu), mu
        ).sizes
    )
    assert (near[0] / near[-1]) ** 2 > 0.5 * tokens**2


def study(**train: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "experiment": "embeddings",
        "task": {"num_tokens": 8, "context_length": 6, "sparsity": 2, "transition_signal": 0.3},
        "train": {"steps": 200, "record_every": 20, "data": "population", "rate": 0.5, **train},
    }


@pytest.mark.slow
def test_a_small_sweep_shows_what_theory_says() -> None:
    """At d = N plain steps are slow and preconditioned ones are not; both follow the recursion."""
    found = scbjax.sweep.run(
        study(), set={"embedding_dim": 8}, axes={"seed": range(4), "power": (0.0, 1.0)},
        progress=False,
    )  # fmt: skip
    slowest = found.slowest_mode.isel(step=-1).median("seed")
    assert float(slowest.sel(power=0.0)) > 0.1
    assert float(slowest.sel(power=1.0)) < 1e-3
    np.testing.assert_allclose(found.slowest_mode, found.slowest_mode_on_path, atol=1e-4)
    np.testing.assert_allclose(found.out_of_reach, 0.0, atol=1e-5)
    assert float(found.condition.min()) > 1


@pytest.mark.slow
def test_learned_embeddings_come_to_the_best_directions() -> None:
    found = scbjax.sweep.run(
        study(steps=4000, record_every=500, rate=0.1, embedding_rate_ratio=0.3),
        set={"embedding_dim": 3, "embedding": "learned"},
        axes={"seed": range(4)},
        progress=False,
    )
    end = found.isel(step=-1)
    assert (end.out_of_reach > end.rank_floor + 0.05).all()
    np.testing.assert_allclose(end.excess_share, end.rank_floor, atol=0.02)


def test_learned_embeddings_follow_the_gradient(task: scbjax.Task) -> None:
    """Of each step: down the gradient in E, divided by mu, with E mu = 0 kept."""
    params = params_of(task, 3)
    values = values_of(embedding_rate_ratio=0.5)
    grads = jax.grad(embedded_loss)(params, task)
    for learned in (False, True):
        step = descent(task, values, learned=learned)
        updates, state = step.update(grads, step.init(params), params)
        moved = np.asarray(updates["embedding"], float)
        np.testing.assert_array_equal(updates["mean"], 0.0)
        if not learned:
            np.testing.assert_array_equal(moved, 0.0)
            continue
        mu = np.asarray(task.stationary, float)
        gradient = np.asarray(grads["embedding"], float)
        rate = 0.1 * 0.5 * float(state.modes.sizes[0]) ** 2
        rate /= float(scbjax.pattern_signal(task)) * float(mode_signals(task, state.modes).sum())
        expected = -rate * (gradient / mu - gradient.sum(axis=1, keepdims=True))
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(moved @ mu, 0.0, atol=1e-6)
    # The modes are those of the embeddings as they are, and not as they were.
    later = {**params, "embedding": 2.0 * params["embedding"]}
    _, state = step.update(grads, step.init(params), later)
    expected = modes_of(later["embedding"], task.stationary)
    assert isinstance(state.modes, Modes)
    np.testing.assert_allclose(state.modes.sizes, expected.sizes, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.embedding_dim": 0},
            "model.embedding_dim must be an integer from 1 to 2147483647, got 0",
        ),
        ({"train.power": 1.5}, "train.power must be a number from 0.0 to 1.0, got 1.5"),
        (
            {"model.embedding": "orthogonal", "model.correlation": 0.5},
            "model.correlation = 0.5 has no meaning with model.embedding = 'orthogonal'",
        ),
        (
            {"record.variables": ["samples"]},
            "samples, of which train.data = 'population' uses none",
        ),
        ({"task.sparsity": 30}, "task.sparsity = 30 is larger than task.context_length = 6"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=re.escape(message)):
        scbjax.sweep.run(study(), set=changes, axes={"seed": range(2)}, progress=False)


@pytest.fixture
def figure_and_data(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, Any]:
    """The figure's script, and a made-up dataset with times that are known."""
    for folder in ("figures", "tests/figures"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    return importlib.import_module("embeddings"), importlib.import_module("made").embeddings()


def test_the_figure_shows_times_and_shares(figure_and_data: tuple[ModuleType, Any]) -> None:
    script, data = figure_and_data
    left, right = script.plot(data).axes
    drawn = {line.get_gid(): np.asarray(line.get_xydata()) for line in (*left.lines, *right.lines)}
    middle = np.linspace(1.0, 1.2, 10)[4]
    np.testing.assert_allclose(
        drawn["median plain, random"], [[0.25, 20 * middle], [4, 10 * middle]], rtol=1e-6
    )
    np.testing.assert_allclose(
        drawn["late plain, random"], [[1, 40.0]]
    )  # the last step, times rate
    np.testing.assert_allclose(drawn["median preconditioned, random"][:, 1], 4 * middle, rtol=1e-6)
    line = drawn["recursion preconditioned, random"]
    np.testing.assert_allclose(line[:, 1], 4 * middle * 1.01, rtol=1e-6)
    np.testing.assert_allclose(drawn["left learned"][:, 1], drawn["floor"][:, 1], atol=1e-9)
    np.testing.assert_allclose(drawn["left preconditioned, random"][:, 1], [1 - 16 / 63, 0, 0])
    law = drawn["law"]
    np.testing.assert_allclose(law[:, 0], 1 / law[::-1, 0])
    assert np.nanargmin(law[:, 1]) in (0, len(law) - 1)


def test_the_law_of_the_figure_is_that_of_many_tokens(
    figure_and_data: tuple[ModuleType, Any],
) -> None:
    """Beside the recursion on the eigenvalues of one large matrix."""
    script, _ = figure_and_data
    found = script.law(np.array([0.25, 0.5]), length=16, sparsity=2)
    rng = np.random.default_rng(0)
    for gamma, time in zip((0.25, 0.5), found, strict=True):
        values = np.linalg.svd(rng.normal(size=(int(600 * gamma), 600)), compute_uv=False) ** 2
        values /= values[0]
        w, alpha, k_q, steps = np.zeros_like(values), 0.0, 1 / 2 - 1 / 16, 0
        left = 1.0
        while left > 0.5:
            overlap, size = alpha * k_q + 1 / 16, alpha**2 * k_q + 1 / 16
            pull = (w * (1 - alpha * w)).mean()
            w = w + 0.05 / k_q * values * (overlap - size * w)
            alpha += 0.05 * pull
            overlap, size = alpha * k_q + 1 / 16, alpha**2 * k_q + 1 / 16
            left = 1 + 2 * (w[-1] ** 2 * size - 2 * w[-1] * overlap)
            steps += 1
        assert time == pytest.approx(0.05 * steps, rel=0.1)


def test_the_tables_have_intervals_and_say_what_came_late(
    figure_and_data: tuple[ModuleType, Any],
) -> None:
    script, data = figure_and_data
    times, peaks, rest = script.tables(data)
    late = [row for row in times.rows if row[2] == "later"]
    assert [row[:2] for row in late] == [["plain, random", 1.0]]
    assert late[0][5] == 0
    first = times.rows[0]
    assert first[3] <= first[2] <= first[4]
    assert first[-1] == pytest.approx(1 - 1 / 1.01, rel=1e-6)
    assert peaks.rows[0][1:4] == ["later", 1.0, "later"]
    assert peaks.rows[1][1] == pytest.approx(1.0)
    assert {row[0] for row in rest.rows} == {"preconditioned, random", "learned"}


def test_the_study_s_small_form_loads() -> None:
    from scbjax.sweep.study.files import load_study

    own = load_study("embeddings", small=True)
    assert own.experiment.name == "embeddings"


def test_embeddings_are_found_without_jax() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from scbjax.sweep.study.experiments import find_experiment as find; "
        "assert find('embeddings').name == 'embeddings'; print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
