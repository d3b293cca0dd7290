"""Fits of sequences: against brute force in float64, known chains, and plain n-grams."""

import csv
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scbjax
from scbjax.base import StudyError
from scbjax.fitting import baselines, bootstrap, em, mixtures, moments, selection
from scbjax.fitting.fits import fit, spectrum_of
from scbjax.fitting.fitted import Fit
from scbjax.fitting.mixtures import Mixture
from scbjax.fitting.reading import as_symbols, read_symbols
from scbjax.fitting.saving import load_fit, save_fit
from scbjax.fitting.series import series_of

CASES = [("mtd", 1), ("mtd", 2), ("mtdg", 1), ("scb", 1), ("scb", 2)]


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def random_mixture(
    kind: str, heads: int, size: int, lags: Sequence[int], seed: int = 0, concentration: float = 1.0
) -> Mixture:
    random = np.random.default_rng(seed)
    queries = size if kind == "scb" else 1
    weights = random.dirichlet(np.full(heads * len(lags), concentration), queries)
    weights = weights.T.reshape(heads, len(lags), queries)
    matrices = random.dirichlet(
        np.full(size, concentration), (len(lags) if kind == "mtdg" else heads, size)
    )
    matrices = 0.85 * matrices + 0.15 / size  # no symbol is the end of a chain
    return Mixture(
        jnp.asarray(weights), jnp.asarray(matrices.swapaxes(1, 2)), jnp.asarray(lags, jnp.int32)
    )


def strong(kind: str, lags: Sequence[int], seed: int = 0) -> Mixture:
    """Columns that are nearly ones, others for each matrix, and weights of a quarter or more."""
    mixture = random_mixture(kind, 1, 3, lags, seed)
    ones = np.stack([np.roll(np.eye(3), n, axis=0) for n in range(1, 1 + len(mixture.matrices))])
    queries = mixture.weights.shape[2]
    weights = np.stack([np.roll([0.25, 0.3, 0.45], n) for n in range(queries)], axis=1)
    weights = weights[: len(lags)] / weights[: len(lags)].sum(axis=0)
    return Mixture(
        jnp.asarray(weights[None]), 0.3 * mixture.matrices + 0.7 * jnp.asarray(ones), mixture.lags
    )


def single(mixture: Mixture) -> Mixture:
    weights, matrices = (jnp.asarray(each, jnp.float32) for each in mixture[:2])
    return Mixture(weights, matrices, mixture.lags)


def probabilities(mixture: Mixture, tokens: np.ndarray, longest: int) -> np.ndarray:
    """P(. | past) at every position from `longest` on, by the definition; NumPy, float64."""
    weights, matrices = (np.asarray(each, np.float64) for each in mixture[:2])
    heads, _, queries = weights.shape
    rows = []
    for t in range(longest, len(tokens)):
        law = np.zeros(matrices.shape[1])
        for head in range(heads):
            for place, lag in enumerate(np.asarray(mixture.lags)):
                matrix = matrices[place if mixture.kind == "mtdg" else head]
                query = tokens[t - 1] if queries > 1 else 0
                law += weights[head, place, query] * matrix[:, tokens[t - lag]]
        rows.append(law)
    return np.array(rows)


def chain(mixture: Mixture, length: int, seed: int = 0, burn: int = 200) -> np.ndarray:
    """A sequence by the definition, NumPy."""
    random = np.random.default_rng(seed)
    weights, matrices = (np.asarray(each, np.float64) for each in mixture[:2])
    lags = np.asarray(mixture.lags)
    tokens = list(random.integers(matrices.shape[1], size=int(lags[-1])))
    for _ in range(length + burn):
        query = tokens[-1] if weights.shape[2] > 1 else 0
        flat = weights[:, :, query].ravel()
        head, place = divmod(random.choice(flat.size, p=flat / flat.sum()), len(lags))
        matrix = matrices[place if mixture.kind == "mtdg" else head]
        column = matrix[:, tokens[-lags[place]]]
        tokens.append(random.choice(column.size, p=column / column.sum()))
    return np.array(tokens[-length:])


# ------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize(("kind", "heads"), CASES)
def test_scores_are_those_of_the_definition(kind: str, heads: int) -> None:
    mixture = single(random_mixture(kind, heads, 4, [1, 3, 7]))
    tokens = np.random.default_rng(1).integers(4, size=300)
    law = probabilities(mixture, tokens, 9)
    label = tokens[9:]
    told = law[np.arange(len(label)), label]
    found = mixtures.score(mixture, series_of(as_symbols(tokens, names="abcd"), 9))
    sums = [float(each.sum()) for each in found]
    brier = ((law - np.eye(4)[label]) ** 2).sum()
    hits = (law.argmax(axis=1) == label).sum()
    np.testing.assert_allclose(sums, [-np.log(told).sum(), brier, hits, len(label)], rtol=1e-5)


