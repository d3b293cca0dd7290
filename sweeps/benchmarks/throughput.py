"""Tokens per second of whole training steps: this library against the obvious way to write them.

A step samples a mini-batch, takes its gradient and applies the proximal update (eqs. 4 to 6). The
obvious JAX step draws tokens with `jax.random.categorical` and differentiates the one-hot loss; the
obvious PyTorch step does the same with `torch.multinomial` and autograd (only if torch is
installed). Gradients are compared before anything is timed. Speeds are those of the best of several
calls, without the first one, which compiles.

    make bench
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scbjax import Batch, Params, Settings, Task, init_params, random_task, sample_batch
from scbjax.loss import loss
from scbjax.optim import scb_proximal
from scbjax.train import advance, init

REPEATS = 3
RATE, L1 = 0.005, 1e-5  # the paper's second stage
MAX_ERROR = 1e-5  # of gradients, relative to the largest entry


class Size(NamedTuple):
    """The size of a measurement."""

    num_tokens: int
    context_length: int
    batch_size: int
    trajectories: int
    steps: int

    @property
    def tokens(self) -> int:
        """Context tokens in one call."""
        return self.context_length * self.batch_size * self.trajectories * self.steps


def naive_loss(params: Params, batch: Batch) -> jax.Array:
    """Eq. 3 with the one-hot tensor [B, T, N] written out."""
    num_tokens = params.value.shape[0]
    tokens = jax.nn.one_hot(batch.tokens, num_tokens)
    attended = jnp.einsum("btn,bt->bn", tokens, params.attention.T[batch.query])
    error = attended @ params.value.T - jax.nn.one_hot(batch.label, num_tokens)
    return 0.5 * jnp.mean(jnp.sum(error**2, axis=1))


def naive_batch(key: jax.Array, task: Task, batch_size: int) -> Batch:
    """A mini-batch drawn by `jax.random.categorical`."""
    keys = jax.random.split(key, 4)
    context_length = task.pattern.shape[0]
    log_stationary = jnp.log(task.stationary)
    tokens = jax.random.categorical(keys[0], log_stationary, shape=(batch_size, context_length))
    query = jax.random.categorical(keys[1], log_stationary, shape=(batch_size,))
    position = jax.random.categorical(keys[2], jnp.log(task.pattern.T[query]))
    source = jnp.take_along_axis(tokens, position[:, None], axis=1)[:, 0]
    label = jax.random.categorical(keys[3], jnp.log(task.transition.T[source]))
    return Batch(tokens, query, label)


def check_gradients(task: Task, size: Size) -> None:
    """Raises AssertionError unless the library's gradient is that of the one-hot loss in float64.

    In float32 the one-hot loss itself is off by 1e-4 at T = 5000 on a CPU, whose matrix products
    add up the terms one after the other.
    """
    batch = sample_batch(jax.random.key(1), task, size.batch_size)
    params = init_params(task)
    params = params._replace(attention=0.5 * params.attention + 0.5 * task.pattern)
    fast = jax.grad(loss)(params, batch)
    jax.config.update("jax_enable_x64", True)
    params = jax.tree.map(lambda array: array.astype(jnp.float64), params)
    exact = jax.tree.map(np.asarray, jax.grad(naive_loss)(params, batch))
    jax.config.update("jax_enable_x64", False)
    for ours, reference in zip(fast, exact, strict=True):
        error = float(np.max(np.abs(np.asarray(ours) - reference)) / np.max(np.abs(reference)))
        assert error < MAX_ERROR, f"gradients differ by {error:.1g}"


def library(task: Task, size: Size) -> Callable[[jax.Array], Any]:
    """All steps of all trajectories as this library runs them."""
    settings = Settings(
        size.batch_size, size.steps, record_every=size.steps, record=("batch_loss",)
    )

    def run(key: jax.Array) -> dict[str, jax.Array]:
        return advance(key, task, settings, init(key, task, settings), 0, 1)[1]

    return jax.jit(jax.vmap(run))


def naive(task: Task, size: Size) -> Callable[[jax.Array], Any]:
    """All steps of all trajectories, with the obvious sampler and loss."""
    optimizer = scb_proximal(task.stationary, RATE, RATE, L1)

    def step(carry: tuple[Params, Any], key: jax.Array) -> tuple[tuple[Params, Any], jax.Array]:
        params, state = carry
        batch = naive_batch(key, task, size.batch_size)
        value, grads = jax.value_and_grad(naive_loss)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    def run(key: jax.Array) -> jax.Array:
        params = init_params(task)
        keys = jax.random.split(key, size.steps)
        _, losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return losses

    return jax.jit(jax.vmap(run))


def torch_loop(task: Task, size: Size) -> Callable[[], None]:
    """All steps of one trajectory after the other in PyTorch, with autograd on the one-hot loss."""
    import torch

    transition, mu, pattern = (torch.from_numpy(np.array(array)) for array in task)
    count, length, samples = size.num_tokens, size.context_length, size.batch_size
    rows = torch.arange(samples)

    def step(value: torch.Tensor, attention: torch.Tensor) -> None:
        tokens = torch.multinomial(mu, samples * length, replacement=True).view(samples, length)
        query = torch.multinomial(mu, samples, replacement=True)
        position = torch.multinomial(pattern.T[query], 1)[:, 0]
        label = torch.multinomial(transition.T[tokens[rows, position]], 1)[:, 0]
        one_hot = torch.nn.functional.one_hot(tokens, count).float()
        attended = torch.einsum("btn,bt->bn", one_hot, attention.T[query])
        error = attended @ value.T - torch.nn.functional.one_hot(label, count)
        (0.5 * error.square().sum(1).mean()).backward()
        with torch.no_grad():
            gradient = value.grad / mu
            gradient -= gradient.mean(0)
            value -= RATE * (gradient - (gradient @ mu)[:, None])
            gradient = attention.grad / mu
            moved = attention - RATE * (gradient - gradient.mean(0))
            moved = moved.sign() * (moved.abs() - L1).clamp(min=0)
            attention.copy_(moved + (1 - moved.sum(0)) / length)
            value.grad = attention.grad = None

    def run() -> None:
        for _ in range(size.trajectories):
            value = mu[:, None].repeat(1, count).requires_grad_()
            attention = torch.full((length, count), 1 / length, requires_grad=True)
            for _ in range(size.steps):
                step(value, attention)

    return run


def report(name: str, call: Callable[[], object], size: Size) -> None:
    """Times a call and prints its speed; the first call, which compiles, does not count."""
    seconds = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    best = min(seconds[1:])
    speed = size.tokens / best / 1e6
    print(
        f"{name:10} {speed:8.1f} million tokens/s; first call {seconds[0]:.1f} s, then {best:.2f} s"
    )


def main() -> None:
    """Parses the size, checks, and times."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for field, default in zip(Size._fields, (3, 5000, 64, 4, 50), strict=True):
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=default)
    size = Size(**vars(parser.parse_args()))
    task = random_task(
        jax.random.key(0),
        num_tokens=size.num_tokens,
        context_length=size.context_length,
        sparsity=2,
    )
    check_gradients(task, size)
    print(f"{size}, on {jax.devices()[0].device_kind}")
    keys = jax.random.split(jax.random.key(2), size.trajectories)
    ours, obvious = library(task, size), naive(task, size)
    report("scbjax", lambda: ours(keys), size)
    report("naive JAX", lambda: obvious(keys), size)
    if find_spec("torch"):
        report("PyTorch", torch_loop(task, size), size)
    else:
        print("PyTorch is not installed; the extra `bench` brings it")


if __name__ == "__main__":
    main()
