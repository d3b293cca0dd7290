"""The loss and gradient of every learner, beside the same in plain JAX, in tokens per second.

At T = 1000, B = 64 and N in {3, 10, 64}, for 4 trajectories under `vmap` on one device: learners of
the experiments beyond the paper, the linear one, and each of them with one-hot tokens of shape [B,
T, N], einsum and autodiff. A step moves the parameters against the gradient; batches are drawn
beforehand and taken in turns. Losses and gradients of the two are compared before they are timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _library import SPARSITY, Size
from _measure import Contender, Payload, effort, race, ratio, run_script, say, speed
from _pictures import new_figure
from _plain import (
    Loss,
    behind,
    embedded,
    entmax15,
    mlp_behind,
    relu,
    several_heads,
    softmax,
    sparsemax,
    two_layers,
    two_levels,
)
from matplotlib.figure import Figure

import scbjax
from scbjax.experiments import (
    embeddings,
    hierarchy,
    hops_model,
    maps,
    multihead_model,
)
from scbjax.sampling import draw_batch, draw_step, fold_in, make_sampler, make_seed

LINEAR: Final = "linear"
PLAIN: Final = ", plain JAX"
BATCHES: Final = 4  # drawn beforehand
HEADS: Final = 4
BLOCK: Final = 10  # positions; divides T
TINY: Final = 1e-6  # of the parameters, so that what is timed does not run away
TOLERANCE: Final = 2e-4  # of the largest entry; float32 against float64

SIZES: Final = tuple(Size(n, 1000, 64, 4) for n in (3, 10, 64))
QUICK_SIZES: Final = (Size(3, 40, 8, 2), Size(10, 40, 8, 2))


class Learner(NamedTuple):
    """A learner as the library has it, and in plain JAX.

    Attributes:
        name: what it is called.
        params: (key, task) to parameters, away from the start.
        batches: (key, task, batch size) to a batch for the library and the same one for plain JAX.
        own: loss of parameters and a batch.
        plain: the same in plain JAX.
    """

    name: str
    params: Callable[[jax.Array, Any], Any]
    batches: Callable[[jax.Array, Any, int], tuple[Any, Any]]
    own: Loss
    plain: Loss


def scb_batches(
    key: jax.Array, task: scbjax.Task, batch_size: int, *, packed: bool = True
) -> tuple[Any, Any]:
    """A batch of the SCB as the library's loss takes it, packed where it can be, and unpacked."""
    sampler, words = make_sampler(task), fold_in(make_seed(key), 0)
    plain = draw_batch(words, sampler, batch_size)
    return (draw_step(words, sampler, batch_size) if packed else plain), plain


def moved(params: Any, key: jax.Array, length: int) -> Any:  # noqa: ANN401 - a pytree
    """Parameters away from a start, so that sparse maps have some zeros and not only those."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    sizes = [0.3 * jnp.std(leaf) + 0.1 / length for leaf in leaves]
    noise = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    both = zip(leaves, sizes, noise, strict=True)
    return jax.tree.unflatten(tree, [leaf + size * more for leaf, size, more in both])


def mapped(name: str, kind: str, plain: Loss, alpha: float = 1.5, path: str = "linear") -> Learner:
    """A learner of the experiment `maps`."""
    model = maps.model_of({"attention_map": kind, "value_path": path, "width": 64})
    values = {"alpha": jnp.float32(alpha)}

    def params(key: jax.Array, task: scbjax.Task) -> Any:  # noqa: ANN401 - a pytree
        return moved(model.init(key, task), key, task.context_length)

    def own(params: Any, batch: Any) -> jax.Array:  # noqa: ANN401 - the learner's own
        return model.loss(params, batch, values)

    return Learner(name, params, partial(scb_batches, packed=path == "linear"), own, plain)


def own_start(module: Any, static: dict[str, Any], values: dict[str, float]) -> Callable[..., Any]:  # noqa: ANN401 - a module
    """Parameters of a module's model, moved away from its start."""

    def params(key: jax.Array, task: scbjax.Task) -> Any:  # noqa: ANN401 - a pytree
        sizes = {"embedding_dim": max(2, task.num_tokens // 2)}
        start = module.model_of({**sizes, **static}).init(key, task, values)
        return moved(start, key, task.context_length)

    return params


def head_params(key: jax.Array, task: scbjax.Task) -> scbjax.Params:
    """V [H, N, N] and A [H, T, N] of several heads."""
    one = scbjax.init_params(task)
    start = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], HEADS, axis=0) / HEADS, one)
    params: scbjax.Params = moved(start, key, task.context_length)
    return params


