"""Chains with known answers: what is drawn, chosen and expected of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scbjax.base import StudyError
from scbjax.experiments import lags
from scbjax.fitting import em, selection
from scbjax.fitting.moments import Moments, count_pairs
from scbjax.fitting.reading import as_symbols
from scbjax.fitting.series import Series, series_of
from scbjax.sweep.study.files import load_study


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    mixture = lags.random_chain(jax.random.key(3), "mtd", (1, 5))
    grown = jax.jit(lambda key: lags.grow(key, mixture, 20, 4000))(jax.random.key(1))
    return np.asarray(grown)


@pytest.fixture(scope="module")
def counted(tokens: np.ndarray) -> tuple[Series, Moments]:
    series = series_of(as_symbols(tokens), 20)
    return series, count_pairs(series, 2)


@pytest.mark.parametrize(("model", "shape"), [("mtd", (1, 2, 2)), ("mtdg", (3, 2, 2)),
                                              ("scb", (1, 2, 2))])  # fmt: skip
def test_chains_are_clear(model: str, shape: tuple[int, ...]) -> None:
    for seed in range(20):
        mixture = lags.random_chain(jax.random.key(seed), model, (1, 15, 30))
        assert mixture.matrices.shape == shape
        np.testing.assert_allclose(mixture.weights.sum(axis=1), 1.0, rtol=1e-6)
        np.testing.assert_allclose(mixture.matrices.sum(axis=1), 1.0, rtol=1e-6)
        assert float(mixture.weights.min()) > 0.5 / (0.5 + 2 * 1.5) - 1e-6
        gap = np.abs(mixture.matrices[:, 0, 0] - mixture.matrices[:, 0, 1])
        assert float(gap.min()) >= 0.2 - 1e-6


@pytest.mark.parametrize("method", ["screening", "forward"])
def test_lags_are_ranked_as_by_the_command(method: str, counted: tuple[Series, Moments]) -> None:
    series, moments = counted
    found = np.asarray(lags.ranked(method, moments)).tolist()
    if method == "screening":
        assert found[: len(selection.screened(moments))] == selection.screened(moments)[:5]
        return
    data = em.Data(series, moments, 0.1)
    order = selection.select_lags(data, "mtd", "forward", most=5).tried
    assert tuple(sorted(found[:1])) == order[0][0]
    assert tuple(sorted(found[:2])) == order[1][0]


@pytest.mark.parametrize(
    "model", ["mtd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mtdg", "scb"))]
)
def test_bic_is_that_of_the_command(model: str, counted: tuple[Series, Moments]) -> None:
    series, moments = counted
    ranked = lags.ranked("forward", moments)
    _, bics = lags.chosen(model, ranked, series, moments)
    data = em.Data(series, moments, 0.1)
    tried = selection.select_lags(data, model, "forward", most=5).tried
    assert float(bics[1]) == pytest.approx(tried[1][1], abs=1.0)


def test_the_chance_of_a_false_lag_is_that_of_the_largest_of_chi_squares() -> None:
    random = np.random.default_rng(0)
    for numbers, false, count in ((1, 98, 1000.0), (3, 37, 300.0)):
        largest = random.chisquare(numbers, (20_000, false)).max(axis=1)
        drawn = (largest > numbers * np.log(count)).mean()
        told = lags.false_by_bic(jnp.asarray(count), jnp.asarray(float(false)), numbers)
        assert float(told) == pytest.approx(drawn, abs=0.02)
        each = stats.chi2.sf(numbers * np.log(count), numbers)
        assert float(told) == pytest.approx(1 - (1 - each) ** false, rel=1e-3)


def test_what_is_recorded_counts_wrong_lags(tokens: np.ndarray) -> None:
    true = jnp.zeros(20, bool).at[jnp.array([0, 4, 9])].set(True)  # 10 is no lag of the chain
    chain = lags.Chain(jnp.asarray(tokens), true)
    found = jax.jit(lambda own: lags.observe(own, jnp.int32(3900), "mtd", 4096))(chain)
    assert int(found["forward_missed"]) == 1
    assert int(found["forward_false"]) == 0
    assert int(found["samples"]) == 3900


def test_the_study_has_a_small_form() -> None:
    study = load_study("lags", small=True)
    assert study.experiment.name == "lags"


def test_a_context_that_is_shorter_than_a_lag_gets_a_sentence() -> None:
    with pytest.raises(StudyError, match=r"longer than task.context_length = 20"):
        load_study("lags", ["context_length=20"])
