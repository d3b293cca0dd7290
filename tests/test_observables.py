"""What is recorded: every observable against float64 NumPy."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax import noise, observables, parts, stages
from scbjax.model import AttentionMap, Params, init_params, map_attention
from scbjax.recorded import DEFAULT_RECORD, OBSERVABLES, as_record, record_dims
from scbjax.task import Task

Array = np.ndarray

N, T, Q = 3, 20, 2
REFIT: Any = {"refit_samples": 300, "refit_support": 8}
NOISE_SAMPLES = 200
SHARE = 0.5
EVERYTHING = tuple(OBSERVABLES)
COUNTED = ("nonzeros", "stage", "flipped", "samples")


class Numbers:
    """A task and a state in float64 NumPy, off the invariant set, rounded to float32 and back."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        p = rng.dirichlet(np.full(N, 0.5), size=N).T + 0.02
        p /= p.sum(axis=0)
        q = np.zeros((T, N))
        for column in q.T:
            column[rng.choice(T, Q, replace=False)] = rng.uniform(0.5, 1.5, size=Q)
        self.p, self.q = self.rounded(p), self.rounded(q / q.sum(axis=0))
        self.mu = self.rounded(np.linalg.solve(np.eye(N) - p + 1, np.ones(N)))
        self.v = self.rounded(0.6 * self.p + 0.4 * self.mu[:, None] + 0.1 * rng.normal(size=(N, N)))
        self.a = self.rounded(0.7 * self.q + 0.3 / T + 0.01 * rng.normal(size=(T, N)))

    @staticmethod
    def rounded(array: Array) -> Array:
        return array.astype(np.float32).astype(np.float64)

    def task(self) -> Task:
        return Task(*(jnp.asarray(array, jnp.float32) for array in (self.p, self.mu, self.q)))

    def params(self) -> Params:
        return Params(jnp.asarray(self.v, jnp.float32), jnp.asarray(self.a, jnp.float32))

    def inner(self, a: Array, b: Array) -> float:
        return float(np.trace(a @ np.diag(self.mu) @ b.T))

    def norm(self, a: Array) -> float:
        return math.sqrt(self.inner(a, a))

    def cosine(self, a: Array, b: Array) -> float:
        return self.inner(a, b) / self.norm(a) / self.norm(b)

    def fitted(self, a: Array) -> Array:
        """The V that minimises the expected loss for this A."""
        mean, cross, second = np.outer(self.mu, self.mu), 0.0, 0.0
        for k in range(N):
            mass, size, overlap = a[:, k].sum(), (a[:, k] ** 2).sum(), a[:, k] @ self.q[:, k]
            second += self.mu[k] * (size * np.diag(self.mu) + (mass**2 - size) * mean)
            cross += self.mu[k] * (overlap * self.p @ np.diag(self.mu) + (mass - overlap) * mean)
        return np.linalg.solve(second, np.transpose(cross)).T

    def expected_loss(self, v: Array, a: Array) -> float:
        """From the moments of h = X a and of the label, query by query."""
        mean = np.outer(self.mu, self.mu)
        total = 0.0
        for k in range(N):
            mass, size = a[:, k].sum(), (a[:, k] ** 2).sum()
            overlap = a[:, k] @ self.q[:, k]
            second = size * np.diag(self.mu) + (mass**2 - size) * mean
            cross = overlap * self.p @ np.diag(self.mu) + (mass - overlap) * mean
            total += self.mu[k] * (1.0 - 2 * np.trace(v.T @ cross) + np.trace(v @ second @ v.T))
        return total / 2


def view(
    params: Params, task: Task, key: jax.Array | None = None, attention_map: str = "linear"
) -> observables.View:
    return observables.View(
        jax.random.key(0) if key is None else key,
        params,
        task,
        attention_map=attention_map,
        batch_loss=jnp.asarray(0.25),
        stage=jnp.asarray(2, jnp.int32),
        samples=jnp.asarray(640, jnp.int32),
        flipped=jnp.asarray(True),
        population=(jnp.asarray(0.5), jnp.asarray(0.75)),
        rounding_share=SHARE,
        noise_samples=NOISE_SAMPLES,
        **REFIT,
    )


