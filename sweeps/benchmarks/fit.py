"""A step of EM of each model of `scbjax fit`, beside the same in NumPy, in symbols per second.

A million symbols of N = 27 kinds, T = 32 lags, all of them in the model, on one device: what a fit
spends its time on. NumPy has one array operation for each lag and head, looks tables up with
`take`, and adds with `bincount`. Both are given the same start, and what they give is compared
before they are timed.

Then a whole fit of a long sequence, in a process of its own: ten million symbols of an MTD of N =
27 with lags 1, 7 and 30, contexts of 100; lags are selected and weights bootstrapped as by default.
The peak is that of the whole process, with Python, JAX and the compiler.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from _measure import (
    Contender,
    Payload,
    digits,
    effort,
    in_process,
    race,
    ratio,
    run_script,
    say,
    speed,
)
from _pictures import new_figure
from matplotlib.figure import Figure

import scbjax
from scbjax.fitting import em
from scbjax.fitting.mixtures import Mixture, sample
from scbjax.fitting.reading import Symbols
from scbjax.fitting.series import Series, series_of

NUMPY: Final = ", NumPy"
MODELS: Final = (
    ("MTD", "mtd", 1),
    ("MTDg", "mtdg", 1),
    ("SCB", "scb", 1),
    ("SCB, 2 heads", "scb", 2),
)
SIZE: Final = {"symbols": 1_000_000, "num_tokens": 27, "lags": 32}
QUICK_SIZE: Final = {"symbols": 20_000, "num_tokens": 5, "lags": 4}
LONG: Final = {"symbols": 10_000_000, "num_tokens": 27, "context": 100}
QUICK_LONG: Final = {"symbols": 20_000, "num_tokens": 5, "context": 40}
TRUE_LAGS: Final = (1, 7, 30)
PIECE: Final = 10_000  # symbols of a chain; many are drawn at once
TOLERANCE: Final = 1e-4  # of the largest entry; float32 against float64


def drawn(size: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Symbols by a law that is not uniform, and that law."""
    random = np.random.default_rng(0)
    law = random.dirichlet(np.full(size["num_tokens"], 2.0))
    return random.choice(law.size, size["symbols"], p=law).astype(np.uint8), law


def start(kind: str, heads: int, size: dict[str, int]) -> Mixture:
    """A mixture to step from."""
    random, count, lags = np.random.default_rng(1), size["num_tokens"], size["lags"]
    queries = count if kind == "scb" else 1
    weights = random.dirichlet(np.ones(heads * lags), queries).T.reshape(heads, lags, queries)
    matrices = random.dirichlet(np.ones(count), (lags if kind == "mtdg" else heads, count))
    return Mixture(
        jnp.asarray(weights, jnp.float32),
        jnp.asarray(matrices.swapaxes(1, 2), jnp.float32),
        jnp.arange(1, lags + 1, dtype=jnp.int32),
    )