@pytest.mark.parametrize(("kind", "heads"), CASES)
@pytest.mark.usefixtures("float64")
def test_a_pass_gives_the_gradient_of_the_likelihood(kind: str, heads: int) -> None:
    """The shares of EM are parameters times the gradient, by automatic differentiation."""
    mixture = random_mixture(kind, heads, 3, [1, 2, 5])
    tokens = np.random.default_rng(1).integers(3, size=30)
    series = series_of(as_symbols(tokens, names="abc"), 5, dtype=np.float64)

    def likelihood(weights: jax.Array, matrices: jax.Array) -> jax.Array:
        total: Any = 0.0
        for t in range(5, len(tokens)):
            terms = [
                weights[h, g, tokens[t - 1] if kind == "scb" else 0]
                * matrices[g if kind == "mtdg" else h, tokens[t], tokens[t - int(lag)]]
                for h in range(heads)
                for g, lag in enumerate(mixture.lags)
            ]
            total = total + jnp.log(sum(terms))
        return jnp.asarray(total)

    value, grads = jax.value_and_grad(likelihood, (0, 1))(mixture.weights, mixture.matrices)
    shares, chunks = em.e_step(mixture, series)
    np.testing.assert_allclose(float(chunks.sum()), float(value), rtol=1e-12)
    np.testing.assert_allclose(shares.weights, grads[0] * mixture.weights, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(shares.matrices, grads[1] * mixture.matrices, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kind", "heads"), CASES)
@pytest.mark.parametrize("smoothing", [0.0, 2.0])
@pytest.mark.usefixtures("float64")
def test_a_step_of_em_never_lowers_what_it_raises(kind: str, heads: int, smoothing: float) -> None:
    mixture = random_mixture(kind, heads, 3, [1, 2, 4], concentration=0.5)
    tokens = chain(random_mixture(kind, heads, 3, [1, 4], seed=5), 500)
    series = series_of(as_symbols(tokens, names="abc"), 4, dtype=np.float64)
    mu = jnp.asarray(np.bincount(tokens, minlength=3) / len(tokens))
    told = []
    for _ in range(25):
        mixture, terms = em.em_step(mixture, series, smoothing, mu)
        told.append(float(terms.sum()))
        np.testing.assert_allclose(mixture.weights.sum(axis=(0, 1)), 1.0, rtol=1e-12)
        np.testing.assert_allclose(mixture.matrices.sum(axis=1), 1.0, rtol=1e-12)
    assert (np.diff(told) >= -1e-9).all()
    assert told[-1] - told[0] > 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_lengthened_steps_end_where_plain_ones_do() -> None:
    tokens = chain(random_mixture("mtd", 1, 3, [1, 3], seed=5), 2000)
    series = series_of(as_symbols(tokens, names="abc"), 4, dtype=np.float64)
    counted = moments.count_pairs(series, 3)
    data = em.Data(series, counted, 1.0)
    start = random_mixture("mtd", 1, 3, [1, 2, 3, 4])
    quick, likelihood, steps = em.run_em(start, data, 2000, 1e-12)
    plain = start
    for _ in range(4000):
        plain, _ = em.em_step(plain, series, 1.0, counted.mu)
    np.testing.assert_allclose(quick.weights, plain.weights, atol=2e-4)
    np.testing.assert_allclose(quick.matrices, plain.matrices, atol=2e-3)
    law = probabilities(quick, tokens, 4)
    told = np.log(law[np.arange(len(law)), tokens[4:]]).sum()
    assert likelihood == pytest.approx(told, abs=1e-5)
    assert steps < 1000


def test_weights_of_zero_stay_zero() -> None:
    mixture = random_mixture("mtd", 1, 3, [1, 2])
    mixture = mixture._replace(weights=jnp.array([[[1.0], [0.0]]]))
    tokens = np.random.default_rng(1).integers(3, size=100)
    series = series_of(as_symbols(tokens), 2)
    after, _ = em.em_step(mixture, series, 1.0, jnp.ones(3) / 3)
    assert after.weights.ravel().tolist() == [1.0, 0.0]


def test_a_dense_matrix_that_holds_the_truth_is_matched_in_the_limit() -> None:
    """A chain of order one: the bigram frequencies are the likeliest, and an MTD of lag 1 too."""
    truth = random_mixture("mtd", 1, 4, [1], seed=3)
    tokens = chain(truth, 20_000)
    found = fit(
        tokens, model="mtd", context=1, lags="all", smoothing=0.0, held_out=0.0, resamples=0
    )
    counts = np.zeros((4, 4))
    np.add.at(counts, (tokens[1:], tokens[:-1]), 1)
    np.testing.assert_allclose(found.mixture.matrices[0], counts / counts.sum(axis=0), atol=1e-6)
    bigram, own = found.rows[1], found.rows[-1]
    assert own.aic == pytest.approx(bigram.aic, rel=1e-6)
    assert own.parameters == bigram.parameters


# --------------------------------------------------------------------------------------- baselines


def test_an_ngram_is_that_of_the_definition() -> None:
    """Interpolated Kneser-Ney with dictionaries."""
    tokens = np.random.default_rng(0).choice(5, size=400, p=[0.5, 0.2, 0.2, 0.07, 0.03])
    symbols = as_symbols(tokens)
    model = baselines.count_ngrams(symbols, 3, np.arange(4, 300))
    grams: dict[int, dict[tuple[int, ...], int]] = {3: {}, 2: {}, 1: {}}
    for t in range(4, 300):
        key = tuple(tokens[t - 2 : t + 1])
        grams[3][key] = grams[3].get(key, 0) + 1
    for order in (2, 1):
        for key in grams[order + 1]:
            grams[order][key[1:]] = grams[order].get(key[1:], 0) + 1

    def discount(order: int) -> float:
        once, twice = (sum(c == n for c in grams[order].values()) for n in (1, 2))
        return once / (once + 2 * twice) if once else 0.5

    def law(symbol: int, history: tuple[int, ...]) -> float:
        order = len(history) + 1
        lower = 1 / 5 if order == 1 else law(symbol, history[1:])
        after = {key: c for key, c in grams[order].items() if key[:-1] == history}
        if not after:
            return lower
        cut, total = min(discount(order), 0.99), sum(after.values())
        own = max(after.get((*history, symbol), 0) - cut, 0) / total
        return float(own + cut * len(after) / total * lower)

    for first, second in itertools.product(range(5), repeat=2):
        got = model.law(np.array([first * 5 + second]))[0]
        np.testing.assert_allclose(got, [law(s, (first, second)) for s in range(5)], rtol=1e-12)
        assert got.sum() == pytest.approx(1.0)
    bits, brier, accuracy = baselines.score_ngram(model, symbols, np.arange(300, 400))
    rows = np.array([[law(s, tuple(tokens[t - 2 : t])) for s in range(5)] for t in range(300, 400)])
    label = tokens[300:]
    assert bits == pytest.approx(-np.log2(rows[np.arange(100), label]).mean())
    assert brier == pytest.approx(((rows - np.eye(5)[label]) ** 2).sum(axis=1).mean())
    assert accuracy == pytest.approx((rows.argmax(axis=1) == label).mean())


# ----------------------------------------------------------------------------------------- moments


def test_pairs_are_counted_in_each_record_alone(tmp_path: Path) -> None:
    (tmp_path / "x.fasta").write_text(">one\nAC--A\nC\n>two\nGAG\n")
    symbols = read_symbols(tmp_path / "x.fasta")
    assert symbols.starts == (0, 4)
    pairs = np.asarray(moments.count_pairs(series_of(symbols, 2), 3).pairs)
    expected = np.zeros((3, 3, 3))
    for record in ("ACAC", "GAG"):
        for t in range(2, len(record)):
            for lag in range(3):
                expected[lag, "ACG".index(record[t]), "ACG".index(record[t - lag])] += 1
    np.testing.assert_allclose(pairs, expected / 3, rtol=1e-6)


def exact_moments(mixture: Mixture, longest: int) -> np.ndarray:
    """Pairs of the stationary chain, by its transition matrix over windows; NumPy."""
    size, order = mixture.matrices.shape[-1], int(mixture.lags[-1])
    states = list(itertools.product(range(size), repeat=order))
    law = probabilities(mixture, np.array([0] * order + [0]), order)
    step = np.zeros((len(states), len(states)))
    for place, state in enumerate(states):
        law = probabilities(mixture, np.array([*state, 0]), order)[0]
        for symbol in range(size):
            step[states.index((*state[1:], symbol)), place] += law[symbol]
    values, vectors = np.linalg.eig(step)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    last = np.array([[state[-1] == n for state in states] for n in range(size)], float)
    pairs = [last @ np.linalg.matrix_power(step, g) @ (stationary[:, None] * last.T)
             for g in range(longest + 1)]  # fmt: skip
    return np.array(pairs)


@pytest.mark.parametrize("kind", ["mtd", "mtdg"])
@pytest.mark.usefixtures("float64")
def test_whitened_moments_are_the_model_where_marginal_ones_see_echoes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact moments of a chain with lags 1 and 3 give its matrices back, and nothing at lag 2."""
    truth = random_mixture(kind, 1, 3, [1, 3], seed=4, concentration=0.4)
    counted = moments.Moments(jnp.asarray(exact_moments(truth, 6)), jnp.asarray(1e6))
    found = np.asarray(moments.whitened(counted))
    monkeypatch.setattr(moments, "_DENSE", 0)
    np.testing.assert_allclose(moments.whitened(counted, iterations=400), found, atol=2e-3)
    mu = np.asarray(counted.mu)
    weights = np.asarray(truth.weights)[0, :, 0]
    expected = np.zeros((6, 3, 3))
    for place, lag in enumerate((1, 3)):
        matrix = np.asarray(truth.matrices)[place if kind == "mtdg" else 0]
        expected[lag - 1] = weights[place] * (matrix - (matrix @ mu)[:, None])
    # What is told of e~ has no part along the constant: compare on centred symbols.
    centre = np.eye(3) - mu[:, None]
    np.testing.assert_allclose(found @ centre, expected @ centre, atol=6e-3)
    marginal = np.asarray(moments.marginal(counted))
    strengths = moments.lag_strengths(jnp.asarray(marginal), counted.mu)
    assert float(strengths[1]) > 20 * float(
        moments.lag_strengths(jnp.asarray(found), counted.mu)[1]
    )


@pytest.mark.parametrize("chosen", [(), (2,), (1, 3)])
@pytest.mark.usefixtures("float64")
def test_a_conditional_test_is_that_of_a_regression(chosen: tuple[int, ...]) -> None:
    """Against residues of least squares on one-hot symbols of all windows, NumPy."""
    tokens = chain(random_mixture("mtd", 1, 3, [1, 3], seed=4), 30_000)
    series = series_of(as_symbols(tokens, names="abc"), 5, dtype=np.float64)
    counted = moments.count_pairs(series, 3)
    lags = np.ones(3, np.int32)
    lags[: len(chosen)] = chosen
    kept = np.arange(3) < len(chosen)
    found = moments.conditional_tests(counted, jnp.asarray(lags), jnp.asarray(kept))
    one_hot = np.eye(3)[tokens]
    shifted = {g: one_hot[5 - g : len(tokens) - g] - one_hot.mean(axis=0) for g in range(6)}
    for lag in range(1, 6):
        if lag in chosen:
            continue
        label, own = shifted[0], shifted[lag]
        if chosen:
            others = np.concatenate([shifted[g] for g in chosen], axis=1)
            label = label - others @ np.linalg.lstsq(others, label, rcond=None)[0]
            own = own - others @ np.linalg.lstsq(others, own, rcond=None)[0]
        cross = label.T @ own
        statistic = np.trace(
            np.diag(1 / one_hot.mean(axis=0)) @ cross @ np.linalg.pinv(own.T @ own) @ cross.T
        )
        # Pairs stand for windows: equal up to the ends of the sequence, and the ridge.
        assert float(found[0, lag - 1]) == pytest.approx(statistic, rel=0.05, abs=1.0)
        gain = np.trace(cross.T @ cross @ np.linalg.pinv(own.T @ own))
        assert float(found[1, lag - 1]) == pytest.approx(gain, rel=0.05, abs=1.0)


def test_smoothing_is_what_tells_a_pair_from_the_others() -> None:
    """Against each pair left out and told by the others, one by one."""
    tokens = chain(random_mixture("mtd", 1, 4, [1], concentration=0.5), 60)
    counted = moments.count_pairs(series_of(as_symbols(tokens, names="abcd"), 1), 4)
    mu = np.asarray(counted.mu, np.float64)

    def left_out(s: float) -> float:
        total = 0.0
        for place in range(1, len(tokens)):
            others = [(tokens[t], tokens[t - 1]) for t in range(1, len(tokens)) if t != place]
            same = [y for y, x in others if x == tokens[place - 1]]
            label = tokens[place]
            total += np.log((same.count(label) + s * mu[label]) / (len(same) + s))
        return total

    best = moments.smoothing_of(counted)
    assert all(left_out(best) >= left_out(best * factor) - 1e-6 for factor in (0.5, 0.79, 1.26, 2))
    assert 0.1 <= best <= 1e4


@pytest.mark.usefixtures("float64")
def test_descent_finds_the_least_on_the_simplex_and_with_a_penalty() -> None:
    random = np.random.default_rng(0)
    root = random.normal(size=(5, 5))
    curve, told = root @ root.T, random.uniform(size=5)
    start = jnp.full(5, 0.2)
    on_simplex = np.asarray(moments.descend(jnp.asarray(curve), jnp.asarray(told), start))
    slope = curve @ on_simplex - told
    assert on_simplex.sum() == pytest.approx(1.0)
    # Karush, Kuhn & Tucker: one slope where there is weight, no smaller one elsewhere.
    assert np.ptp(slope[on_simplex > 1e-6]) < 1e-3
    assert (slope >= slope[on_simplex > 1e-6].min() - 1e-3).all()
    sparse = np.asarray(moments.descend(jnp.asarray(curve), jnp.asarray(told), start, 0.3))
    slope = curve @ sparse - told + 0.3
    assert np.abs(slope[sparse > 1e-6]).max() < 1e-3
    assert (slope[sparse <= 1e-6] > -1e-3).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mtd", "mtdg", "scb"])
def test_moments_come_near_the_truth(kind: str) -> None:
    truth = strong(kind, [1, 2, 4])
    tokens = chain(truth, 40_000)
    found = fit(tokens, model=kind, context=4, lags="all", polish=0, resamples=0, held_out=0.0)
    # What a lag does: a matrix may take some of another's weight with a constant part of it.
    mu = np.bincount(tokens) / len(tokens)

    def effects(mixture: Mixture) -> np.ndarray:
        weights = np.asarray(mixture.weights)[0].mean(axis=1)[:, None, None]
        told: np.ndarray = weights * (
            np.asarray(mixture.matrices) @ (np.eye(3) - np.outer(mu, np.ones(3)))
        )
        return told

    expected = np.zeros((4, 3, 3))
    expected[[0, 1, 3]] = effects(truth)
    # By queries the estimator takes context and query for independent, which a chain is not.
    limit = 0.1 if kind == "scb" else 0.03
    assert np.abs(effects(found.mixture) - expected).max() < limit
    assert np.abs(expected).max() > 0.15


# ------------------------------------------------------------------------------------------- lags


@pytest.mark.parametrize("kind", ["mtd", "mtdg", "scb"])
@pytest.mark.parametrize("method", ["forward", pytest.param("bic", marks=pytest.mark.slow)])
def test_lags_of_a_chain_are_found(kind: str, method: str) -> None:
    truth = strong(kind, [1, 5, 9])
    found = fit(chain(truth, 4000), model=kind, context=12, lags=method, resamples=0, most_lags=5)
    assert found.lags == (1, 5, 9)
    assert found.tried[0][0] in {(1,), (5,), (9,)}
    best = min(bic for _, bic in found.tried)
    assert dict(found.tried)[(1, 5, 9)] == best


def test_a_symbol_that_is_seen_at_the_beginning_alone_is_no_lag() -> None:
    tokens = np.concatenate([[3], chain(strong("mtd", [1, 2]), 3000)])
    found = fit(tokens, model="mtd", context=6, resamples=0, held_out=0.0, most_lags=4)
    assert found.lags == (1, 2)


def test_screening_takes_echoes_for_lags() -> None:
    """Lag 2 is an echo of lag 1: the marginal test passes it, the conditional one does not."""
    truth = Mixture(
        jnp.ones((1, 1, 1)), jnp.array([[[0.9, 0.2], [0.1, 0.8]]]), jnp.ones(1, jnp.int32)
    )
    tokens = chain(truth, 5000)
    counted = moments.count_pairs(series_of(as_symbols(tokens), 6), 2)
    assert set(selection.screened(counted)) >= {1, 2, 3}
    tests = moments.conditional_tests(counted, jnp.ones(1, jnp.int32), jnp.ones(1, bool))
    assert (np.asarray(tests)[0, 1:] < 12.0).all()


def test_a_screen_passes_few_where_nothing_depends_on_anything() -> None:
    """One lag in a hundred sequences: of 200 sequences at most 9 have one (chance 2e-4)."""
    random = np.random.default_rng(0)
    false = 0
    for _ in range(200):
        tokens = random.choice(3, size=1000, p=[0.6, 0.3, 0.1])
        counted = moments.count_pairs(series_of(as_symbols(tokens), 16), 3)
        false += bool(selection.screened(counted))
    assert false <= 9


def test_a_penalty_brings_the_true_lags_first() -> None:
    truth = strong("mtd", [2, 7])
    counted = moments.count_pairs(series_of(as_symbols(chain(truth, 4000), "abc"), 10), 3)
    assert set(selection.by_penalty(counted)[:2]) == {2, 7}


# --------------------------------------------------------------------------------------- intervals


@pytest.mark.slow
def test_intervals_cover_at_about_their_level() -> None:
    """Of 200 chains the 90% interval of a weight covers the truth in 150 to 194."""
    truth = random_mixture("mtd", 1, 3, [1, 3], seed=8, concentration=0.5)
    truth = truth._replace(weights=jnp.array([[[0.65], [0.35]]]))
    covered = 0
    for seed in range(200):
        found = fit(
            chain(truth, 1500, seed), model="mtd", context=3, lags=(1, 3), held_out=0.0,
            smoothing=0.1, resamples=100, level=0.9, seed=seed,
        )  # fmt: skip
        low, high = found.interval[0]
        covered += low <= 0.65 <= high
    assert 150 <= covered <= 194


def test_the_name_of_a_file_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abab")
    with pytest.raises(StudyError, match=r"the name of a file; scbjax.read_symbols reads it"):
        as_symbols(str(path))


def test_a_resample_is_a_weighted_fit() -> None:
    tokens = chain(random_mixture("mtd", 1, 3, [1, 3], seed=8), 600)
    series = series_of(as_symbols(tokens, names="abc"), 3)
    mu = jnp.ones(3) / 3
    mixture = random_mixture("mtd", 1, 3, [1, 3], seed=1)
    mixture = single(mixture)
    block = 10
    times = np.random.default_rng(0).integers(0, 3, (2, -(-series.weights.shape[0] // block)))
    got = bootstrap._refit(
        mixture, series, mu, 1.0, jnp.asarray(times, jnp.float32), block=block, iterations=200
    )
    for row, weights in zip(got, times, strict=True):
        own = series._replace(
            weights=series.weights
            * np.repeat(weights, block)[: series.weights.shape[0]].astype(np.float32)
        )
        at = mixture
        for _ in range(400):
            at, _ = em.em_step(at, own, 1.0, mu)
        np.testing.assert_allclose(row, bootstrap.lag_weights(at, mu), atol=2e-3)


def test_a_resample_has_its_own_frequencies_of_queries() -> None:
    """Where every query looks at one lag alone, its weight is how often the query is asked."""
    tokens = np.random.default_rng(5).choice(3, p=[0.6, 0.3, 0.1], size=4000)
    series = series_of(as_symbols(tokens, names="abc"), 2)
    size, longest = series.weights.shape[0], series.longest
    mu = jnp.array([0.6, 0.3, 0.1])
    corners = jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]])  # [heads, lags, queries]
    at = random_mixture("scb", 1, 3, [1, 2], seed=3)._replace(weights=corners)
    times = np.random.default_rng(0).integers(0, 3, (5, -(-size // 10)))
    got = bootstrap._refit(
        at, series, mu, 1.0, jnp.asarray(times, jnp.float32), block=10, iterations=0
    )
    query = np.asarray(series.tokens)[longest - 1 : longest - 1 + size]
    drawn = np.repeat(times, 10, axis=1)[:, :size] * np.asarray(series.weights)
    whole = np.bincount(query, np.asarray(series.weights), 3)
    own = np.stack([np.bincount(query, row, 3) for row in drawn]) / whole * np.asarray(mu)
    expected = own[:, 0] / own.sum(axis=1)
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-5)
    assert np.ptp(expected) > 0.005


def test_a_long_series_is_resampled_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_MOST", 1 << 16)
    tokens = np.random.default_rng(0).integers(3, size=200_000)
    series = series_of(as_symbols(tokens), 4)
    part, share = bootstrap._part_of(series)
    kept = np.flatnonzero(np.asarray(part.weights))
    assert 0.1 < share < 0.3
    text = tokens.astype(np.uint8).tobytes()
    for place in kept[:: len(kept) // 50]:  # each window is one of the sequence
        window = np.asarray(part.tokens[place : place + 5]).astype(np.uint8).tobytes()
        assert window in text


# ----------------------------------------------------------------------------------- a whole fit


@pytest.fixture(scope="module")
def letters() -> str:
    words = ["the ", "cat ", "sat ", "on a ", "mat ", "and "]
    return "".join(words[n] for n in np.random.default_rng(0).integers(len(words), size=1500))


@pytest.fixture(scope="module")
def fitted(letters: str) -> Fit:
    found: Fit = scbjax.fit(letters, model="scb", context=8, resamples=8, most_lags=4)
    return found


def test_a_fit_tells_what_comes_next(fitted: Fit) -> None:
    law = fitted.predict_proba(["the cat s", "and the c"])
    assert law.shape == (2, len(fitted.names))
    np.testing.assert_allclose(law.sum(axis=1), 1.0, rtol=1e-5)
    tokens = np.array([fitted.names.index(c) for c in "the cat s"])
    expected = probabilities(fitted.mixture, np.append(tokens, 0), len(tokens))
    np.testing.assert_allclose(law[:1], expected, rtol=1e-4)
    assert [row.name for row in fitted.rows] == ["unigram", "bigram", "trigram", "SCB"]
    assert fitted.rows[-1].bits < fitted.rows[0].bits
    assert fitted.interval.shape == (len(fitted.lags), 2)
    assert (fitted.interval[:, 0] <= fitted.interval[:, 1]).all()


def test_positions_are_told_one_by_one_as_contexts_are(fitted: Fit, letters: str) -> None:
    text = letters[:2500]  # more than are told at a time
    told = fitted.predict_along(text)
    places = [fitted.longest, fitted.longest + 1, 1024, 1777, len(text) - 1]
    law = fitted.predict_proba([text[place - fitted.longest : place] for place in places])
    at = np.searchsorted(told.positions, places)
    np.testing.assert_array_equal(told.positions, np.arange(fitted.longest, len(text)))
    assert [told.symbols[n] for n in at] == [text[place] for place in places]
    came = [fitted.names.index(text[place]) for place in places]
    np.testing.assert_allclose(told.probabilities[at], law[np.arange(5), came], rtol=1e-5)
    np.testing.assert_allclose(told.highest[at], law.max(axis=1), rtol=1e-5)
    assert [told.likeliest[n] for n in at] == [fitted.names[n] for n in law.argmax(axis=1)]
    bits = -np.log2(told.probabilities).mean()
    assert bits == pytest.approx(fitted.score(text).bits, rel=1e-5)


def test_nothing_is_told_across_the_end_of_a_record(fitted: Fit, letters: str) -> None:
    own = as_symbols(letters[:60])
    parts = dataclasses.replace(own, starts=(0, 25))
    longest = fitted.longest
    expected = [*range(longest, 25), *range(25 + longest, 60)]
    assert fitted.predict_along(parts).positions.tolist() == expected


def test_a_unigram_is_that_of_the_fit(fitted: Fit, letters: str) -> None:
    text = letters[:400]
    rest = text[fitted.longest :]
    mu = dict(zip(fitted.names, np.asarray(fitted.mu, np.float64), strict=True))
    loss = -sum(math.log(mu[c]) for c in rest)
    row = fitted.unigram(text)
    assert row.name == "unigram"
    assert row.bits == pytest.approx(loss / len(rest) / math.log(2), rel=1e-5)
    free = len(fitted.names) - 1
    assert row.aic == pytest.approx(2 * loss + 2 * free, rel=1e-5)
    assert row.bic == pytest.approx(2 * loss + free * math.log(len(rest)), rel=1e-5)


def test_a_saved_fit_is_the_fit(fitted: Fit, tmp_path: Path) -> None:
    save_fit(fitted, tmp_path / "fit.nc")
    again = load_fit(tmp_path / "fit.nc")
    assert again.rows == fitted.rows
    assert again.names == fitted.names
    assert again.tried == fitted.tried
    assert again.options == fitted.options
    assert again.sample(30, seed=3) == fitted.sample(30, seed=3)
    for own, other in zip(fitted.mixture, again.mixture, strict=True):
        np.testing.assert_array_equal(own, other)


def test_other_data_are_told_by_the_names_of_symbols(fitted: Fit) -> None:
    """Whatever numbers a file of its own gives them."""
    few = [name for name in fitted.names if name not in {"a", "b"}]
    text = [few[n] for n in np.random.default_rng(0).integers(len(few), size=400)]
    own = as_symbols(text)
    assert own.names != fitted.names
    assert fitted.score(own) == fitted.score(text)
    strange = as_symbols([*text, "ZZ"])
    with pytest.raises(StudyError, match="the data has 'ZZ', which the fit does not know"):
        fitted.score(strange)


def test_samples_have_the_probabilities_of_the_model() -> None:
    truth = random_mixture("scb", 1, 3, [1, 2], seed=3)
    drawn = np.asarray(mixtures.sample(truth, jax.random.key(0), jnp.array([0, 1]), 20_000))
    law = probabilities(truth, drawn, 2)
    # Of each symbol as many as were told, to five deviations.
    expected, spread = law.sum(axis=0), np.sqrt((law * (1 - law)).sum(axis=0))
    assert (np.abs(np.bincount(drawn[2:], minlength=3) - expected) < 5 * spread).all()
    told = -np.log(law[np.arange(len(law)), drawn[2:]]).mean()
    entropy = -(law * np.log(law)).sum(axis=1).mean()
    assert told == pytest.approx(entropy, abs=0.02)


def test_scores_of_what_was_held_out_can_be_had_again(letters: str) -> None:
    found = fit(letters, model="mtdg", context=5, lags=(1, 2, 5), resamples=0)
    size = len(letters)
    again = found.score(letters[size - round(0.1 * size) - 5 :])
    assert again.bits == pytest.approx(found.rows[-1].bits, rel=1e-5)


def test_steps_of_the_learner_are_a_start(letters: str) -> None:
    found = fit(letters, context=4, lags="all", start="descent", polish=0, resamples=0)
    assert found.rows[-1].brier < found.rows[0].brier  # what its steps lower


@pytest.mark.slow
def test_a_spectrum_tells_one_matrix_from_several() -> None:
    shares = []
    for truth in (strong("mtd", [1, 2, 4]), strong("mtdg", [1, 2, 4])):
        symbols = as_symbols(chain(truth, 30_000), names="abc")
        shares.append(spectrum_of(moments.count_pairs(series_of(symbols, 6), 3))[0])
    assert shares[0] > 0.97
    assert shares[1] < 0.9


def test_ten_million_symbols_are_not_kept_at_all_lags() -> None:
    """What a pass needs does not grow with the number of lags times that of symbols."""
    series = jax.eval_shape(lambda: (jnp.zeros((1 << 20) + 100, jnp.uint8), jnp.zeros(1 << 20)))
    mixture = random_mixture("mtd", 1, 27, list(range(1, 101)))
    mixture = single(mixture)
    from scbjax.fitting.series import Series

    compiled = em.e_step.lower(mixture, Series(*series)).compile()
    needed: Any = compiled.memory_analysis()
    assert needed.temp_size_in_bytes < 16 << 20


# ---------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("name", "text", "kind", "options", "expected"),
    [
        ("a.txt", "abca", None, {}, (["a", "b", "c"], [0, 1, 2, 0])),
        ("a.txt", "\ufeffA-b b", "letters", {}, ([" ", "a", "b"], [1, 0, 2, 0, 2])),
        ("a.txt", "To be, or to be!", "words", {}, (["be", "or", "to"], [2, 0, 1, 2, 0])),
        ("a.csv", "no,sky\n1,sun\n2,rain\n", None, {"column": "sky"}, (["rain", "sun"], [1, 0])),
        ("a.csv", "day;sky\n1;sun\n2;rain\n", None, {"column": "2"}, (["rain", "sun"], [1, 0])),
        ("a.fa", ">x\nacg\n>y\nta\n", "codons", {"top": 1}, None),
        ("a.txt", "aabbc", None, {"top": 2}, (["a", "b", "<other>"], [0, 0, 1, 1, 2])),
    ],
)  # fmt: skip
def test_files_are_read(
    tmp_path: Path, name: str, text: str, kind: str, options: dict[str, Any], expected: object
) -> None:
    (tmp_path / name).write_text(text)
    if expected is None:  # one codon only
        with pytest.raises(StudyError, match="one symbol only"):
            read_symbols(tmp_path / name, kind, **options)
        return
    found = read_symbols(tmp_path / name, kind, **options)
    assert (list(found.names), found.tokens.tolist()) == expected


def test_numbers_of_a_column_become_classes(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=1000)
    (tmp_path / "t.csv").write_text("t\n" + "\n".join(map(str, numbers)))
    found = read_symbols(tmp_path / "t.csv", classes=4)
    assert np.bincount(found.tokens).tolist() == [250, 250, 250, 250]
    assert (np.diff([numbers[found.tokens == n].max() for n in range(4)]) > 0).all()


def test_other_numbers_are_cut_at_the_bounds_of_a_fit(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("t\n1\n2\n3\n4\n5\n6\n")
    two.write_text("t\n-7\n2.9\n3\n100\n4.5\n")
    first = read_symbols(one, classes=3)
    low, high = (float(name.split()[-1]) for name in first.names[:2])
    assert first.names == (f"0: below {low:g}", f"1: {low:g} to {high:g}", f"2: from {high:g}")
    second = read_symbols(two, names=first.names)
    expected = [int(x >= low) + int(x >= high) for x in (-7, 2.9, 3, 100, 4.5)]
    assert (second.names, second.tokens.tolist()) == (first.names, expected)


def test_numbers_are_contexts_of_a_fit_of_classes() -> None:
    series = np.tile(["0: below 3", "1: from 3"], 200).tolist()
    found = fit(series, model="mtd", context=2, lags=(1,), resamples=0)
    by_number, by_name = found.predict_proba([["2.5", "7"], ["0: below 3", "1: from 3"]])
    np.testing.assert_array_equal(by_number, by_name)
    assert found.names[int(by_name.argmax())] == "0: below 3"
    with pytest.raises(StudyError, match="'x' in row 2 is no number"):
        found.predict_proba([["x", "7"]])


def test_bounds_that_are_near_each_other_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("t\n" + "\n".join(f"1234567.{n}" for n in range(10)))
    assert np.bincount(read_symbols(path, classes=5).tokens).tolist() == [2] * 5


def test_nothing_is_told_across_an_empty_cell(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,x\n2,y\n3,\n4,x\n5,\n6,\n7,y\n8,y\n")
    found = read_symbols(path, column="b")
    assert (found.names, found.tokens.tolist(), found.starts) == (
        ("x", "y"),
        [0, 1, 0, 1, 1],
        (0, 2, 3),
    )
    path.write_text("b\nx\n\ny\nx\n\n")  # the only column
    assert read_symbols(path).starts == (0, 1)
    path.write_text("a,b\nu,x\n\nu,y\n")
    assert read_symbols(path, column="b").starts == (0,)
    path.write_text("a,b\nu,1\nu,\nu,3\nu,2\n")
    assert read_symbols(path, column="b", classes=2).starts == (0, 1)


BAD = [
    ("nope.txt", None, {}, "no file"),
    ("empty.txt", "", {}, "is empty"),
    ("one.txt", "aaaa", {}, "one symbol only, 'a'"),
    ("latin.txt", b"caf\xe9", {}, "not text in UTF-8: byte 3"),
    ("t.csv", "a,b\n1,2\n", {}, "has 2 columns; name one: a, b"),
    ("t.csv", "temp,b\n1,2\n", {"column": "tmp"}, "did you mean 'temp'"),
    ("t.csv", "a\nx\ny\n", {"classes": 2}, "'x' in row 2 is no number"),
    ("t.csv", "a,b\n1,2\n3\n", {"column": "b"}, "row 3 has no column 'b'"),
    ("t.csv", "temperature,b\n1,2\n", {"column": "temp"}, "did you mean 'temperature'"),
    (
        "t.csv",
        "day\n" + "".join(f"{n}\n" for n in range(40)),
        {},
        "all 40 rows of the column differ",
    ),
    ("a.txt", "abc", {"kind": "leters"}, "did you mean 'letters'"),
    ("a.txt", "abc", {"column": "x"}, "column = 'x' has no meaning for characters"),
    ("a.npy", b"no", {}, "not a file of one array"),
    ("a.txt", "abz", {"names": ["a", "b"]}, "has 'z', which the fit does not know"),
]


@pytest.mark.parametrize(("name", "content", "options", "sentence"), BAD)
def test_what_cannot_be_read_gets_a_sentence(
    tmp_path: Path, name: str, content: str | bytes | None, options: dict[str, Any], sentence: str
) -> None:
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
    with pytest.raises(StudyError, match=sentence) as caught:
        read_symbols(tmp_path / name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model": "mtgd"}, "model = 'mtgd' is not known; did you mean 'mtd'"),
        ({"contxt": 3}, "no option is called 'contxt'; did you mean 'context'"),
        ({"context": 2000}, "context = 2000; it must be an integer between 1 and 1000"),
        ({"heads": 2, "model": "mtdg"}, "a matrix for each lag"),
        ({"lags": (1, 40)}, "lags has 40; it must be between 1 and context = 32"),
        ({"lags": "forwrd"}, "did you mean 'forward'"),
        ({"held_out": math.nan}, "held_out = nan"),
        ({"start": "descent"}, "lags = 'all'"),
    ],
)
def test_bad_options_get_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        fit("abcabcabc" * 10, **options)


def test_a_sequence_shorter_than_the_context_gets_a_sentence() -> None:
    with pytest.raises(StudyError, match="no window of 32 symbols"):
        fit("abcabc")


def test_contexts_that_do_not_fit_get_a_sentence(fitted: Fit) -> None:
    with pytest.raises(StudyError, match="the context has 'Z', which the fit does not know"):
        fitted.predict_proba(["the cat saZ"])
    short = "e"[: max(0, fitted.longest - 1)]
    with pytest.raises(StudyError, match=r"is empty|the fit needs"):
        fitted.predict_proba([short])


# ------------------------------------------------------------------------------------- the command


def run(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    from scbjax.cli import main

    status = main([str(argument) for argument in arguments])
    return status, capsys.readouterr()


def test_the_command_fits_predicts_samples_and_scores(
    tmp_path: Path, letters: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "song.txt", tmp_path / "fits" / "song.nc"
    text.write_text(letters)
    arguments = ["fit", text, "--context", 6, "--most-lags", 3, "--resamples", 4, "--out", out]
    status, said = run(arguments, capsys)
    assert status == 0
    assert "SCB" in said.out
    assert "trigram" in said.out
    assert out.is_file()
    assert out.with_suffix(".png").is_file()
    assert run(arguments, capsys)[0] == 2  # nothing is overwritten unasked
    status, said = run(["predict", out, "the cat", "--top", 2], capsys)
    assert status == 0
    assert len(said.out.splitlines()) == 3
    status, said = run(["predict", out, "the cat", "on a mat", "--top", 2], capsys)
    assert [line.split()[0] for line in said.out.splitlines()] == [
        "after",
        *2 * ["the"],
        *2 * ["on"],
    ]
    status, said = run(["predict", out, "--file", text, "--top", 1], capsys)
    at_the_end = said.out
    assert run(["predict", out, letters, "--top", 1], capsys)[1].out == at_the_end
    table = tmp_path / "told.csv"
    status, said = run(["predict", out, "--file", text, "--out", table], capsys)
    assert status == 0
    longest = load_fit(out).longest
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert [row["symbol"] for row in rows] == list(letters[longest:])
    assert run(["predict", out, "--file", text, "--out", table], capsys)[0] == 2  # is there already
    status, said = run(["sample", out, "--length", 12, "--start", "the cat"], capsys)
    assert status == 0
    assert len(said.out.rstrip("\n")) == 12
    status, said = run(["score", out, text], capsys)
    assert status == 0
    assert "bits" in said.out
    assert "unigram" in said.out
    for wrong in (
        ["predict", Path(tmp_path, "no.nc"), "a"],
        ["predict", out],
        ["predict", out, "the cat", "--file", text],
        ["predict", out, "the cat", "--column", "x"],
        ["predict", out, "--file", text, "--out", tmp_path / "told.txt"],
        ["fit", text, "--lags", "1,99"],
    ):
        status, said = run(wrong, capsys)
        assert (status, said.err.count("\n")) == (2, 1)