def hop_params(key: jax.Array, task: scbjax.Task) -> hops_model.HopParams:
    """V, A_1 and A_2 of two layers."""
    one = scbjax.init_params(task)
    start = hops_model.HopParams(one.value, one.attention, one.attention)
    params: hops_model.HopParams = moved(start, key, task.context_length)
    return params


def hop_batches(key: jax.Array, task: scbjax.Task, batch_size: int) -> tuple[Any, Any]:
    """A batch of two look-ups, by the same pattern."""
    sampler = make_sampler(task)
    batch = hops_model.sample_hops(fold_in(make_seed(key), 0), (sampler, sampler), batch_size)
    return batch, batch


def hierarchy_loss(params: Any, batch: Any) -> jax.Array:  # noqa: ANN401 - the learner's own
    """That of the two-level learner."""
    return hierarchy.model_of({"attention": "two_level", "block_length": BLOCK}).loss(params, batch)


LEARNERS: Final = (
    mapped(LINEAR, "linear", behind(lambda parameter: parameter)),
    mapped("softmax", "softmax", behind(softmax)),
    mapped("entmax 1.5", "entmax", behind(entmax15)),
    mapped("sparsemax", "sparsemax", behind(sparsemax)),
    mapped("ReLU", "relu", behind(relu)),
    mapped("softmax, MLP", "softmax", mlp_behind(softmax), path="mlp"),
    Learner(
        "embeddings, d = N/2",
        own_start(embeddings, {"embedding": "random"}, {"correlation": 0.0}),
        scb_batches,
        embeddings.embedded_loss,
        embedded,
    ),
    Learner(
        f"{HEADS} heads",
        head_params,
        partial(scb_batches, packed=False),
        multihead_model.heads_loss,
        several_heads,
    ),
    Learner(
        f"blocks of {BLOCK}",
        own_start(hierarchy, {"attention": "two_level", "block_length": BLOCK}, {"theta": 0.02}),
        scb_batches,
        hierarchy_loss,
        two_levels,
    ),
    Learner("two layers, two look-ups", hop_params, hop_batches, hops_model.hop_loss, two_layers),
)


def measure(quick: bool) -> Payload:
    """Checks, then times, every learner at every size."""
    return {"sizes": [_measure_size(size, quick) for size in (QUICK_SIZES if quick else SIZES)]}


def _measure_size(size: Size, quick: bool) -> Payload:
    errors, contenders = {}, []
    for learner in LEARNERS:
        params, batches = _drawn(learner, size)
        errors[learner.name] = _disagreement(learner, params, batches)
        contenders.append(_contender(learner.name, learner.own, params, batches[0], size))
        plain = _contender(learner.name + PLAIN, learner.plain, params, batches[1], size)
        contenders.append(plain)
    rows = race(contenders, effort(quick))
    for row in rows:
        say(f"N = {size.num_tokens}, {row['name']}: {speed(row['rate'])} million tokens/s")
    names = [learner.name for learner in LEARNERS]
    return {
        **size._asdict(),
        "errors": errors,
        "rows": rows,
        "times_plain": {name: ratio(rows, name, name + PLAIN) for name in names},
        "times_linear": {name: ratio(rows, name, LINEAR) for name in names},
    }