@functools.cache
def recorded(seed: int) -> dict[str, Array]:
    numbers = Numbers(seed)
    compute = jax.jit(lambda params, task: observables.observe_view(view(params, task), EVERYTHING))
    return {k: np.asarray(v) for k, v in compute(numbers.params(), numbers.task()).items()}


@functools.cache
def expected(seed: int) -> dict[str, float]:
    n = Numbers(seed)
    k_p = n.inner(n.p, n.p) - n.mu @ n.mu
    k_q = n.inner(n.q, n.q) - 1 / T
    alpha_v = (n.inner(n.v, n.p) - n.mu @ n.mu) / k_p
    alpha_a = (n.inner(n.a, n.q) - 1 / T) / k_q
    background = np.quantile(n.a, 0.5, axis=0, method="lower")
    rounded = np.where(n.a >= SHARE / Q, n.a, 0.0)
    rounded /= rounded.sum(axis=0)
    refit = np.asarray(
        stages.refit_value(
            jax.random.key(0),
            jnp.asarray(rounded, jnp.float32),
            n.task(),
            num_samples=REFIT["refit_samples"],
            support=REFIT["refit_support"],
        ),
        float,
    )
    measured = noise.signal_noise(
        jax.random.fold_in(jax.random.key(0), 1), n.params(), n.task(), NOISE_SAMPLES
    )
    return {
        "alpha_value": alpha_v,
        "alpha_attention": alpha_a,
        "delta_value": n.norm(n.v - alpha_v * n.p - (1 - alpha_v) * n.mu[:, None]),
        "delta_attention": n.norm(n.a - alpha_a * n.q - (1 - alpha_a) / T),
        "value_distance": n.norm(n.v - n.p),
        "attention_distance": n.norm(n.a - n.q),
        "value_similarity": n.cosine(n.v, n.p),
        "attention_similarity": n.cosine(n.a, n.q),
        "rounded_value_distance": n.norm(refit - n.p),
        "rounded_attention_distance": n.norm(rounded - n.q),
        "rounded_value_similarity": n.cosine(refit, n.p),
        "rounded_attention_similarity": n.cosine(rounded, n.q),
        "excess_loss": n.expected_loss(n.v, n.a) - n.expected_loss(n.p, n.q),
        "batch_loss": 0.25,
        "nonzeros": float(np.sum(np.abs(n.a - background) > 1e-3 / T)),
        "stage": 2,
        "flipped": 1,
        "samples": 640,
        "population_alpha_value": 0.5,
        "population_alpha_attention": 0.75,
        "population_refit_distance": n.norm(n.fitted(rounded) - n.p),
        "attention_gain_support": 1.0,
        "attention_gain_rest": 1.0,
        "alpha_value_noise_mu": float(measured.deviation.value_mu),
        "alpha_value_noise_paper": float(measured.deviation.value_paper),
        "alpha_attention_noise": float(measured.deviation.attention),
        "alpha_value_gradient_mu": float(measured.mean.value_mu),
        "alpha_value_gradient_paper": float(measured.mean.value_paper),
        "alpha_attention_gradient": float(measured.mean.attention),
        "initial_noise_mu": float(noise.initial_noise(n.task(), "mu")),
        "initial_noise_paper": float(noise.initial_noise(n.task(), "paper")),
    }


