"""Two look-ups: against sums over all contexts, least squares, autodiff and drawn samples."""

import contextlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scbjax
from scbjax.base import StudyError
from scbjax.experiments import hops, hops_model, hops_theory
from scbjax.experiments.hops_model import HopBatch, HopParams, HopTask
from scbjax.experiments.hops_theory import HopPath
from scbjax.sampling import make_seed
from scbjax.sweep.study.files import load_study

Array = np.ndarray
STUDY = Path(__file__).parents[1] / "sweeps" / "two_hop.toml"


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def exact_task(length: int, num_tokens: int = 3, sparsity: int = 2, seed: int = 0) -> HopTask:
    """A task in float64, made by NumPy, whose columns sum to one and whose mu is stationary."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(num_tokens, 0.5), num_tokens).T
    values, vectors = np.linalg.eig(p)
    mu = np.real(vectors[:, np.argmax(np.real(values))])
    patterns = np.zeros((2, length, num_tokens))
    for hop, k in itertools.product(range(2), range(num_tokens)):
        places = rng.choice(np.arange(hop, length, 2), sparsity, replace=False)
        patterns[hop, places, k] = rng.dirichlet(np.ones(sparsity))
    return HopTask(*map(jnp.asarray, (p, mu / mu.sum(), *patterns)))


def random_params(task: HopTask, seed: int = 1) -> HopParams:
    """Parameters with the invariants, and nothing else."""
    rng = np.random.default_rng(seed)
    length, num_tokens = task.first.shape
    mu = np.asarray(task.stationary, float)
    value = rng.normal(size=(num_tokens, num_tokens))
    value += (1 - value.sum(axis=0)) / num_tokens
    value += (mu - value @ mu)[:, None]
    both = [rng.normal(size=(length, num_tokens)) for _ in range(2)]
    both = [array + (1 - array.sum(axis=0)) / length for array in both]
    dtype = task.first.dtype
    return HopParams(*(jnp.asarray(array, dtype) for array in (value, *both)))


def contexts(task: HopTask) -> Iterator[tuple[Array, float]]:
    """All contexts X [N, T], with their probabilities."""
    length, num_tokens = task.first.shape
    mu = np.asarray(task.stationary, float)
    for tokens in itertools.product(range(num_tokens), repeat=length):
        yield np.eye(num_tokens)[:, list(tokens)], float(np.prod(mu[list(tokens)]))


def plain_outputs(params: HopParams, tokens: jax.Array, query: jax.Array, direct: bool) -> Any:  # noqa: ANN401
    """``V X A_2 h`` with one-hot contexts [B, T, N]: the plain way."""
    hot = jax.nn.one_hot(tokens, params.value.shape[0], dtype=params.value.dtype)
    found = jnp.einsum("btn,bt->bn", hot, params.first.T[query])
    if direct:
        found = jax.nn.one_hot(query, params.value.shape[0], dtype=params.value.dtype)
    weights = jnp.einsum("tn,bn->bt", params.second, found)
    return jnp.einsum("mn,btn,bt->bm", params.value, hot, weights)


def plain_loss(params: HopParams, batch: HopBatch, direct: bool) -> jax.Array:
    """One step of the learner in plain JAX, for automatic differentiation."""
    output = plain_outputs(params, batch.tokens, batch.query, direct)
    target = jax.nn.one_hot(batch.label, output.shape[1], dtype=output.dtype)
    return jnp.mean(jnp.sum((output - target) ** 2, axis=1)) / 2.0


@pytest.mark.parametrize("num_tokens", [4, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("direct", [False, True])
def test_loss_and_gradient_are_those_of_plain_jax(num_tokens: int, direct: bool) -> None:
    with double_precision():
        task = exact_task(11, num_tokens)
        params = random_params(task)
        keys = jax.random.split(jax.random.key(3), 3)
        tokens = jax.random.randint(keys[0], (7, 11), 0, num_tokens).astype(jnp.uint8)
        query, label = (jax.random.randint(key, (7,), 0, num_tokens, jnp.int32) for key in keys[1:])
        batch = HopBatch(tokens, query, label, label)
        found, grads = jax.value_and_grad(hops_model.hop_loss)(params, batch, direct)
        expected, plain = jax.value_and_grad(plain_loss)(params, batch, direct)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        for own, other in zip(grads, plain, strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-9, atol=1e-12)
        assert bool(jnp.any(grads.first != 0)) is not direct


def test_excess_losses_are_those_of_all_contexts() -> None:
    with double_precision():
        task = exact_task(5)
        params = random_params(task)
        p, mu, q, r = (np.asarray(array) for array in task)
        value, first, second = (np.asarray(array) for array in params)
        two = one = 0.0
        for x, chance in contexts(task):
            truth = p @ x @ r @ x @ q
            for loss, output in (
                ("two", value @ x @ second @ x @ first),
                ("one", value @ x @ second),
            ):
                term = chance * (mu * ((output - truth) ** 2).sum(axis=0)).sum() / 2
                two, one = (two + term, one) if loss == "two" else (two, one + term)
        assert float(hops_theory.excess_loss(params, task)) == pytest.approx(two, rel=1e-11)
        assert float(hops_theory.one_layer_excess(params, task)) == pytest.approx(one, rel=1e-11)
        truth_itself = HopParams(task.transition, task.first, task.second)
        assert float(hops_theory.excess_loss(truth_itself, task)) == pytest.approx(0.0, abs=1e-14)


def test_no_function_of_single_tokens_is_below_the_floor() -> None:
    """Least squares over all sums of functions of one token, of which one layer is one."""
    with double_precision():
        task = exact_task(6)
        p, mu, q, r = (np.asarray(array) for array in task)
        all_contexts = list(contexts(task))
        roots = np.sqrt([chance for _, chance in all_contexts])
        features = np.stack([x.ravel() for x, _ in all_contexts]) * roots[:, None]
        least = 0.0
        for k in range(3):
            truth = np.stack([p @ x @ r @ x @ q[:, k] for x, _ in all_contexts]) * roots[:, None]
            fitted = features @ np.linalg.lstsq(features, truth, rcond=None)[0]
            least += mu[k] * ((fitted - truth) ** 2).sum() / 2
        floor = float(hops_theory.one_layer_floor(task))
        assert floor == pytest.approx(least, rel=1e-10)
        assert floor > 1e-4
        # And one layer comes to it: V = P, and the same attention for every query.
        best = HopParams(
            task.transition, task.first, jnp.tile((task.second @ task.stationary)[:, None], 3)
        )
        assert float(hops_theory.one_layer_excess(best, task)) == pytest.approx(floor, rel=1e-12)


@pytest.mark.slow
def test_labels_are_drawn_by_two_hops_and_easy_ones_by_one() -> None:
    """What a label has beyond its expectation is uncorrelated with pairs of tokens."""
    task = hops_model.random_hops(
        jax.random.key(4), num_tokens=3, context_length=6, sparsity=2, transition_signal=0.3
    )
    batch = hops_model.sample_hops(make_seed(jax.random.key(5)), hops_model.prepare(task), 30_000)
    p, mu, q, r = (np.asarray(array, float) for array in task)
    hot = np.eye(3)[np.asarray(batch.tokens)]
    query = np.asarray(batch.query)
    pointed = np.einsum("btn,bt->bn", hot, q.T[query])
    truths = {"label": pointed, "easy_label": np.eye(3)[query]}
    pairs = np.einsum("bsm,btn,bk->bsmtnk", hot, hot, np.eye(3)[query]).reshape(len(hot), -1)
    pairs = pairs[:, pairs.mean(axis=0) > 1e-3]
    for name, found in truths.items():
        expected = np.einsum("mn,btn,bt->bm", p, hot, found @ r.T)
        error = np.eye(3)[np.asarray(getattr(batch, name))] - expected
        moments = error.T @ pairs / len(hot)
        # Labels that are all but impossible have no spread; their moments are as small.
        spread = np.sqrt((error**2).T @ pairs**2) / len(hot) + 1e-5
        assert np.abs(moments / spread).max() < 5.5
        # The other law would be seen: labels of one are none of the other.
        wrong = truths["label" if name == "easy_label" else "easy_label"]
        error = error + expected - np.einsum("mn,btn,bt->bm", p, hot, wrong @ r.T)
        assert np.abs(error.T @ pairs / len(hot) / spread).max() > 20
    counts = np.bincount(query, minlength=3) / len(query)
    np.testing.assert_allclose(counts, mu, atol=5 * np.sqrt(0.25 / len(query)))


def test_tasks_have_patterns_on_positions_of_their_own() -> None:
    task = hops_model.random_hops(
        jax.random.key(7), num_tokens=5, context_length=13, sparsity=3, transition_signal=0.4
    )
    assert task.first.shape == task.second.shape == (13, 5)
    assert ((task.first > 0).sum(axis=0) == 3).all()
    assert ((task.second > 0).sum(axis=0) == 3).all()
    assert not (task.first[1::2] != 0).any()
    assert not (task.second[::2] != 0).any()
    for columns in (task.transition, task.first, task.second):
        np.testing.assert_allclose(columns.sum(axis=0), 1.0, rtol=1e-5)
    np.testing.assert_allclose(task.transition @ task.stationary, task.stationary, rtol=1e-4)
    assert float(np.ptp(task.stationary)) > 0.01
    assert float(hops_theory.constants(task).transition) == pytest.approx(0.4, rel=1e-3)


def path_params(task: HopTask, at: HopPath) -> HopParams:
    """The point of the path as parameters."""
    mu, length = task.stationary, task.first.shape[0]
    mean = (task.second @ mu)[:, None]
    return HopParams(
        mu[:, None] + at.value * (task.transition - mu[:, None]),
        1 / length + at.first * (task.first - 1 / length),
        1 / length + at.mean * (mean - 1 / length) + at.second * (task.second - mean),
    )


@pytest.mark.slow
@pytest.mark.parametrize("easy", [False, True])
def test_a_step_on_the_path_is_that_of_expected_gradients(easy: bool) -> None:
    """By autodiff of the exact loss; what is left out for two hops is of order 1/T."""
    with double_precision():
        at = HopPath(*(jnp.asarray(number) for number in (0.6, 0.45, 0.3, 0.2)))
        sizes = {"value": 0.3, "first": 0.2, "second": 0.1}
        rates = {name: jnp.asarray(rate) for name, rate in sizes.items()}
        errors: list[float] = []
        for length in (40, 4000):
            task = exact_task(length, seed=2)
            own, params = hops_theory.constants(task), path_params(task, at)

            def loss(params: HopParams, task: HopTask = task) -> jax.Array:
                if easy:
                    one = scbjax.Params(params.value, params.second)
                    return scbjax.excess_loss(one, hops_model.easy_task(task))
                return hops_theory.excess_loss(params, task)

            if not easy:
                away = float(loss(params) / hops_theory.path_excess(at, own, length))
                errors.append(abs(away - 1))
            turned = hops.directions(jax.grad(loss)(params), task.stationary)
            scales = HopParams(rates["value"], rates["first"], rates["second"])
            moved = jax.tree.map(lambda x, rate, d: x - rate * d, params, scales, turned)
            after = hops_theory.path_step(at, rates, own, length, easy)
            expected = path_params(task, after)
            for name in ("value", "second"):
                found, wanted, start = (getattr(x, name) for x in (moved, expected, params))
                errors.append(
                    float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted - start))
                )
            # Along Q alone: A_1 is also pushed onto positions of R.
            towards = task.first - 1 / length
            along = [
                float(scbjax.mu_inner(x.first - params.first, towards, task.stationary))
                for x in (moved, expected)
            ]
            errors.append(abs(along[0] - along[1]) / (along[1] or 1.0))
        short, long = np.split(np.array(errors), 2)
        if easy:
            np.testing.assert_allclose(np.concatenate([short, long]), 0.0, atol=1e-9)
        else:
            assert (short < 0.25).all()
            assert (long < 0.01).all()
            assert (long < 0.2 * short).all()


def test_steps_keep_the_invariants() -> None:
    with double_precision():
        task = exact_task(9)
        params = random_params(task)
        grads = jax.tree.map(
            lambda x: jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), params
        )
        turned = hops.directions(grads, task.stationary)
        for direction in turned:
            np.testing.assert_allclose(direction.sum(axis=0), 0.0, atol=1e-12)
        np.testing.assert_allclose(turned.value @ task.stationary, 0.0, atol=1e-12)
        # Nothing else is taken away: what is left is the gradient in the mu-inner product.
        metric = sum(float(jnp.sum(g * d)) for g, d in zip(grads, turned, strict=True))
        size = sum(float(scbjax.mu_inner(d, d, task.stationary)) for d in turned)
        assert metric == pytest.approx(size, rel=1e-10)


SMALL: dict[str, Any] = {
    "experiment": "hops",
    "task": {"num_tokens": 3, "context_length": 16, "sparsity": 2},
    "train": {"steps": 700, "record_every": 20, "batch_size": 16, "rate": 0.02},
    "zip": [{"name": "arm", "layers": [1, 2, 2], "easy_until": [1.0, 1.0, 0.2]}],
}


@pytest.mark.slow
def test_two_layers_get_below_the_floor_and_one_does_not() -> None:
    found = scbjax.sweep.run(SMALL, axes={"seed": range(3)}, progress=False)
    share = (found.excess / found.floor).isel(step=-1).transpose("arm", "seed").to_numpy()
    assert (share[0] > 0.99).all()
    assert (share[0] < 1.5).all()
    assert (share[1:] < 0.45).all()
    stage = found.stage.transpose("arm", "seed", "step").to_numpy()
    assert (stage[1, :, 1:] == 2).all()
    assert (stage[2, :, 1] == 1).all()
    assert (stage[2, :, -1] == 2).all()
    # The first time that the goal is met lies between two records.
    goal = found.samples_to_goal.transpose("arm", "seed", "step").to_numpy()
    assert (goal[0] == -1).all()
    ratio = (found.excess / found.floor).transpose("arm", "seed", "step").to_numpy()
    counted = found.samples.transpose("arm", "seed", "step").to_numpy()
    for arm, seed in itertools.product((1, 2), range(3)):
        met = goal[arm, seed, -1]
        assert (ratio[arm, seed][counted[arm, seed] < met] > 0.5).all()
        assert met <= counted[arm, seed][np.argmax(ratio[arm, seed] <= 0.5)]
    theory = found.path_samples_to_goal.transpose("arm", "seed", "step").to_numpy()[1:, :, -1]
    np.testing.assert_allclose(goal[1:, :, -1], theory, rtol=0.4)
    assert (goal[1, :, -1] > goal[2, :, -1]).all()


def test_the_study_and_its_small_form_load() -> None:
    for small in (False, True):
        study = load_study(STUDY, small=small)
        assert study.experiment.name == "hops"
    assert load_study(STUDY).num_trajectories > load_study(STUDY, small=True).num_trajectories


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.sparsity": 9}, "task.sparsity = 9 is larger than half of task.context_length = 16"),
        ({"model.layers": 3}, "model.layers must be an integer from 1 to 2, got 3"),
        ({"train.easy_until": 0.0}, "train.easy_until must be"),
        (
            {"model.layers": 1, "train.easy_until": 0.5},
            "model.layers = 1 has no use for one-hop samples, and train.easy_until = 0.5",
        ),
    ],
)
def test_what_has_no_meaning_is_one_sentence(changes: dict[str, Any], message: str) -> None:
    study = {name: part for name, part in SMALL.items() if name != "zip"}
    with pytest.raises(StudyError, match=re.escape(message)):
        scbjax.sweep.run(study, set=changes, axes={"seed": range(2)}, progress=False)
