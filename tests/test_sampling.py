"""The sampler against the exact law of the task: by enumeration, by chi-square, and exactly."""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scbjax import sampling
from scbjax.assumptions import task_from_arrays
from scbjax.parameters import Generator
from scbjax.sampling import Batch, sample_batch
from scbjax.task import Task
from scbjax.words import threefry

Array = np.ndarray[Any, np.dtype[Any]]

# Programs that run for milliseconds: optimising them costs more than it saves.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Of each chi-square test, if keys were drawn anew; they are fixed.
FALSE_ALARM = 1e-6
# Expected counts that the chi-square approximation asks for.
SMALLEST_EXPECTED = 5.0

draw = jax.jit(sample_batch, static_argnums=2)
quick_draw = quick_jit(sample_batch, static_argnums=2)
make_table = quick_jit(sampling.make_token_table)
draw_positions = jax.jit(sampling.draw_positions, static_argnums=1)


class Drawn(NamedTuple):
    """A batch in NumPy."""

    tokens: Array
    query: Array
    label: Array

    @property
    def columns(self) -> tuple[Array, ...]:
        """x_1, .., x_T, query and label, each [B]."""
        return (*(self.tokens[:, t] for t in range(self.tokens.shape[1])), self.query, self.label)


def make_task(num_tokens: int, context_length: int, sparsity: int, seed: int = 0) -> Task:
    """P with a third of its entries zero, mu far from uniform, Q sparse."""
    rng = np.random.default_rng([seed, num_tokens, context_length])
    p = rng.gamma(2.0, size=(num_tokens, num_tokens)) * rng.uniform(0.3, 2, (num_tokens, 1))
    zero = rng.random(p.shape) < 1 / 3
    zero[np.arange(num_tokens), np.arange(num_tokens) - 1] = False  # a cycle: irreducible
    p[zero] = 0
    q = np.zeros((context_length, num_tokens))
    for column in q.T:
        column[rng.choice(context_length, sparsity, replace=False)] = rng.dirichlet(
            np.full(sparsity, 3.0)
        )
    return task_from_arrays(p / p.sum(axis=0), q)


def numpy_task(task: Task) -> tuple[Array, Array, Array]:
    p, mu, q = (np.asarray(array, np.float64) for array in task)
    return p / p.sum(axis=0), mu / mu.sum(), q / q.sum(axis=0)


def to_numpy(batch: Batch) -> Drawn:
    return Drawn(*(np.asarray(array) for array in batch))


def batches(task: Task, batch_size: int, count: int, seed: int = 0) -> Iterator[Drawn]:
    for key in jax.random.split(jax.random.key(seed), count):
        yield to_numpy(draw(key, task, batch_size))


def count_cells(columns: tuple[Array, ...], shape: tuple[int, ...]) -> Array:
    cells = np.ravel_multi_index([column.ravel() for column in columns], shape)
    return np.bincount(cells, minlength=math.prod(shape)).reshape(shape)


def check_law(counts: Array, law: Array) -> None:
    """Pearson's chi-square test of counts against probabilities; zero cells must be empty."""
    assert counts.shape == law.shape
    assert law.sum() == pytest.approx(1, abs=1e-6)
    counts, expected = counts.ravel(), law.ravel() / law.sum() * counts.sum()
    assert not np.any(counts[expected == 0])
    small = expected < SMALLEST_EXPECTED
    kept = (
        np.append(counts[~small], counts[small].sum()),
        np.append(expected[~small], expected[small].sum()),
    )
    occupied = kept[1] > 0
    assert occupied.sum() >= 2
    assert stats.chisquare(kept[0][occupied], kept[1][occupied]).pvalue > FALSE_ALARM


def joint_law(task: Task) -> Array:
    """Pr(x_1, .., x_T, query, label) by enumeration: mu^(T+1) times eq. 1."""
    p, mu, q = numpy_task(task)
    size, length = len(mu), len(q)
    law = np.zeros((size,) * (length + 2))
    for context in np.ndindex(*(size,) * length):
        for query in range(size):
            label = sum(q[t, query] * p[:, context[t]] for t in range(length))
            law[(*context, query)] = np.prod(mu[list(context)]) * mu[query] * label
    return law


# The law