def numpy_step(
    weights: np.ndarray, matrices: np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A step of EM with all lags from 1 on, as one would write it in NumPy."""
    heads, lags, queries = weights.shape
    size = matrices.shape[1]
    label, query = tokens[lags:].astype(np.int64), tokens[lags - 1 : -1].astype(np.int64)

    def share(head: int, lag: int) -> tuple[np.ndarray, np.ndarray]:
        cells = label * size + tokens[lags - lag : -lag]
        matrix = matrices[lag - 1 if len(matrices) > heads else head].ravel()
        own = weights[head, lag - 1]
        return (own.take(query) if queries > 1 else own[0]) * matrix.take(cells), cells

    total = sum(share(head, lag)[0] for head in range(heads) for lag in range(1, lags + 1))
    new_weights, new_matrices = np.zeros_like(weights), np.zeros_like(matrices)
    for head in range(heads):
        for lag in range(1, lags + 1):
            part, cells = share(head, lag)
            part = part / total
            if queries > 1:
                new_weights[head, lag - 1] = np.bincount(query, part, queries)
            else:
                new_weights[head, lag - 1] = part.sum()
            place = lag - 1 if len(matrices) > heads else head
            new_matrices[place] += np.bincount(cells, part, size * size).reshape(size, size)
    return (
        new_weights / new_weights.sum(axis=(0, 1), keepdims=True),
        new_matrices / new_matrices.sum(axis=1, keepdims=True),
    )


def measure(quick: bool) -> Payload:
    """Checks, then times, a step of every model."""
    size = QUICK_SIZE if quick else SIZE
    tokens, law = drawn(size)
    symbols = Symbols(tokens, tuple(map(str, range(size["num_tokens"]))))
    series, mu = series_of(symbols, size["lags"]), jnp.asarray(law, jnp.float32)
    contenders, errors = [], {}
    for name, kind, heads in MODELS:
        mixture = start(kind, heads, size)
        plain = tuple(np.asarray(each, np.float64) for each in mixture[:2])
        errors[name] = _disagreement(name, mixture, series, mu, (*plain, tokens))
        contenders += [
            _own(name, mixture, series, mu, size["symbols"]),
            _numpy(name + NUMPY, (*plain, tokens), size["symbols"]),
        ]
    rows = race(contenders, effort(quick))
    for row in rows:
        say(f"{row['name']}: {speed(row['rate'])} million symbols/s")
    times = {name: ratio(rows, name, name + NUMPY) for name, _, _ in MODELS}
    long = in_process(Path(__file__).name, "--worker", json.dumps(QUICK_LONG if quick else LONG))
    say(
        f"{long['symbols']} symbols, context {long['context']}: {digits(long['seconds'])} s, "
        f"{long['peak_bytes'] / 2**30:.2f} GiB, lags {long['lags']}"
    )
    return {**size, "errors": errors, "rows": rows, "times_numpy": times, "long": long}


def long_sequence(size: dict[str, int]) -> np.ndarray:
    """Symbols of an MTD with lags 1, 7 and 30; of many chains, one behind the other."""
    random, count = np.random.default_rng(0), size["num_tokens"]
    matrix = random.dirichlet(np.full(count, 0.1), count).T
    mixture = Mixture(
        jnp.asarray([[[0.5], [0.3], [0.2]]], jnp.float32),
        jnp.asarray(matrix[None], jnp.float32),
        jnp.asarray(TRUE_LAGS, jnp.int32),
    )
    keys = jax.random.split(jax.random.key(0), -(-size["symbols"] // PIECE))
    begin = jnp.arange(TRUE_LAGS[-1], dtype=jnp.int32) % count
    chains = jax.vmap(lambda key: sample(mixture, key, begin, PIECE))(keys)
    return np.asarray(chains).ravel()[: size["symbols"]].astype(np.uint8)


def work(size: dict[str, int]) -> int:
    """What a process of its own does: a whole fit, and prints what it took."""
    from memory import peak_bytes

    tokens = long_sequence(size)
    before = time.perf_counter()
    found = scbjax.fit(tokens, model="mtd", context=size["context"])
    seconds = time.perf_counter() - before
    print(json.dumps({**size, "seconds": seconds, "peak_bytes": peak_bytes(), "lags": found.lags}))
    return 0


def _disagreement(
    name: str, mixture: Mixture, series: Series, mu: jax.Array, plain: tuple[Any, ...]
) -> float:
    """Largest difference after a step.

    Raises:
        ValueError: they are not the same.
    """
    own, _ = em.em_step(mixture, series, 0.0, mu)
    pairs = zip(own[:2], numpy_step(*plain), strict=True)
    error = max(float(np.max(np.abs(np.asarray(a) - b)) / np.max(b)) for a, b in pairs)
    if not error < TOLERANCE:
        raise ValueError(f"{name}: the two steps differ by {error:.1e}")
    return error


def _own(name: str, mixture: Mixture, series: Series, mu: jax.Array, work: int) -> Contender:
    def run(count: int) -> None:
        at = mixture
        for _ in range(count):
            at, _ = em.em_step(at, series, 0.0, mu)
        jax.block_until_ready(at)

    return Contender(name, run, work)


def _numpy(name: str, plain: tuple[Any, ...], work: int) -> Contender:
    def run(count: int) -> None:
        weights, matrices, tokens = plain
        for _ in range(count):
            weights, matrices = numpy_step(weights, matrices, tokens)

    return Contender(name, run, work)


def draw(payload: Payload) -> Figure:
    """How many times the speed of NumPy every model has."""
    figure, (axes,) = new_figure(1, height=2.2)
    names = list(payload["times_numpy"])
    times = [payload["times_numpy"][name] for name in names]
    axes.hlines(range(len(names)), [t["min"] for t in times], [t["max"] for t in times])
    axes.plot([t["median"] for t in times], range(len(names)), "o", markersize=4)
    axes.axvline(1.0, color="#888888", linewidth=0.8)
    axes.set(xlabel="times the speed of NumPy", xlim=(0.0, None))
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--worker", type=json.loads)
    own, rest = parser.parse_known_args()
    if own.worker:
        sys.exit(work(own.worker))
    sys.exit(run_script("fit", __doc__, measure, draw))
