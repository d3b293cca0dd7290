"""The simulation of long contexts, against contexts of all positions."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax import optim, paper, theory, training
from scbjax.algorithm import Tracked
from scbjax.composition import LearnerState
from scbjax.losses import loss
from scbjax.model import Params
from scbjax.parameters import Geometry, Optimizer, SwitchOn
from scbjax.recorded import DEFAULT_RECORD
from scbjax.sampling import sample_batch
from scbjax.settings import Settings
from scbjax.simulation import Simulation, simulate
from scbjax.tagged import draw_others, repeats
from scbjax.task import Task, mu_inner, random_task

Array = np.ndarray[Any, np.dtype[Any]]

# These programs run for milliseconds: optimising them costs more than it saves.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
change = dataclasses.replace

N, SUPPORT, TAGGED, EACH = 4, 2, 40, 4
R, T = SUPPORT + TAGGED, SUPPORT + TAGGED * EACH


def draw_task(**sizes: Any) -> Task:  # noqa: ANN401 - arguments of random_task
    draw = partial(random_task, num_tokens=3, sparsity=2, **sizes)
    task: Task = quick_jit(draw)(jax.random.key(2))
    return task


@pytest.fixture
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def expand(rows: Array, each: int = EACH) -> Array:
    """All T positions of which R rows are tagged: rows off the support are there many times."""
    return np.concatenate([rows[:SUPPORT], np.repeat(rows[SUPPORT:], each, axis=0)])


class Pair(NamedTuple):
    """The same task and parameters twice: with tagged positions, and with all of them."""

    task: Task
    params: Params
    whole_task: Task
    whole: Params


def make_pair(
    dtype: jax.typing.DTypeLike, *, alpha: float = 0.4, noise: float = 0.3, each: int = EACH
) -> Pair:
    """A task with mu far from uniform, and parameters off the population path."""
    rng = np.random.default_rng(1)
    length = SUPPORT + TAGGED * each
    p = rng.dirichlet(np.full(N, 0.4), N).T
    mu = np.linalg.solve(np.eye(N) - p + 1, np.ones(N))
    pattern = np.zeros((R, N))
    pattern[:SUPPORT] = rng.dirichlet(np.full(SUPPORT, 2.0), N).T
    extra = rng.normal(size=(N, N))
    extra -= extra.mean(axis=0)
    extra -= np.outer(extra @ mu, np.ones(N))
    value = mu[:, None] + 0.5 * (p - mu[:, None]) + 0.1 * extra
    attention = alpha * pattern
    attention[:SUPPORT] += 0.02 * rng.normal(size=(SUPPORT, N))
    rest = rng.normal(size=(TAGGED, N))
    rest -= rest.mean(axis=0)
    attention[SUPPORT:] = (1 - attention[:SUPPORT].sum(axis=0)) / (length - SUPPORT)
    attention[SUPPORT:] += noise / np.sqrt(length) * rest
    small = (jnp.asarray(array, dtype) for array in (p, mu, pattern))
    large = (jnp.asarray(array, dtype) for array in (p, mu, expand(pattern, each)))
    v, a = jnp.asarray(value, dtype), jnp.asarray(attention, dtype)
    whole = Params(v, jnp.asarray(expand(attention, each), dtype))
    return Pair(Task(*small), Params(v, a), Task(*large), whole)


def test_rows_stand_for_all_positions() -> None:
    pattern = jnp.array([[0.5, 1.0], [0.5, 0.0], [0.0, 0.0], [0.0, 0.0]])
    each = repeats(pattern, 10**6)
    np.testing.assert_allclose(jnp.sum(each, axis=0), 10**6, rtol=1e-6)
    assert each[:, 0].tolist() == [1, 1, 499999, 499999]
    assert (repeats(pattern, 4) == 1).all()


def test_draws_have_the_covariance_of_a_token() -> None:
    mu = jnp.array([0.1, 0.2, 0.7])
    count = 200_000
    others = jax.jit(draw_others, static_argnums=2)(jax.random.key(0), mu, count)
    draws = np.concatenate([others.sums, others.counts[:, None]], axis=1).astype(float)
    wanted = np.zeros((4, 4))
    wanted[:3, :3] = np.diag(mu) - np.outer(mu, mu)
    wanted[3, 3] = 1
    # The variance of x y is that of normal variables, s_xx s_yy + s_xy^2.
    error = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / count)
    assert (np.abs(draws.T @ draws / count - wanted) < 4.5 * error).all()
    assert (np.abs(draws.mean(axis=0)) < 4.5 * np.sqrt(np.diag(wanted) / count)).all()


# The noise, against that of mini-batches

Measured = Callable[[jax.Array], jax.Array]
NAMES = ("<h_V, P>", "<h_A, Q>", "<Delta_V, h_V>", "<Delta_A, h_A>", "|h_V|^2", "|h_A|^2")


def functionals(noise: Params, task: Task, delta: theory.PathProjection) -> jax.Array:
    """What Lemmas C.5 and C.6 want to know of the noise."""
    mu = task.stationary
    return jnp.stack(
        [
            mu_inner(noise.value, task.transition, mu),
            mu_inner(noise.attention, task.pattern, mu),
            mu_inner(noise.value, delta.delta_value, mu),
            mu_inner(noise.attention, delta.delta_attention, mu),
            mu_inner(noise.value, noise.value, mu),
            mu_inner(noise.attention, noise.attention, mu),
        ]
    )


def of_real_noise(pair: Pair, geometry: Geometry) -> Measured:
    """The functionals of the noise of one sample of all positions."""
    task, params = pair.whole_task, pair.whole
    expected = theory.expected_direction(params, task)
    delta = theory.project_on_path(params, task)
    optimizer = optim.scb_sgd(task.stationary, 1.0, 1.0, geometry=geometry)

    def measure(key: jax.Array) -> jax.Array:
        gradient = jax.grad(loss)(params, sample_batch(key, task, 1))
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        noise = jax.tree.map(lambda update, mean: -update - mean, updates, expected)
        return functionals(noise, task, delta)

    return measure


def of_simulated_noise(pair: Pair, geometry: Geometry) -> Measured:
    """The functionals of the noise of one sample of tagged positions."""
    task, params = pair.task, pair.params
    length = pair.whole_task.context_length
    simulation = Simulation(length)
    whole = theory.expected_direction(pair.whole, pair.whole_task)
    each = (length - SUPPORT) // TAGGED
    rows = jnp.concatenate([whole.attention[:SUPPORT], whole.attention[SUPPORT::each]])
    root = jnp.sqrt(repeats(task.pattern, length))
    delta = simulation.project(params, task)

    def measure(key: jax.Array) -> jax.Array:
        key_tagged, key_others = jax.random.split(key)
        batch = sample_batch(key_tagged, task, 1)
        others = draw_others(key_others, task.stationary, 1)
        gradient = simulation.gradient(params, batch, others, task)
        found = simulation.direction(gradient, params, task, geometry)
        noise = Params(found.value - whole.value, root * (found.attention - rows))
        return functionals(noise, task, delta)

    return measure


def draw(measure: Measured, count: int, seed: int) -> Array:
    keys = jax.random.split(jax.random.key(seed), count).reshape(-1, 1000)
    found = jax.jit(lambda keys: jax.lax.map(jax.vmap(measure), keys))(keys)
    return np.asarray(found, float).reshape(count, -1)


def deviations(real: Array, simulated: Array) -> tuple[Array, Array]:
    """Differences of means [6] and of covariances [6, 6], in standard errors."""

    def moments(draws: Array) -> tuple[Array, Array, Array]:
        centred = draws - draws.mean(axis=0)
        products = centred[:, :, None] * centred[:, None, :]
        return draws.mean(axis=0), products.mean(axis=0), products.var(axis=0)

    (mean, covariance, error), (other_mean, other, other_error) = map(moments, (real, simulated))
    size = np.sqrt((covariance.diagonal() + other.diagonal()) / len(real))
    return (other_mean - mean) / size, (other - covariance) / np.sqrt(
        (error + other_error) / len(real)
    )


def compare_noise(geometry: Geometry, count: int, each: int = EACH) -> None:
    pair = make_pair(jnp.float32, each=each)
    real = draw(of_real_noise(pair, geometry), count, 1)
    simulated = draw(of_simulated_noise(pair, geometry), count, 2)
    means, covariances = deviations(real, simulated)
    # |h_A|^2 is a sum over rows of which there are R instead of T: its mean is off by O(1/R), and
    # its variance is larger. The two biases are left to the scale of 1/R.
    spread = real.std(axis=0)[-1] * np.sqrt(2 / count)
    allowed = 2.0 / R * real[:, -1].mean()
    assert abs(simulated[:, -1].mean() - real[:, -1].mean()) < allowed + 4.5 * spread
    assert real[:, -1].std() * 0.9 < simulated[:, -1].std() < real[:, -1].std() * 1.2
    covariances[-1, -1] = means[-1] = 0
    # 5 + 20 distinct comparisons, of which one in 10^4 is expected above 4.5.
    named = {
        a: dict(zip(NAMES, row, strict=True)) for a, row in zip(NAMES, covariances, strict=True)
    }
    assert np.abs(means).max() < 4.5, dict(zip(NAMES, means, strict=True))
    assert np.abs(covariances).max() < 4.5, named


@pytest.mark.slow
def test_noise_has_the_moments_of_mini_batches() -> None:
    compare_noise("mu", 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", optim.GEOMETRIES)
@pytest.mark.parametrize("each", [4, 25])
def test_noise_has_the_moments_of_many_mini_batches(geometry: Geometry, each: int) -> None:
    compare_noise(geometry, 200_000, each)


@pytest.mark.usefixtures("x64")
def test_one_step_identities_hold_for_simulated_noise() -> None:
    pair = make_pair(jnp.float64)
    simulation, rates = Simulation(T), theory.Rates(jnp.float64(0.7), jnp.float64(0.4))

    @quick_jit
    def take(key: jax.Array) -> tuple[Params, theory.PathProjection]:
        batch = sample_batch(key, pair.task, 8)
        others = draw_others(jax.random.fold_in(key, 1), pair.task.stationary, 8)
        gradient = simulation.gradient(pair.params, batch, others, pair.task)
        found = simulation.direction(gradient, pair.params, pair.task, "mu")
        after = jax.tree.map(lambda p, d, r: p - r * d, pair.params, found, Params(*rates))
        return found, simulation.project(after, pair.task)

    found, after = take(jax.random.key(3))
    whole = Params(found.value, jnp.asarray(expand(np.asarray(found.attention))))
    np.testing.assert_allclose(whole.attention.sum(axis=0), 0, atol=1e-12)
    expected = theory.expected_direction(pair.whole, pair.whole_task)
    noise = jax.tree.map(jnp.subtract, whole, expected)
    predicted = theory.predict_step(pair.whole, pair.whole_task, noise, rates)
    mu = pair.task.stationary
    actual = [*after[:2], *(mu_inner(delta, delta, mu) for delta in after[2:])]
    np.testing.assert_allclose(actual, predicted, rtol=1e-11)


# What is made of the noise: steps, stages and records

QUICK = Settings(
    batch_size=16,
    steps=90,
    record_every=6,
    learning_rate_1=0.1,
    learning_rate_2=0.05,
    l1=1e-3,
    stop_level=0.5,
    refit_samples=64,
)
Both = tuple[LearnerState, LearnerState]  # of the training and of the simulation
# Its label is drawn by position, and the order of the tagged positions is another one.
RANDOM = {"rounded_value_distance", "rounded_value_similarity"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "optimizer",
    [
        "proximal",
        pytest.param("sgd", marks=pytest.mark.slow),
        pytest.param("raw_sgd", marks=pytest.mark.slow),
    ],
)
def test_with_all_positions_tagged_it_is_the_training(optimizer: Optimizer) -> None:
    task = draw_task(context_length=40, dtype=jnp.float64)
    geometry: Geometry = "paper" if optimizer == "sgd" else "mu"
    settings = change(QUICK, optimizer=optimizer, geometry=geometry)
    if optimizer == "raw_sgd":
        settings = change(settings, learning_rate_1=0.8, learning_rate_2=0.8)
    simulation = Simulation(task.context_length)

    def both(states: Both, key: jax.Array) -> tuple[Both, Any]:
        def step(states: Both, key: jax.Array) -> tuple[Both, None]:
            batch = sample_batch(key, task, settings.batch_size)
            others = draw_others(key, task.stationary, settings.batch_size)
            state = paper.step(states[0], batch, task, settings)[0]
            return (state, simulation.step(states[1], batch, others, task, settings)), None

        keys = jax.random.split(key, settings.record_every)
        state, simulated = jax.lax.scan(step, states, keys)[0]
        state = paper.next_stage(state, task, settings)
        simulated = simulation.next_stage(simulated, task, settings)
        records = (
            paper.observe_state(key, task, settings, state, 0),
            simulation.observe_state(key, task, settings, simulated, 0),
        )
        return (state, simulated), records

    start = jax.random.key(0), task, settings
    states = paper.init(*start), simulation.init(*start)
    keys = jax.random.split(jax.random.key(1), settings.steps // settings.record_every)
    _, (real, found) = quick_jit(lambda: jax.lax.scan(both, states, keys))()
    assert real.keys() == found.keys() == set(DEFAULT_RECORD)
    for name in real:
        np.testing.assert_allclose(found[name], real[name], rtol=1e-8, atol=1e-12, err_msg=name)
    assert real["stage"][-1] == (3 if optimizer == "proximal" else 2)


def state_at(params: Params, stage: int) -> LearnerState:
    dtype = params.value.dtype
    return LearnerState(
        params=params,
        opt_state=(),
        stage=jnp.int32(stage),
        step=jnp.int32(7),
        batch_loss=jnp.asarray(0.5, dtype),
        tracked=Tracked(
            flipped=jnp.zeros((), bool),
            population=(jnp.asarray(0.3, dtype), jnp.asarray(0.2, dtype)),
        ),
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("switch_on", ["parameters", "truth"])
@pytest.mark.parametrize(("stage", "alpha"), [(1, 0.4), (1, -0.4), (2, 0.4)])
def test_stages_and_records_are_those_of_all_positions(
    stage: int, alpha: float, switch_on: SwitchOn
) -> None:
    # The rows off the support that survive a threshold do so many times over.
    pair = make_pair(jnp.float64, alpha=alpha, noise=0.5)
    level = float(jnp.sort(pair.params.attention[SUPPORT:].ravel())[-9]) * 2
    settings = change(
        QUICK, switch_on=switch_on, switch_level=0.1, stop_level=0.1, rounding_level=level
    )
    settings = change(settings, threshold=level / 0.7)
    key, simulation = jax.random.key(0), Simulation(T)

    @quick_jit
    def both() -> tuple[Any, Any, LearnerState, LearnerState]:
        state = paper.next_stage(state_at(pair.whole, stage), pair.whole_task, settings)
        found = simulation.next_stage(state_at(pair.params, stage), pair.task, settings)
        names = tuple(name for name in DEFAULT_RECORD if name not in RANDOM)
        record = change(settings, record=names)
        return (
            paper.observe_state(key, pair.whole_task, record, state, 0),
            simulation.observe_state(key, pair.task, record, found, 0),
            state,
            found,
        )

    real, found, state, simulated = both()
    for name in real:
        np.testing.assert_allclose(found[name], real[name], rtol=1e-10, atol=1e-13, err_msg=name)
    np.testing.assert_allclose(
        expand(np.asarray(simulated.params.attention)), state.params.attention, atol=1e-13
    )
    assert real["stage"] == stage + 1
    assert bool(real["flipped"]) == (alpha < 0)
    if stage == 2:
        kept = np.count_nonzero(np.asarray(simulated.params.attention), axis=0)
        assert kept.sum() > SUPPORT * N  # false positives too


def test_products_of_a_step_have_the_precision_of_the_settings() -> None:
    draw = partial(random_task, num_tokens=3, context_length=40, sparsity=2)
    task = jax.eval_shape(draw, jax.random.key(0))
    simulation, settings = Simulation(1000), change(QUICK, precision="high")
    key, size = jax.random.key(0), settings.batch_size
    state = jax.eval_shape(simulation.init, key, task, settings)
    batch = jax.eval_shape(partial(sample_batch, batch_size=size), key, task)
    others = jax.eval_shape(partial(draw_others, batch_size=size), key, task.stationary)
    text = jax.jit(simulation.step).lower(state, batch, others, task, settings).as_text()
    assert text.count("stablehlo.dot_general ") == text.count("precision = [HIGH, HIGH]") > 0


def test_nothing_grows_with_the_steps_of_a_stretch() -> None:
    task, settings = draw_task(context_length=40), change(QUICK, steps=7919, record_every=7919)
    program = jax.make_jaxpr(partial(simulate, context_length=1000))(
        jax.random.key(0), task, settings
    )
    assert "length=7919" in str(program)
    assert "[7919" not in str(program)  # the shape of a list of all steps


def test_too_short_a_context() -> None:
    task = draw_task(context_length=8)
    with pytest.raises(ValueError, match="context_length is 7; it must be at least the 8 posi"):
        simulate(jax.random.key(0), task, QUICK, context_length=7)


@pytest.mark.parametrize("attention_map", ["linear", "softmax"])
def test_what_a_simulation_does_not_train(attention_map: str) -> None:
    task = make_pair(jnp.float32).task
    settings = change(QUICK, optimizer="adam", attention_map=attention_map)
    field = "optimizer is 'adam'" if attention_map == "linear" else "attention_map is 'softmax'"
    with pytest.raises(ValueError, match=f"{field}; in a simulation it must be one of"):
        Simulation(T).init(jax.random.key(0), task, settings)


def test_what_a_simulation_does_not_record() -> None:
    pair, settings = make_pair(jnp.float32), change(QUICK, record=("initial_noise_mu",))
    with pytest.raises(ValueError, match="record has 'initial_noise_mu'; a simulation has what"):
        Simulation(T).observe_state(
            jax.random.key(0), pair.task, settings, state_at(pair.params, 1), 0
        )


@pytest.mark.slow
@pytest.mark.parametrize(("num_tokens", "batch_size"), [(3, 64), (10, 128)])
@pytest.mark.parametrize("optimizer", ["proximal", "sgd"])
def test_medians_of_simulated_runs_are_inside_the_band_of_real_ones(
    num_tokens: int, batch_size: int, optimizer: Optimizer
) -> None:
    length, runs = 1000, 24
    variables = ("alpha_value", "alpha_attention", "delta_value", "delta_attention")
    settings = Settings(
        batch_size=batch_size,
        steps=800,
        record_every=20,
        optimizer=optimizer,
        record=variables,
        stop_level=0.9,
    )
    draw = partial(random_task, num_tokens=num_tokens, sparsity=2)

    def real(key: jax.Array) -> dict[str, jax.Array]:
        task = draw(key, context_length=length)
        return training.train(jax.random.fold_in(key, 1), task, settings).records

    def simulated(key: jax.Array) -> dict[str, jax.Array]:
        task = draw(key, context_length=256)
        key = jax.random.fold_in(key, 2)
        return simulate(key, task, settings, context_length=length).records

    keys = jax.random.split(jax.random.key(5), runs)
    run = partial(jax.lax.map, xs=keys, batch_size=4)
    wanted, found = (jax.jit(lambda one=one: run(one))() for one in (real, simulated))
    for name in variables:
        low, high = np.percentile(wanted[name], [10, 90], axis=0)
        median = np.median(found[name], axis=0)
        slack = 1e-6 * np.abs(high).max()  # rounding, where all runs agree
        inside = (median >= low - slack) & (median <= high + slack)
        assert inside.mean() >= 0.95, name
        assert (high - low)[1:].min() < 0.5 * np.abs(high).max()  # the band is not everything


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_flat_column_has_no_direction_that_rounding_could_give_it(dtype: str) -> None:
    """There ``a - mean`` is what rounding leaves, and dividing by its square blew up.

    Columns are flat at the start, and as long as no sample has asked for them.
    """
    task = Task(*(array.astype(dtype) for array in draw_task(context_length=20)))
    simulation = Simulation(99)

    @quick_jit
    def direct(params: Params, key: jax.Array) -> tuple[Any, Params]:
        others = draw_others(key, task.stationary, 4)
        gradient = simulation.gradient(params, sample_batch(key, task, 4), others, task)
        return gradient, simulation.direction(gradient, params, task, "mu")

    value = 0.5 * (task.transition + task.stationary[:, None])
    for seed in range(20):
        levels = np.random.default_rng(seed).uniform(0.5, 1.5, 3) / 99
        params = Params(value, jnp.asarray(np.tile(levels, (20, 1)), dtype))
        check_flat(task, *direct(params, jax.random.key(seed)))


def check_flat(task: Task, gradient: Any, found: Params) -> None:  # noqa: ANN401 - a Gradient
    """By hand, without the part that a flat column has none of."""
    rows, total, mu = (
        np.asarray(array, np.float64)
        for array in (gradient.attention, gradient.total, task.stationary)
    )
    each = np.asarray(repeats(task.pattern, 99), np.float64)
    off = np.asarray(task.pattern == 0)
    expected = (rows - total / 99) / mu
    excess = (each * expected).sum(axis=0) / (each * off).sum(axis=0)
    expected = expected - np.where(off, excess, 0.0)
    # A few roundings of terms of this size.
    tolerance = 64 * float(jnp.finfo(task.pattern.dtype).eps) * np.abs(rows).max() / mu.min()
    np.testing.assert_allclose(found.attention, expected, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_a_continued_simulation_is_bitwise_one_long_one() -> None:
    task = draw_task(context_length=20)
    run = quick_jit(partial(simulate, context_length=500), static_argnames=("record", "steps"))
    arguments: tuple[Any, ...] = (jax.random.key(3), task, QUICK)
    half: dict[str, Any] = {"steps": QUICK.record_every, "record": ("alpha_value", "samples")}
    whole = run(*arguments, **{**half, "steps": 2 * QUICK.record_every})
    first = run(*arguments, **half)
    second = run(*arguments, **half, state=first.state)
    for one, other in zip(jax.tree.leaves(second.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_array_equal(one, other)
    for name, record in whole.records.items():
        np.testing.assert_array_equal(second.records[name], record[1:])