def _drawn(learner: Learner, size: Size) -> tuple[Any, tuple[Any, Any]]:
    """Parameters [S, ...] and, for both losses, batches [BATCHES, S, ...]."""

    def draw(key: jax.Array) -> tuple[Any, Any]:
        task_key, key = jax.random.split(key)
        task = scbjax.random_task(
            task_key,
            num_tokens=size.num_tokens,
            context_length=size.context_length,
            sparsity=SPARSITY,
        )
        keys = jax.random.split(key, BATCHES)
        drawn = jax.vmap(lambda k: learner.batches(k, task, size.batch_size))(keys)
        return learner.params(key, task), drawn

    keys = jax.random.split(jax.random.key(0), size.trajectories)
    params, batches = jax.jit(jax.vmap(draw, out_axes=(0, 1)))(keys)
    return params, batches


def _disagreement(learner: Learner, params: Any, batches: tuple[Any, Any]) -> float:  # noqa: ANN401
    """Largest difference of loss and gradient, relative to the largest entry.

    The plain one is computed in double precision: sums of squares in the closed form of entmax lose
    more digits in single precision than what is compared.

    Raises:
        ValueError: they are not the same.
    """
    first, second = (jax.tree.map(lambda x: x[0], batch) for batch in batches)
    found = jax.jit(jax.vmap(jax.value_and_grad(learner.own)))(params, first)
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        expected = jax.jit(jax.vmap(jax.value_and_grad(learner.plain)))(exact, second)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    error = max(
        float(np.max(np.abs(own - plain)) / max(np.max(np.abs(plain)), 1e-12))
        for own, plain in ((np.asarray(one), np.asarray(two)) for one, two in pairs)
    )
    if not error < TOLERANCE:
        raise ValueError(f"{learner.name}: the two losses differ by {error:.1e}")
    return error


def _contender(name: str, loss: Loss, params: Any, batches: Any, size: Size) -> Contender:  # noqa: ANN401
    """Steps against the gradient, as many as it is asked for, batches in turns."""

    @jax.jit
    def steps(params: Any, batches: Any, count: int) -> Any:  # noqa: ANN401
        def step(index: jax.Array, params: Any) -> Any:  # noqa: ANN401
            batch = jax.tree.map(lambda x: x[index % BATCHES], batches)
            grads = jax.vmap(jax.grad(loss))(params, batch)
            return jax.tree.map(lambda x, g: x - TINY * g, params, grads)

        return jax.lax.fori_loop(0, count, step, params)

    return Contender(name, lambda count: jax.block_until_ready(steps(params, batches, count)),
                     size.tokens)  # fmt: skip


def draw(payload: Payload) -> Figure:
    """How many times the speed of plain JAX every learner has, and how many of the linear one's."""
    figure, panels = new_figure(2, height=2.9)
    names = list(payload["sizes"][0]["times_plain"])
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    for axes, key, label in zip(
        panels,
        ("times_plain", "times_linear"),
        ("times the speed of plain JAX", "times the speed of the linear learner"),
        strict=True,
    ):
        for place, size in enumerate(payload["sizes"]):
            shift = (place - (len(payload["sizes"]) - 1) / 2) * 0.22
            at = np.arange(len(names)) + shift
            ratios = [size[key][name] for name in names]
            axes.hlines(
                at, [r["min"] for r in ratios], [r["max"] for r in ratios], color=colours[place]
            )
            axes.plot(
                [r["median"] for r in ratios], at, "o", markersize=4, color=colours[place],
                label=f"N = {size['num_tokens']}",
            )  # fmt: skip
        axes.set(xscale="log", xlabel=label)
        low, high = axes.get_xlim()
        ticks = [x for x in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0) if low <= x <= high]
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axes.minorticks_off()
        axes.axvline(1.0, color="#888888", linewidth=0.8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


if __name__ == "__main__":
    sys.exit(run_script("learners", __doc__, measure, draw))