@pytest.mark.parametrize(
    ("num_tokens", "context_length"),
    [(3, 3), *(pytest.param(*size, marks=pytest.mark.slow) for size in ((2, 3), (17, 2)))],
)
def test_ten_million_samples_follow_the_joint_law(num_tokens: int, context_length: int) -> None:
    task = make_task(num_tokens, context_length, min(2, context_length))
    law = joint_law(task)
    counts = np.zeros(law.shape, np.int64)
    for batch in batches(task, 2**20, 10):
        counts += count_cells(batch.columns, law.shape)
    assert counts.sum() > 10**7
    check_law(counts, law)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_samples_of_a_large_vocabulary_follow_the_law(count: int) -> None:
    """N = 300: all pairs of a token and something else, and everything jointly in groups."""
    size, groups = 300, 6
    task = make_task(size, 2, 2)
    p, mu, q = numpy_task(task)
    member = np.random.default_rng(1).integers(groups, size=size)
    indicator = np.eye(groups)[:, member]
    pairs = {name: np.zeros((size, size), np.int64) for name in ("tokens", "query", "label")}
    joint = np.zeros((groups,) * 4, np.int64)
    for batch in batches(task, 2**20, count):
        first, second, query, label = batch.columns
        pairs["tokens"] += count_cells((first, second), (size, size))
        pairs["query"] += count_cells((second, query), (size, size))
        pairs["label"] += count_cells((first, label), (size, size))
        in_groups = tuple(member[column] for column in batch.columns)
        joint += count_cells(in_groups, joint.shape)
    check_law(pairs["tokens"], np.outer(mu, mu))
    check_law(pairs["query"], np.outer(mu, mu))
    from_first = q[0] @ mu
    law = mu[:, None] * (from_first * p.T + (1 - from_first) * (p @ mu)[None, :])
    check_law(pairs["label"], law)
    stepped = np.einsum("gn,nm,m,hm->hg", indicator, p, mu, indicator)  # Pr(x in h, label in g)
    masses, by_query = indicator @ mu, np.einsum("tk,k,gk->tg", q, mu, indicator)
    law = np.einsum("c,ag,b->abcg", by_query[0], stepped, masses)
    law += np.einsum("c,bg,a->abcg", by_query[1], stepped, masses)
    check_law(joint, law)


