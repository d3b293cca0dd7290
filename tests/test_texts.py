"""Real sequences: blocks, n-grams and bits of them, beside the host's and a plain computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scbjax.sweep
from scbjax.base import StudyError
from scbjax.experiments import texts
from scbjax.fitting import baselines, fits
from scbjax.fitting.em import Data, relaxed_steps
from scbjax.fitting.fitted import Options
from scbjax.fitting.mixtures import Mixture, free_numbers, sample
from scbjax.fitting.moments import Moments, count_pairs
from scbjax.fitting.reading import Symbols, as_symbols, read_sample
from scbjax.fitting.series import Series, window_weights
from scbjax.sweep.study.files import load_study

SIZE, LENGTH = 4, 512


@pytest.fixture(scope="module")
def symbols() -> Symbols:
    """Return symbols that tell the next one by a matrix with uneven columns."""
    random = np.random.default_rng(1)
    after = random.dirichlet(np.full(SIZE, 0.4), SIZE)
    drawn = [0]
    for _ in range(LENGTH + 400):
        drawn.append(random.choice(SIZE, p=after[drawn[-1]]))
    return as_symbols(np.array(drawn))


@pytest.fixture(scope="module")
def block(symbols: Symbols) -> texts.Block:
    fits = jnp.asarray(window_weights(symbols, texts.LONGEST))
    return texts.cut_block(jax.random.key(3), jnp.asarray(symbols.tokens), fits, LENGTH)


def random_mixture(model: str, lags: int, seed: int = 0) -> Mixture:
    random = np.random.default_rng(seed)
    queries = SIZE if model == "scb" else 1
    weights = random.dirichlet(np.ones(lags), queries).T[None]
    matrices = random.dirichlet(np.ones(SIZE), (lags if model == "mtdg" else 1, SIZE))
    return Mixture(
        jnp.asarray(weights, jnp.float32),
        jnp.asarray(np.swapaxes(matrices, 1, 2), jnp.float32),
        jnp.arange(1, lags + 1, dtype=jnp.int32),
    )


def steps(mixture: Mixture, series: Series, moments: Moments, count: int) -> Mixture:
    """EM without smoothing."""
    none = jnp.zeros(())
    return relaxed_steps(mixture, series, none, moments.mu, factor=1.6, count=count)[0]


def test_a_block_is_a_part_of_the_sequence(symbols: Symbols, block: texts.Block) -> None:
    tokens = np.asarray(block.tokens).astype(np.uint8).tobytes()
    assert tokens in symbols.tokens.tobytes()
    held = np.flatnonzero(np.asarray(block.held_out))
    assert held.tolist() == list(range(held[0], held[0] + LENGTH // 8))
    np.testing.assert_array_equal(block.learned + block.held_out, np.ones(LENGTH))


def test_blocks_and_what_is_held_out_are_anywhere(symbols: Symbols) -> None:
    fits = jnp.asarray(window_weights(symbols, texts.LONGEST))
    tokens = jnp.arange(symbols.tokens.size, dtype=jnp.int32)
    keys = jax.random.split(jax.random.key(0), 4000)
    blocks = jax.vmap(lambda key: texts.cut_block(key, tokens, fits, LENGTH))(keys)
    first, held = np.asarray(blocks.tokens[:, 0]), np.asarray(jnp.argmax(blocks.held_out, axis=1))
    for places, last in ((first, tokens.size - texts.LONGEST - LENGTH), (held, LENGTH * 7 // 8)):
        assert (places.min(), places.max()) == (0, last)
        assert places.mean() == pytest.approx(last / 2, abs=5 * last / np.sqrt(12 * 4000))


def test_no_window_goes_over_the_end_of_a_record() -> None:
    symbols = Symbols(np.zeros(LENGTH + 64, np.uint8), ("a", "b"), (0, 200))
    fits = jnp.asarray(window_weights(symbols, texts.LONGEST))
    block = texts.cut_block(jax.random.key(0), jnp.asarray(symbols.tokens), fits, LENGTH)
    told = np.asarray(block.learned + block.held_out)
    assert np.flatnonzero(told == 0).tolist() == list(range(200 - 64, 200))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_kneser_ney_is_that_of_the_host(order: int, symbols: Symbols) -> None:
    places = np.arange(2, symbols.tokens.size)
    model = baselines.count_ngrams(symbols, order, places)
    cells = baselines._keys(symbols, places, order, SIZE)
    counts = np.bincount(cells, minlength=SIZE**order).reshape((SIZE,) * order)
    law = texts.kneser_ney(jnp.asarray(counts, jnp.float32))
    told = model.law(np.arange(SIZE ** (order - 1)))
    np.testing.assert_allclose(law.reshape(-1, SIZE), told, rtol=2e-6)


def test_the_discount_of_counts_without_single_ones_is_a_half() -> None:
    law = texts.kneser_ney(jnp.array([4.0, 0.0, 2.0]))  # no count is 1
    np.testing.assert_allclose(law, [(3.5 + 1 / 3) / 6, 1 / 18, (1.5 + 1 / 3) / 6], rtol=1e-6)


@pytest.mark.parametrize("order", [1, 3])
def test_bits_of_an_ngram_are_those_of_the_host(order: int, block: texts.Block) -> None:
    own = as_symbols(np.asarray(block.tokens), [str(n) for n in range(SIZE)])
    learned, held = (
        texts.LONGEST + np.flatnonzero(np.asarray(each)) for each in (block.learned, block.held_out)
    )
    model = baselines.count_ngrams(own, order, learned)
    told = baselines.score_ngram(model, own, held)[0]
    assert float(texts.ngram_bits(block, SIZE, order)) == pytest.approx(told, rel=1e-5)


@pytest.mark.parametrize("model", ["mtd", "mtdg", "scb"])
def test_bits_are_those_of_a_plain_computation(model: str, block: texts.Block) -> None:
    lags = 5
    mixture = random_mixture(model, lags)
    weights, matrices = (np.asarray(each, np.float64) for each in mixture[:2])
    tokens = np.asarray(block.tokens)
    logs = np.zeros(LENGTH)
    for place in range(LENGTH):
        now = texts.LONGEST + place
        query = tokens[now - 1] if model == "scb" else 0
        terms = [
            weights[0, g, query] * matrices[g if model == "mtdg" else 0][tokens[now], seen]
            for g, seen in enumerate(tokens[now - lags : now][::-1])
        ]
        logs[place] = np.log2(sum(terms))
    found = texts.mean_bits(mixture, block, lags)
    for bits, chosen in zip(found, (block.learned, block.held_out), strict=True):
        assert float(bits) == pytest.approx(-logs[np.asarray(chosen) > 0].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("model", "heads"),
    [
        ("mtdg", 1),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("mtd", 2), ("scb", 1))),
    ],
)
def test_the_start_is_that_of_a_fit(model: str, heads: int, block: texts.Block) -> None:
    context = 3
    series = block.series(context)
    data = Data(series, count_pairs(series, SIZE), 10.0)
    own = Options(model=model, heads=heads, context=context, lags="all", polish=1)
    lags = jnp.arange(1, context + 1, dtype=jnp.int32)
    told = fits._start(as_symbols("ab"), data, own, lags, 0)
    found = texts.start_of(series, data.moments, model, heads)
    for one, two in zip(found, told, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


def test_em_learns(block: texts.Block) -> None:
    series = block.series(3)
    moments = count_pairs(series, SIZE)
    step = jax.jit(lambda mixture: steps(mixture, series, moments, 4))
    mixture, bits = random_mixture("mtdg", 3), []
    for _ in range(4):
        bits.append(float(texts.mean_bits(mixture, block, 3)[0]))
        mixture = step(mixture)
    assert np.all(np.diff(bits) < 0)


def test_the_gap_is_that_of_akaike() -> None:
    """Of a bigram, fitted to 448 symbols that it drew: k / (n ln 2) = 6 / (448 ln 2) bits."""
    truth = Mixture(
        jnp.ones((1, 1, 1)),
        jnp.array([[[0.6, 0.2, 0.3], [0.3, 0.5, 0.2], [0.1, 0.3, 0.5]]]),
        jnp.ones(1, jnp.int32),
    )
    length = 512
    numbers = free_numbers("mtd", 3, 1)
    start = Mixture(truth.weights, jnp.full((1, 3, 3), 1 / 3), truth.lags)

    def gap(key: jax.Array) -> jax.Array:
        first, then = jax.random.split(key)
        tokens = sample(truth, first, jnp.zeros(1, jnp.int32), length + texts.LONGEST)
        block = texts.cut_block(then, tokens, jnp.ones(tokens.shape, bool), length)
        series = block.series(1)
        fitted = steps(start, series, count_pairs(series, 3), 20)
        own, other = (jnp.stack(texts.mean_bits(each, block, 1)) for each in (fitted, truth))
        found: jax.Array = (own - other)[1] - (own - other)[0]
        return found

    gaps = np.asarray(jax.jit(jax.vmap(gap))(jax.random.split(jax.random.key(0), 2000)))
    told = numbers / (448 * np.log(2))
    error = gaps.std() / np.sqrt(gaps.size)
    assert error < 0.1 * told
    assert gaps.mean() == pytest.approx(told, abs=3 * error + 0.02 * told)


def test_samples_do_not_depend_on_files(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    with open("temperatures", "w") as file:  # noqa: PTH123 - a name that a user may have
        file.write("abab")
    assert read_sample("temperatures").tokens.size == 8759


STUDY = {
    "title": "Days",
    "question": "",
    "experiment": "texts",
    "task": {"data": "temperatures", "symbols": 8192},
    "train": {"model": "mtdg", "steps": 20, "record_every": 20},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.heads=2", "has a matrix for each lag, and no heads"),
        ("task.symbols=3000", "must be a power of two"),
        ("context_length=65", "from 1 to 64"),
        ("task.data=englsh", "english"),
    ],
)
def test_values_that_do_not_fit_get_a_sentence(change: str, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        load_study("texts", ["zip.arm=[8]", change])


def test_a_block_that_is_longer_than_the_sequence_gets_a_sentence() -> None:
    with pytest.raises(StudyError, match="temperatures has 8759 symbols"):
        scbjax.sweep.run(STUDY, set={"task.symbols": 16384}, axes={"seed": [1]}, progress=False)


@pytest.mark.slow
def test_days_have_24_hours() -> None:
    axes = {"seed": [1, 2], "context_length": [16, 32]}
    found = scbjax.sweep.run(STUDY, axes=axes, progress=False).isel(step=-1)
    assert found.main_lag.sel(context_length=32).to_numpy().tolist() == [24, 24]
    bits = found.held_out_bits
    assert (bits.sel(context_length=32) < 0.3 * bits.sel(context_length=16)).all()