@pytest.mark.parametrize("name", list(OBSERVABLES))
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_observable_equals_its_formula(name: str, seed: int) -> None:
    # A distance is no more exact than the matrices, of entries up to 1, that it lies between.
    np.testing.assert_allclose(recorded(seed)[name], expected(seed)[name], rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("name", list(OBSERVABLES))
def test_every_observable_has_metadata_and_its_dtype(name: str) -> None:
    entry = OBSERVABLES[name]
    assert entry.long_name
    assert entry.symbol
    assert entry.dtype == ("int32" if name in COUNTED else "float32")
    assert recorded(0)[name].dtype == entry.dtype
    assert recorded(0)[name].shape == ()
    assert entry.units == {"nonzeros": "count", "samples": "samples"}.get(name, "1")


def test_the_table_names_what_studies_record() -> None:
    assert tuple(expected(0)) == EVERYTHING
    costly = [name for name in EVERYTHING if "noise" in name or "gradient" in name]
    special = ["population_refit_distance", "attention_gain_support", "attention_gain_rest"]
    assert set(EVERYTHING) - set(DEFAULT_RECORD) == {*costly, *special}


def test_truth_and_start_have_their_obvious_records() -> None:
    numbers = Numbers(3)
    task = numbers.task()
    truth = observables.observe_view(view(Params(task.transition, task.pattern), task))
    start = observables.observe_view(view(init_params(task), task))
    for found, alpha, similarity in ((truth, 1.0, 1.0), (start, 0.0, None)):
        for field in ("value", "attention"):
            assert float(found[f"alpha_{field}"]) == pytest.approx(alpha, abs=1e-5)
            assert float(found[f"delta_{field}"]) == pytest.approx(0.0, abs=1e-5)
            if similarity is not None:
                assert float(found[f"{field}_distance"]) == pytest.approx(0.0, abs=1e-6)
                assert float(found[f"{field}_similarity"]) == pytest.approx(similarity, abs=1e-6)
    assert float(truth["excess_loss"]) == 0.0
    assert float(truth["rounded_attention_distance"]) == pytest.approx(0.0, abs=1e-6)
    assert int(truth["nonzeros"]) == Q * N
    assert int(start["nonzeros"]) == 0


def softmax_gains(attention: Array, chosen: Array) -> float:
    """The mean of ``(J J^T)_tt`` over its value at uniform attention, ``J = diag(a) - a a^T``."""

    def diagonal(a: Array) -> Array:
        jacobian = np.diag(a) - np.outer(a, a)
        return np.diag(jacobian @ jacobian.T)

    uniform = diagonal(np.full(T, 1 / T))
    gains = np.stack([diagonal(a) / uniform for a in attention.T], axis=1)
    return float(gains[chosen].mean())


def test_gains_of_softmax_on_and_off_the_support() -> None:
    numbers = Numbers(8)
    logits = jnp.asarray(np.log(0.2 * numbers.q + 0.8 / T), jnp.float32)
    mapped = map_attention(Params(jnp.eye(N), logits), "softmax")
    names = ("attention_gain_support", "attention_gain_rest")
    found = observables.observe_view(view(mapped, numbers.task(), attention_map="softmax"), names)
    attention = np.asarray(mapped.attention, np.float64)
    support, rest = (softmax_gains(attention, chosen) for chosen in (numbers.q > 0, numbers.q == 0))
    assert support > 2 > 1 > rest
    np.testing.assert_allclose([found[name] for name in names], [support, rest], rtol=1e-5)


def test_the_gain_off_a_dense_support_is_zero() -> None:
    numbers = Numbers(9)
    dense = numbers.task()._replace(pattern=jnp.full((T, N), 1 / T))
    found = observables.observe_view(view(numbers.params(), dense), ("attention_gain_rest",))
    assert float(found["attention_gain_rest"]) == 0.0


def test_similarity_of_nothing_is_zero() -> None:
    numbers = Numbers(4)
    empty = Params(jnp.zeros((N, N)), jnp.zeros((T, N)))
    names = ("value_similarity", "attention_similarity")
    found = observables.observe_view(view(empty, numbers.task()), names)
    assert [float(found[name]) for name in names] == [0.0, 0.0]


def test_only_what_is_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> jax.Array:
        raise AssertionError("the refit was computed")

    monkeypatch.setattr(observables, "refit_value", refuse)
    numbers = Numbers(5)
    names = ("stage", "alpha_value", "rounded_attention_distance")
    found = observables.observe_view(view(numbers.params(), numbers.task()), names)
    assert tuple(found) == names
    with pytest.raises(AssertionError, match="the refit was computed"):
        observables.observe_view(
            view(numbers.params(), numbers.task()), ("rounded_value_distance",)
        )


def test_what_several_observables_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("refit_value", "round_attention", "project_on_path", "signal_noise"):
        real = getattr(observables, name)

        def counted(*args: object, _name: str = name, _real: object = real, **kwargs: object):  # type: ignore[no-untyped-def]  # noqa: ANN202
            calls.append(_name)
            return _real(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(observables, name, counted)
    numbers = Numbers(5)
    observables.observe_view(view(numbers.params(), numbers.task()), EVERYTHING)
    assert sorted(calls) == ["project_on_path", "refit_value", "round_attention", "signal_noise"]


def test_the_refit_uses_the_key() -> None:
    numbers = Numbers(6)
    found = [
        float(
            observables.observe_view(
                view(numbers.params(), numbers.task(), jax.random.key(seed)),
                ("rounded_value_distance",),
            )["rounded_value_distance"]
        )
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


# The number of entries that stand out.


def proximal_columns(rng: np.random.Generator, counts: list[int], length: int) -> Array:
    """Columns as eq. 6 leaves them: a shared background, and entries that stand out from it."""
    columns = []
    for count in counts:
        column = np.zeros(length)
        column[rng.choice(length, count, replace=False)] = rng.uniform(0.05, 0.4, size=count)
        column += (1 - column.sum()) / length
        columns.append(column)
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(
    ("length", "counts"),
    [
        (1, [0, 0, 0]),
        (2, [0, 0, 0]),
        (21, [0, 1, 9]),
        (50, [0, 2, 24]),
        (1500, [0, 3, 700]),  # every entry is a probe for the background
        (5000, [1, 10, 1500]),  # every fourth is
    ],
)
def test_nonzeros_counts_what_stands_out(length: int, counts: list[int]) -> None:
    attention = proximal_columns(np.random.default_rng(length), counts, length)
    found = observables.count_nonzeros(jnp.asarray(attention, jnp.float32))
    assert found.dtype == jnp.int32
    assert int(found) == sum(counts)


def test_nonzeros_of_rounded_columns_and_of_rounding_errors() -> None:
    pattern = Numbers(7).q
    assert int(observables.count_nonzeros(jnp.asarray(pattern, jnp.float32))) == Q * N
    blurred = pattern + np.random.default_rng(0).uniform(-1e-7, 1e-7, size=pattern.shape)
    assert int(observables.count_nonzeros(jnp.asarray(blurred, jnp.float32))) == Q * N
    # Entries below the background count as well: they stand out.
    below = np.full((100, 2), 0.01)
    below[3, 0] = -0.2
    assert int(observables.count_nonzeros(jnp.asarray(below, jnp.float32))) == 1


def test_nonzeros_of_noise_is_everything_but_the_backgrounds() -> None:
    noise = np.random.default_rng(0).normal(size=(51, 4))
    assert int(observables.count_nonzeros(jnp.asarray(noise, jnp.float32))) == 50 * 4


# -------------------------------------------------------------- parameters and a task by themselves


def test_bare_parameters_have_the_records_of_a_state() -> None:
    numbers = Numbers(0)
    found = observables.observe(
        numbers.params(), numbers.task(), rounding_level=SHARE, key=jax.random.key(0), **REFIT
    )
    assert set(found) == set(observables.BARE_RECORD)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected(0)[name], rtol=2e-5, atol=2e-7)


def test_bare_parameters_of_another_map() -> None:
    numbers = Numbers(8)
    logits = Params(
        numbers.params().value, jnp.asarray(np.log(0.2 * numbers.q + 0.8 / T), "float32")
    )
    names = ("attention_distance", "attention_gain_support")
    found = observables.observe(logits, numbers.task(), names, attention_map="softmax")
    expected_distance = numbers.norm(0.8 * numbers.q - 0.8 / T)
    np.testing.assert_allclose(found["attention_distance"], expected_distance, rtol=1e-5)
    assert float(found["attention_gain_support"]) > 2


def test_observables_of_ones_own_have_names_and_axes() -> None:
    numbers = Numbers(2)

    def column_sums(view: observables.View) -> jax.Array:
        """sums of the columns of A"""
        return jnp.sum(view.params.attention, axis=0)

    named = parts.Observable(column_sums, dims=("query",), name="sums")
    record: Any = [named, "value_distance"]
    found = observables.observe(numbers.params(), numbers.task(), record)
    np.testing.assert_allclose(found["sums"], numbers.a.sum(axis=0), rtol=1e-5)
    assert list(found) == ["sums", "value_distance"]
    both: Any = {"mine": lambda view: jnp.sum(view.task.pattern), "theirs": "value_distance"}
    again = observables.observe(numbers.params(), numbers.task(), both)
    np.testing.assert_allclose(again["mine"], N, rtol=1e-5)
    np.testing.assert_array_equal(again["theirs"], found["value_distance"])
    (entry,) = as_record([column_sums])
    assert not isinstance(entry, str)
    assert (entry.name, entry.long_name) == ("column_sums", "sums of the columns of A")
    assert record_dims(named) == ("query",)
    assert record_dims("stage") == ()


def test_a_record_is_known_by_its_functions() -> None:
    def make(factor: float) -> Any:  # noqa: ANN401 - an observable
        return {"x": lambda view: factor * jnp.sum(view.params.value)}

    first, second = (as_record(make(factor)) for factor in (1.0, 2.0))
    assert first != second
    assert hash(first) == hash(as_record(first))
    assert first == as_record(first)


def largest(view: observables.View) -> jax.Array:
    return jnp.max(view.params.attention)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("stage", "record is 'stage'; it must be a tuple of names, such as ('stage',)"),
        (largest, "record is a function; it must be a tuple of names of observables"),
        (("stag",), "record has 'stag'; did you mean 'stage'?"),
        ((3,), "record has 3; it must name observables: alpha_value"),
        (
            (lambda view: view.stage,),
            "record has an observable of one's own, of which '<lambda>' is",
        ),
        ({"stage": largest}, "record has an observable of one's own, of which 'stage' is the name"),
        ({3: largest}, "record has the key 3; it must be a name"),
        (
            [largest, parts.Observable(jnp.sum, name="largest")],
            "record has two things named 'largest'",
        ),
    ],
)
def test_records_that_are_none_are_refused(record: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        as_record(record)


@pytest.mark.parametrize("name", ["stage", "samples", "batch_loss", "flipped"])
def test_what_a_trajectory_alone_knows_is_not_there(name: str) -> None:
    numbers = Numbers(2)
    with pytest.raises(ValueError, match=f"^there is no {name} here: it is known of a state"):
        observables.observe(numbers.params(), numbers.task(), (name,))


def test_parameters_of_another_size_are_refused() -> None:
    numbers, other = Numbers(2), Params(jnp.eye(N), jnp.ones((T + 1, N)))
    with pytest.raises(
        ValueError, match=r"^params has value \[3, 3\] and attention \[21, 3\]; they"
    ):
        observables.observe(other, numbers.task())
    with pytest.raises(TypeError, match=r"^task is 3; it must be a Task"):
        observables.observe(other, 3)  # type: ignore[arg-type]


def test_a_view_names_what_it_does_not_have() -> None:
    numbers = Numbers(2)
    with pytest.raises(AttributeError, match=r"a view has no 'nonzeroes'; did you mean 'nonzeros'"):
        view(numbers.params(), numbers.task()).nonzeroes  # noqa: B018 - the look-up is tested
    with pytest.raises(AttributeError, match=r"^a view of a dict has no estimated_signals$"):
        observables.View(jax.random.key(0), numbers.params(), {}).estimated_signals  # noqa: B018
    with pytest.raises(TypeError, match=r"a view has no 'stge'; did you mean 'stage'"):
        observables.View(jax.random.key(0), numbers.params(), numbers.task(), stge=1)


def test_a_map_without_a_gain_can_be_recorded_but_for_that() -> None:
    numbers = Numbers(2)
    own = AttentionMap(lambda w: 2 * w, lambda length: 0.5 / length, name="double")
    half = Params(numbers.params().value, numbers.params().attention / 2)
    found = observables.observe(half, numbers.task(), ("attention_distance",), attention_map=own)
    np.testing.assert_allclose(
        found["attention_distance"], expected(2)["attention_distance"], rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"^the attention map 'double' has no gain"):
        observables.observe(half, numbers.task(), ("attention_gain_rest",), attention_map=own)