@pytest.mark.parametrize("num_tokens", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_labels_given_a_long_context_have_the_conditional_law(num_tokens: int) -> None:
    """``E[(e_label - P X q) f] = 0`` for indicators f of the query and a token of the context."""
    length = 75
    task = make_task(num_tokens, length, 5)
    p, _, q = numpy_task(task)
    count, scores = 0, np.zeros((3, num_tokens, num_tokens, num_tokens))
    variance = np.zeros_like(scores)
    for batch in batches(task, 2**15, 4):
        one_hot = np.eye(num_tokens)
        law = np.zeros((len(batch.query), num_tokens))
        for t in range(length):
            law += q[t, batch.query][:, None] * p[:, batch.tokens[:, t]].T
        residual = one_hot[batch.label] - law
        spread = law * (1 - law)
        for slot in range(3):  # the token at the query's own first, second, third position
            positions = np.argsort(-q, axis=0)[slot][batch.query]
            token = batch.tokens[np.arange(len(positions)), positions]
            cell = np.ravel_multi_index((batch.query, token), (num_tokens, num_tokens))
            for label in range(num_tokens):
                for total, values in ((scores, residual), (variance, spread)):
                    total[slot, ..., label] += np.bincount(
                        cell, values[:, label], num_tokens**2
                    ).reshape(num_tokens, num_tokens)
        count += len(batch.query)
    possible = variance > SMALLEST_EXPECTED
    z = scores[possible] / np.sqrt(variance[possible])
    assert np.mean(possible) > 0.5
    assert np.abs(z).max() < stats.norm.isf(FALSE_ALARM / 2 / z.size)


@pytest.mark.parametrize(
    ("context_length", "sparsity"),
    [*(pytest.param(*at, marks=pytest.mark.slow) for at in ((70, 9), (64, 64))), (5, 2), (1, 1)],
)
def test_positions_have_the_law_of_the_pattern(context_length: int, sparsity: int) -> None:
    task = make_task(3, context_length, sparsity)
    _, _, q = numpy_task(task)
    query = np.arange(3 * 2**17, dtype=np.int32) % 3
    seed = sampling.make_seed(jax.random.key(3))
    position = np.asarray(draw_positions(seed, 7, sampling.make_sampler(task), query))
    assert position.min() >= 0
    assert position.max() < context_length
    check_law(count_cells((position, query), q.shape), q / 3)


@pytest.mark.parametrize("count", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_positions_of_probability_zero_are_never_drawn(count: int) -> None:
    """Where rounding is at its worst: a long context, and positions of weight near 2^-24."""
    rng = np.random.default_rng(2)
    q = np.zeros((100_000, 3))
    # A distribution function that is rounded unevenly would let through one in 10^6.
    for column in q.T[:2]:
        column[rng.choice(len(q), 50, replace=False)] = rng.dirichlet(np.ones(50))
    # Near 1 the distribution function moves by whole units of 2^-24, not by the weights.
    q[5, 2], q[37::32, 2] = 1, 0.9e-7
    q /= q.sum(axis=0)
    task = Task(jnp.eye(3), jnp.full(3, 1 / 3), jnp.asarray(q, jnp.float32))
    sampler = sampling.make_sampler(task)
    query = np.arange(2**18, dtype=np.int32) % 3
    for key in jax.random.split(jax.random.key(4), count):
        drawn = np.asarray(draw_positions(sampling.make_seed(key), 0, sampler, query))
        assert np.all(q[drawn, query] > 0)
    assert np.unique(drawn[query == 2]).size > 5  # the rare ones are reached


def test_labels_of_probability_zero_are_never_drawn() -> None:
    """Exactly: their rows of the distribution function do not rise; and in a few million draws."""
    task = make_task(300, 1, 1)  # a single token in the context: the label's column is known
    p, _, _ = numpy_task(task)
    steps = np.diff(sampling.make_sampler(task).label_cdf, axis=0, prepend=0)
    assert np.all(steps >= 0)
    assert not np.any(steps[p == 0])
    for batch in batches(task, 2**20, 4, seed=1):
        assert np.all(p[batch.label, batch.tokens[:, 0]] > 0)


def test_a_deterministic_task_has_one_possible_label() -> None:
    """P a cycle, Q one position (the first, one within, the last) for each query."""
    size, length = 5, 40
    p = np.roll(np.eye(size), 1, axis=0)
    positions = np.array([0, 31, 32, 17, length - 1])
    q = np.eye(length)[:, positions]
    for batch in batches(task_from_arrays(p, q), 2**14, 2):
        source = batch.tokens[np.arange(2**14), positions[batch.query]]
        assert np.array_equal(batch.label, (source + 1) % size)


# Independence


PAIR_SHAPE = (2**15, 64)
SLOW_17 = pytest.param(17, marks=pytest.mark.slow)


def count_pairs(tokens: Array, lag: int, axis: int, num_tokens: int) -> Array:
    """Pairs that share no token: [0, lag) with [lag, 2 lag), [2 lag, 3 lag) with and so on."""
    tokens = np.moveaxis(tokens, axis, 0)
    whole = tokens[: len(tokens) // (2 * lag) * (2 * lag)]
    blocks = whole.reshape(-1, 2, lag, whole.shape[1])
    return count_cells((blocks[:, 0], blocks[:, 1]), (num_tokens, num_tokens))


@pytest.mark.parametrize("num_tokens", [2, 3, SLOW_17, pytest.param(300, marks=pytest.mark.slow)])
def test_neighbouring_tokens_are_independent(num_tokens: int) -> None:
    """At lags along the context and along the batch, half the shape included."""
    batch_size, length = PAIR_SHAPE
    task = make_task(num_tokens, length, 2)
    _, mu, _ = numpy_task(task)
    lags = [(lag, 1) for lag in (*range(1, 9), length // 2)]
    lags += [(lag, 0) for lag in (1, 2, batch_size // 2)]
    pairs = {lag: np.zeros((num_tokens, num_tokens), np.int64) for lag in lags}
    # A position and the query: fewer pairs, so fewer cells.
    classes = min(num_tokens, 17)
    folded = np.bincount(np.arange(num_tokens) % classes, mu)
    with_query = {t: np.zeros((classes, classes), np.int64) for t in (0, 31, 32, 63)}
    for batch in batches(task, batch_size, 3):
        for lag, axis in lags:
            pairs[lag, axis] += count_pairs(batch.tokens, lag, axis, num_tokens)
        for t in with_query:
            columns = batch.tokens[:, t] % classes, batch.query % classes
            with_query[t] += count_cells(columns, (classes, classes))
    for table in pairs.values():
        check_law(table, np.outer(mu, mu))
    for table in with_query.values():
        check_law(table, np.outer(folded, folded))


@pytest.mark.parametrize("num_tokens", [2, 3])
def test_runs_of_eight_tokens_are_independent(num_tokens: int) -> None:
    batch_size, length = PAIR_SHAPE
    task = make_task(num_tokens, length, 2)
    _, mu, _ = numpy_task(task)
    shape = (num_tokens,) * 8
    law = functools.reduce(np.multiply.outer, [mu] * 8)
    along, across = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for batch in batches(task, batch_size, 3, seed=2):
        along += count_cells(tuple(batch.tokens.reshape(-1, 8).T), shape)
        across += count_cells(tuple(batch.tokens.reshape(8, -1)), shape)
    check_law(along, law)
    check_law(across, law)


@pytest.mark.parametrize("num_tokens", [3, SLOW_17])
def test_successive_batches_of_a_sequence_are_independent(num_tokens: int) -> None:
    task = make_task(num_tokens, 64, 2)
    _, mu, _ = numpy_task(task)
    sampler, seed = sampling.make_sampler(task), sampling.make_seed(jax.random.key(6))

    @quick_jit
    def batch_at(index: int) -> Batch:
        return sampling.draw_batch(sampling.fold_in(seed, index), sampler, 2**14)

    for first, second in ((0, 1), (1, 2**31 - 1)):
        pairs = zip(batch_at(first), batch_at(second), strict=True)
        for left, right in list(pairs)[:2]:
            table = count_cells((np.asarray(left), np.asarray(right)), (num_tokens,) * 2)
            check_law(table, np.outer(mu, mu))


# The generator


KNOWN_WORDS = {
    20: ((0x6B200159, 0x99BA4EFE), (0x1CB996FC, 0xBB002BE7), (0xC4923A9C, 0x483DF7A0)),
    13: ((0x9D1C5EC6, 0x8BD50731), (0xFD36D048, 0x2D17272C), (0xBA3E4725, 0xF27D669E)),
}


@pytest.mark.parametrize("rounds", KNOWN_WORDS)
def test_threefry_gives_the_published_words(rounds: int) -> None:
    """Known answers of Random123 (Salmon, Moraes, Dror & Shaw 2011) for Threefry-2x32."""
    asked = (
        ((0, 0), (0, 0)),
        ((2**32 - 1,) * 2, (2**32 - 1,) * 2),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)),
    )
    for (key, counter), words in zip(asked, KNOWN_WORDS[rounds], strict=True):
        high, low = jnp.array(counter, jnp.uint32)
        got = threefry(jnp.array(key, jnp.uint32), high, low, rounds)
        assert tuple(int(word) for word in got) == words


def decode(table: Array, size: int) -> Array:
    """How many of the 2^32 words give each of the numbers below `size`, from the table alone."""
    bits = len(table).bit_length() - 1
    words = 2 ** (32 - bits)
    own, alias = table.astype(np.int64) >> bits, table.astype(np.int64) % 2**bits
    assert np.all(own < words)
    counts = np.zeros(2**bits, np.int64)
    np.add.at(counts, np.arange(2**bits), own)
    np.add.at(counts, alias, words - own)
    assert not np.any(counts[size:])
    return counts[:size]


def decode_tuples(table: Array, num_tokens: int) -> Array:
    """How many words give each tuple of tokens, an axis for each: [N] for large vocabularies."""
    if num_tokens > sampling.POSITION_MAJOR_LIMIT:
        return decode(table, num_tokens)
    bits = math.ceil(math.log2(num_tokens))
    count = (len(table).bit_length() - 1) // bits
    counts = decode(table, len(table)).reshape((2**bits,) * count)
    legal = counts[(slice(num_tokens),) * count]
    assert legal.sum() == counts.sum()
    return legal


def skewed_laws() -> Iterator[Array]:
    rng = np.random.default_rng(0)
    for size in (2, 3, 4, 10, 17, 32, 33, 256, 300, 1000):
        yield np.full(size, 1 / size)
        yield rng.dirichlet(np.full(size, 0.1)) + 1e-12  # entries from 1e-12 to nearly 1
        tiny = rng.dirichlet(np.full(size, 5.0))
        tiny[0] = 1e-6
        yield tiny
        yield np.append(np.full(size - 1, 1e-9), 1.0)  # rounds to 1 in float32


@pytest.mark.parametrize("law", list(skewed_laws()), ids=lambda law: f"{len(law)}")
def test_every_token_has_its_share_of_the_words(law: Array) -> None:
    law = (law / law.sum()).astype(np.float32)
    tuples = decode_tuples(np.asarray(make_table(law)), len(law))
    counts = tuples.sum(axis=tuple(range(1, tuples.ndim)))
    exact = law.astype(np.float64) / law.astype(np.float64).sum()
    assert counts.sum() == 2**32
    assert counts.min() >= 1
    assert np.abs(counts / 2**32 - exact).max() < 2.0**-22
    # In proportion too: but for the most probable one, a token is off by two words at most and by
    # the float32 rounding of its own probability.
    others = np.arange(len(law)) != np.argmax(law)
    assert np.all(np.abs(counts - exact * 2**32)[others] <= 2 + exact[others] * 2**32 * 2.0**-22)


@pytest.mark.parametrize("law", list(skewed_laws()), ids=lambda law: f"{len(law)}")
def test_tokens_of_one_word_are_independent(law: Array) -> None:
    """Over all 2^32 words: joint laws and marginals are those of independent draws."""
    law = (law / law.sum()).astype(np.float32)
    tuples = decode_tuples(np.asarray(make_table(law)), len(law))
    assert tuples.sum() == 2**32
    if tuples.ndim == 1:
        assert len(law) > sampling.POSITION_MAJOR_LIMIT
        return
    axes = range(tuples.ndim)
    marginals = [tuples.sum(axis=tuple(a for a in axes if a != axis)) for axis in axes]
    shares = marginals[0] / 2**32
    product = functools.reduce(np.multiply.outer, [shares] * tuples.ndim) * 2**32
    # Rounding moves a tuple by a word or two; over the tuples that hold a token it averages out.
    assert np.abs(tuples - product).max() <= 2
    for marginal in marginals[1:]:
        assert np.abs(marginal - marginals[0]).max() <= 2.0**-24 * 2**32


@pytest.mark.parametrize(("num_tokens", "shape"), [(3, (201, 7)), (20, (4099, 17)), (3, (5,))])
def test_a_token_is_a_function_of_its_place(num_tokens: int, shape: tuple[int, ...]) -> None:
    """Against a table of all words in NumPy; the second shape is drawn in several blocks."""
    table = np.asarray(make_table(np.full(num_tokens, 1 / num_tokens)))
    seed, stream = sampling.make_seed(jax.random.key(11)), 5
    drawn = jax.jit(sampling.draw_tokens, static_argnums=(1, 3, 4))(
        seed, stream, table, num_tokens, shape
    )
    cells, width = len(table).bit_length() - 1, math.prod(shape[1:])
    bits, count = (2, 6) if num_tokens == 3 else (5, 2)
    row, column = np.divmod(np.arange(math.prod(shape)), width)
    counter = (row // count * width + column).astype(np.uint32)
    words = threefry(seed.words, jnp.asarray(counter), jnp.full_like(counter, stream))[0]
    cell, rest = np.divmod(np.asarray(words, np.int64), 2 ** (32 - cells))
    number = np.where(rest < table[cell] >> cells, cell, table[cell] % 2**cells)
    token = number // 2 ** (bits * (count - 1 - row % count)) % 2**bits
    assert np.array_equal(np.asarray(drawn).ravel(), token)


@pytest.mark.parametrize("generator", get_args(Generator))
def test_words_are_turned_into_tokens_as_the_table_says(generator: Generator) -> None:
    """Rare tokens are drawn as often as their share: of 4 10^7 words, 40 and 4000 are expected."""
    for size in (3, 40):
        law = np.full(size, 1.0)
        law[:2] = size * 1e-6, size * 1e-4
        law /= law.sum()
        table = make_table(law.astype(np.float32))
        tokens = jax.jit(sampling.draw_tokens, static_argnums=(1, 3, 4))
        counts = np.zeros(size, np.int64)
        for key in jax.random.split(jax.random.key(7), 10):
            seed = sampling.make_seed(key, generator)
            drawn = tokens(seed, 0, table, size, (2**11, 2**11))
            counts += np.bincount(np.asarray(drawn).ravel(), minlength=size)
        check_law(counts, law)


# Shapes, types, keys, vmap


@pytest.mark.parametrize(
    ("num_tokens", "dtype"),
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_tokens_have_the_smallest_type_that_holds_them(num_tokens: int, dtype: str) -> None:
    assert sampling.token_dtype(num_tokens) == np.dtype(dtype)
    if num_tokens > 257:
        return
    uniform = np.full((num_tokens, num_tokens), 1 / num_tokens)
    task = task_from_arrays(uniform, np.full((33, num_tokens), 1 / 33))
    batch = quick_draw(jax.random.key(0), task, 201)
    assert batch.tokens.dtype == np.dtype(dtype)
    assert batch.tokens.shape == (201, 33)
    assert batch.query.dtype == batch.label.dtype == jnp.int32
    assert np.array_equal(np.unique(batch.tokens), np.arange(num_tokens))


@pytest.mark.parametrize("num_tokens", [3, SLOW_17])
def test_odd_shapes_are_filled(num_tokens: int) -> None:
    for batch_size, length in ((1, 1), (7, 33)):
        task = make_task(num_tokens, length, 1)
        keys = jax.random.split(jax.random.key(1), 40)
        tokens = np.stack([quick_draw(key, task, batch_size).tokens for key in keys])
        assert tokens.shape == (40, batch_size, length)
        assert np.all(np.ptp(tokens, axis=0) > 0)  # every place is drawn anew


def test_a_batch_needs_a_sample() -> None:
    with pytest.raises(ValueError, match=r"^batch_size is 0; it must be at least 1$"):
        sample_batch(jax.random.key(0), make_task(3, 4, 2), 0)


@pytest.mark.parametrize("impl", ["threefry2x32", pytest.param("rbg", marks=pytest.mark.slow)])
def test_a_batch_is_a_function_of_its_key(impl: str) -> None:
    task = make_task(3, 20, 2)
    first, again, other = (
        quick_draw(jax.random.key(seed, impl=impl), task, 16) for seed in (0, 0, 1)
    )
    for array, same, different in zip(first, again, other, strict=True):
        assert np.array_equal(array, same)
        assert not np.array_equal(array, different)


@pytest.mark.parametrize("num_tokens", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_tasks_batched_with_vmap_keep_their_own_laws(num_tokens: int) -> None:
    tasks = [make_task(num_tokens, 6, 2, seed) for seed in range(3)]
    many = jax.tree.map(lambda *arrays: jnp.stack(arrays), *tasks)
    keys = jax.random.split(jax.random.key(8), 3)
    size = 2**14
    together = quick_jit(jax.vmap(functools.partial(sample_batch, batch_size=size)))(keys, many)
    for index, task in enumerate(tasks):
        batch = to_numpy(jax.tree.map(lambda array: array[index], together))  # noqa: B023
        for array, expected in zip(batch, quick_draw(keys[index], task, size), strict=True):
            assert np.array_equal(array, expected)
        _, mu, _ = numpy_task(task)
        check_law(np.bincount(batch.tokens.ravel(), minlength=num_tokens), mu)
        check_law(np.bincount(batch.query, minlength=num_tokens), mu)
        check_law(np.bincount(batch.label, minlength=num_tokens), mu)  # since P mu = mu


@pytest.mark.slow
def test_tasks_that_share_mu_share_their_contexts() -> None:
    """Tokens and queries stay unbatched under a vmap over P and Q, else out_axes would not do."""
    task = make_task(3, 20, 2)
    many = task._replace(
        transition=jnp.stack([task.transition, jnp.eye(3)]),
        pattern=jnp.stack([task.pattern, jnp.roll(task.pattern, 1, axis=0)]),
    )
    shared = jax.vmap(
        functools.partial(sample_batch, batch_size=64),
        in_axes=(None, Task(0, None, 0)),  # type: ignore[arg-type]
        out_axes=Batch(None, None, 0),  # type: ignore[arg-type]
    )
    batch = quick_jit(shared)(jax.random.key(9), many)
    assert np.array_equal(batch.tokens, quick_draw(jax.random.key(9), task, 64).tokens)
    assert not np.array_equal(batch.label[0], batch.label[1])


def test_double_precision_tasks_are_sampled() -> None:
    jax.config.update("jax_enable_x64", True)
    try:
        task = Task(*(array.astype(jnp.float64) for array in make_task(3, 2, 2)))
        law = joint_law(task)
        batch = to_numpy(quick_draw(jax.random.key(10), task, 2**18))
    finally:
        jax.config.update("jax_enable_x64", False)
    assert (batch.tokens.dtype, batch.query.dtype) == (jnp.uint8, jnp.int32)
    check_law(count_cells(batch.columns, law.shape), law)
