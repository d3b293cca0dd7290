"""The same step, written as scripts of this field write it.

Each peer is one trajectory with parameters V [N, N] and A that draws its own mini-batches and takes
the step of eqs. 4 to 6, in float32, on as many threads as its library takes by default; a sweep of
S trajectories is a loop over S of them. None of them may use anything of scbjax.

`NumPyPeer` and `CarefulTorch` look tokens up and sum by index, as one does who minds the time;
`PlainTorch` and `NaiveJax` write the loss down with the one-hot tensor [B, T, N] and differentiate.
`_agreement` checks that all of them take the same step.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from _library import Size, draw_tasks, settings_for, start
from _measure import Contender, say

from scbjax.paper import step_sizes
from scbjax.task import Task

if TYPE_CHECKING:
    import torch

Values: TypeAlias = npt.NDArray[np.float64]
Pair: TypeAlias = tuple[Any, Any]


class HostTask(NamedTuple):
    """P [N, N], mu [N] and Q [T, N] in NumPy."""

    transition: npt.NDArray[np.float32]
    stationary: npt.NDArray[np.float32]
    pattern: npt.NDArray[np.float32]


class HostBatch(NamedTuple):
    """Contexts [B, T], queries [B] and labels [B], int64."""

    tokens: npt.NDArray[np.int64]
    query: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]


class Rule(NamedTuple):
    """The numbers of eqs. 5 and 6: eta_V, eta_A and lambda, and the batch size."""

    rate_value: float
    rate_attention: float
    l1: float
    batch_size: int


class Peer(Protocol):
    """One trajectory of somebody else's implementation."""

    def __init__(self, task: HostTask, rule: Rule, params: Pair, seed: int) -> None:
        """Begins at the given V [N, N] and A [T, N]."""

    def draw(self) -> Any:  # noqa: ANN401 - arrays of the peer's library
        """Draws a mini-batch: contexts, queries, labels."""

    def take(self, batch: HostBatch) -> Any:  # noqa: ANN401 - arrays of the peer's library
        """Turns a mini-batch into what the peer draws."""

    def gradient(self, batch: Any) -> Pair:  # noqa: ANN401 - arrays of the peer's library
        """The mini-batch gradient at the parameters: V [N, N] and A [T, N]."""

    def step(self, batch: Any) -> None:  # noqa: ANN401 - arrays of the peer's library
        """One step of eqs. 4 to 6."""

    def params(self) -> Pair:
        """V [N, N] and A [T, N]."""

    def wait(self) -> None:
        """Returns when all that was asked for is done."""


# ------------------------------------------------------------------------------------------- NumPy


class NumPyPeer:
    """NumPy: inverse distribution functions, bincount and look-ups."""

    def __init__(self, task: HostTask, rule: Rule, params: Pair, seed: int) -> None:
        self._rule, self._mu = rule, task.stationary
        self._rng = np.random.default_rng(seed)
        self._edges = np.cumsum(task.stationary)[:-1]
        self._label_cdf = np.cumsum(task.transition, axis=0).T
        self._support = np.argsort(-task.pattern, axis=0)[: _sparsity(task.pattern)].T
        self._support_cdf = np.cumsum(np.take_along_axis(task.pattern.T, self._support, 1), axis=1)
        self._value, self._attention = params[0].copy(), params[1].copy()

    def draw(self) -> HostBatch:
        """See `Peer`."""
        size, length = self._rule.batch_size, len(self._attention)
        uniform = self._rng.random((size, length), dtype=np.float32)
        tokens = np.searchsorted(self._edges, uniform, side="right")
        query = np.searchsorted(self._edges, self._rng.random(size), side="right")
        rank = _invert_rows(self._support_cdf[query], self._rng.random(size))
        source = tokens[np.arange(size), self._support[query, rank]]
        return HostBatch(
            tokens, query, _invert_rows(self._label_cdf[source], self._rng.random(size))
        )

    def take(self, batch: HostBatch) -> HostBatch:
        """See `Peer`."""
        return batch

    def gradient(self, batch: HostBatch) -> Pair:
        """See `Peer`."""
        size, count = len(batch.query), len(self._mu)
        rows = np.arange(size)
        weights = self._attention.T[batch.query]
        cells = batch.tokens + count * rows[:, None]
        attended = np.bincount(cells.ravel(), weights.ravel(), size * count).astype(np.float32)
        attended = attended.reshape(size, count)
        error = attended @ self._value.T
        error[rows, batch.label] -= 1
        error /= size
        scores = np.take_along_axis(error @ self._value, batch.tokens, axis=1)
        # A product with the one-hot queries adds up the samples of each query.
        return error.T @ attended, scores.T @ np.eye(count, dtype=np.float32)[batch.query]

    def step(self, batch: HostBatch) -> None:
        """See `Peer`."""
        value, attention = self.gradient(batch)
        value /= self._mu
        value -= value.mean(0)
        value -= (value @ self._mu)[:, None]
        self._value -= np.float32(self._rule.rate_value) * value
        attention /= self._mu
        attention -= attention.mean(0)
        moved = self._attention - np.float32(self._rule.rate_attention) * attention
        moved = np.sign(moved) * np.maximum(np.abs(moved) - np.float32(self._rule.l1), 0)
        self._attention = moved + (1 - moved.sum(0)) / np.float32(len(moved))

    def params(self) -> Pair:
        """See `Peer`."""
        return self._value, self._attention

    def wait(self) -> None:
        """See `Peer`."""


def _sparsity(pattern: npt.NDArray[np.float32]) -> int:
    return int((pattern > 0).sum(axis=0).max())


def _invert_rows(cdf: npt.NDArray[Any], uniform: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The first entry of each row that exceeds its number."""
    passed = cdf[:, :-1] <= (uniform * cdf[:, -1])[:, None]
    return np.asarray(passed.sum(axis=1), np.int64)


# ----------------------------------------------------------------------------------------- PyTorch


class PlainTorch:
    """PyTorch as one writes it first: multinomial, the one-hot tensor and autograd."""

    def __init__(self, task: HostTask, rule: Rule, params: Pair, seed: int) -> None:
        import torch

        self._rule = rule
        torch.manual_seed(seed)
        self._transition, self._mu, self._pattern = (torch.from_numpy(array) for array in task)
        self._value, self._attention = (torch.tensor(array, requires_grad=True) for array in params)

    def draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `Peer`."""
        import torch

        size, length = self._rule.batch_size, len(self._attention)
        tokens = torch.multinomial(self._mu, size * length, replacement=True).view(size, length)
        query = torch.multinomial(self._mu, size, replacement=True)
        position = torch.multinomial(self._pattern.T[query], 1)
        source = tokens.gather(1, position)[:, 0]
        return tokens, query, torch.multinomial(self._transition.T[source], 1)[:, 0]

    def take(self, batch: HostBatch) -> tuple[torch.Tensor, ...]:
        """See `Peer`."""
        import torch

        return tuple(torch.from_numpy(array) for array in batch)

    def gradient(self, batch: tuple[torch.Tensor, ...]) -> Pair:
        """See `Peer`."""
        import torch
        from torch.nn.functional import one_hot

        tokens, query, label = batch
        count = len(self._mu)
        attended = torch.einsum(
            "btn,bt->bn", one_hot(tokens, count).float(), self._attention.T[query]
        )
        error = attended @ self._value.T - one_hot(label, count)
        mean = 0.5 * error.square().sum(1).mean()
        value, attention = torch.autograd.grad(mean, (self._value, self._attention))
        return value, attention

    def step(self, batch: tuple[torch.Tensor, ...]) -> None:
        """See `Peer`."""
        import torch

        value, attention = self.gradient(batch)
        with torch.no_grad():
            value = value / self._mu
            value = value - value.mean(0)
            self._value -= self._rule.rate_value * (value - (value @ self._mu)[:, None])
            attention = attention / self._mu
            attention = attention - attention.mean(0)
            moved = self._attention - self._rule.rate_attention * attention
            moved = moved.sign() * (moved.abs() - self._rule.l1).clamp(min=0)
            self._attention.copy_(moved + (1 - moved.sum(0)) / len(moved))

    def params(self) -> Pair:
        """See `Peer`."""
        return self._value.detach().numpy(), self._attention.detach().numpy()

    def wait(self) -> None:
        """See `Peer`."""


class CarefulTorch:
    """PyTorch by somebody who minds the time: bucketize, scatter_add and a gradient by hand.

    A is kept as [N, T], so that a query's weights are one stretch of memory, and is updated in
    place. Positions are drawn from the support of Q alone.
    """

    def __init__(self, task: HostTask, rule: Rule, params: Pair, seed: int) -> None:
        import torch

        self._rule = rule
        torch.manual_seed(seed)
        self._mu = torch.from_numpy(task.stationary)
        self._edges = torch.cumsum(self._mu, 0)[:-1].contiguous()
        self._label_cdf = torch.cumsum(torch.from_numpy(task.transition).T, 1)[:, :-1].contiguous()
        weights, self._support = torch.from_numpy(task.pattern).T.topk(_sparsity(task.pattern))
        self._support_cdf = torch.cumsum(weights, 1)[:, :-1].contiguous()
        self._value = torch.tensor(params[0])
        self._attention = torch.tensor(params[1].T.copy())

    def draw(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `Peer`."""
        import torch

        size, length = self._rule.batch_size, self._attention.shape[1]
        tokens = torch.bucketize(torch.rand(size, length), self._edges, right=True)
        query = torch.bucketize(torch.rand(size), self._edges, right=True)
        rank = torch.searchsorted(self._support_cdf[query], torch.rand(size, 1), right=True)
        source = tokens.gather(1, self._support[query].gather(1, rank))[:, 0]
        label = torch.searchsorted(self._label_cdf[source], torch.rand(size, 1), right=True)
        return tokens, query, label[:, 0]

    def take(self, batch: HostBatch) -> tuple[torch.Tensor, ...]:
        """See `Peer`."""
        import torch

        return tuple(torch.from_numpy(array) for array in batch)

    def _gradient(self, batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        tokens, query, label = batch
        size, count = len(query), len(self._mu)
        attended = torch.zeros(size, count).scatter_add_(1, tokens, self._attention[query])
        error = attended @ self._value.T
        error[torch.arange(size), label] -= 1
        error /= size
        scores = (error @ self._value).gather(1, tokens)
        attention = torch.zeros_like(self._attention).index_add_(0, query, scores)
        return error.T @ attended, attention

    def gradient(self, batch: tuple[torch.Tensor, ...]) -> Pair:
        """See `Peer`."""
        value, attention = self._gradient(batch)
        return value.numpy(), attention.T.numpy()

    def step(self, batch: tuple[torch.Tensor, ...]) -> None:
        """See `Peer`."""
        import torch.nn.functional as functional

        value, attention = self._gradient(batch)
        value /= self._mu
        value -= value.mean(0)
        self._value -= self._rule.rate_value * (value - (value @ self._mu)[:, None])
        attention /= self._mu[:, None]
        attention -= attention.mean(1, keepdim=True)
        moved = self._attention.sub_(attention, alpha=self._rule.rate_attention)
        moved = functional.softshrink(moved, self._rule.l1)
        self._attention = moved.add_((1 - moved.sum(1, keepdim=True)) / moved.shape[1])

    def params(self) -> Pair:
        """See `Peer`."""
        return self._value.numpy(), self._attention.T.numpy()

    def wait(self) -> None:
        """See `Peer`."""


# --------------------------------------------------------------------------------------- naive JAX


def _one_hot_loss(params: Pair, batch: Any) -> jax.Array:  # noqa: ANN401 - a triple of arrays
    (value, attention), (tokens, query, label) = params, batch
    count = len(value)
    attended = jnp.einsum("btn,bt->bn", jax.nn.one_hot(tokens, count), attention.T[query])
    error = attended @ value.T - jax.nn.one_hot(label, count)
    return 0.5 * jnp.mean(jnp.sum(error**2, axis=1))


def _one_hot_step(params: Pair, batch: Any, mu: jax.Array, rule: Rule) -> Pair:  # noqa: ANN401
    value, attention = jax.grad(_one_hot_loss)(params, batch)
    value = value / mu[None, :]
    value = value - jnp.mean(value, axis=0, keepdims=True)
    value = params[0] - rule.rate_value * (value - (value @ mu)[:, None])
    attention = attention / mu[None, :]
    attention = attention - jnp.mean(attention, axis=0, keepdims=True)
    moved = params[1] - rule.rate_attention * attention
    moved = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - rule.l1, 0.0)
    return value, moved + (1 - jnp.sum(moved, axis=0, keepdims=True)) / len(moved)


def _choose(key: jax.Array, shape: tuple[int, int], task: HostTask) -> Any:  # noqa: ANN401
    keys = jax.random.split(key, 4)
    count = len(task.stationary)
    tokens = jax.random.choice(keys[0], count, shape, p=task.stationary)
    query = jax.random.choice(keys[1], count, shape[:1], p=task.stationary)
    position = jax.random.categorical(keys[2], jnp.log(task.pattern.T[query]))
    source = jnp.take_along_axis(tokens, position[:, None], axis=1)[:, 0]
    return tokens, query, jax.random.categorical(keys[3], jnp.log(task.transition.T[source]))


class NaiveJax:
    """JAX as one writes it first: one-hot, jax.grad, a jitted step in a Python loop."""

    _draw = staticmethod(jax.jit(_choose, static_argnums=1))
    _gradient = staticmethod(jax.jit(jax.grad(_one_hot_loss)))
    _step = staticmethod(jax.jit(_one_hot_step))

    def __init__(self, task: HostTask, rule: Rule, params: Pair, seed: int) -> None:
        self._rule = rule
        self._task = jax.tree.map(jnp.asarray, task)
        self._key = jax.random.key(seed)
        self._params = (jnp.asarray(params[0]), jnp.asarray(params[1]))

    def draw(self) -> Any:  # noqa: ANN401 - a triple of arrays
        """See `Peer`."""
        self._key, key = jax.random.split(self._key)
        return self._draw(key, (self._rule.batch_size, len(self._params[1])), self._task)

    def take(self, batch: HostBatch) -> Any:  # noqa: ANN401 - a triple of arrays
        """See `Peer`."""
        return tuple(jnp.asarray(array.astype(np.int32)) for array in batch)

    def gradient(self, batch: Any) -> Pair:  # noqa: ANN401 - a triple of arrays
        """See `Peer`."""
        gradient: Pair = self._gradient(self._params, batch)
        return gradient

    def step(self, batch: Any) -> None:  # noqa: ANN401 - a triple of arrays
        """See `Peer`."""
        self._params = self._step(self._params, batch, self._task.stationary, self._rule)

    def params(self) -> Pair:
        """See `Peer`."""
        return self._params

    def wait(self) -> None:
        """See `Peer`."""
        jax.block_until_ready(self._params)


PEERS: Final[dict[str, type[Peer]]] = {
    "PyTorch, careful": CarefulTorch,
    "PyTorch, plain": PlainTorch,
    "NumPy": NumPyPeer,
    "JAX, naive": NaiveJax,
}


def available_peers() -> dict[str, type[Peer]]:
    """The peers whose library is installed."""
    if find_spec("torch") is not None:
        return PEERS
    say("PyTorch is not installed and is left out; the extra `bench` brings it")
    return {name: peer for name, peer in PEERS.items() if not name.startswith("PyTorch")}


# ------------------------------------------------------------------------------------ the contest


def host_tasks(size: Size) -> list[tuple[HostTask, Rule, Pair]]:
    """Task, numbers and initial parameters of every trajectory, those that this library gets."""
    settings = settings_for(size)
    tasks = draw_tasks(size)
    found = []
    for index in range(size.trajectories):
        task: Task = jax.tree.map(lambda leaf, index=index: leaf[index], tasks)
        state = start(task, settings)
        rates, l1 = step_sizes(state, task, settings)
        rule = Rule(float(rates.value), float(rates.attention), float(l1), size.batch_size)
        params = (np.array(state.params.value), np.array(state.params.attention))
        found.append((HostTask(*map(np.array, task)), rule, params))
    return found


def make_peers(peer: type[Peer], size: Size) -> list[Peer]:
    """S trajectories of a peer."""
    return [peer(*given, seed) for seed, given in enumerate(host_tasks(size))]


def contender(name: str, peer: type[Peer], size: Size, *, sample_only: bool = False) -> Contender:
    """A loop over trajectories of a peer; a unit is one step of one of them.

    One trajectory takes its share of the steps of a call before the next one does, as in a script
    that trains one after the other: what it works on stays in the cache.
    """
    peers = make_peers(peer, size)
    turn = [0]

    def run(count: int) -> None:
        batch = None
        for number in range(min(count, len(peers))):
            one = peers[(turn[0] + number) % len(peers)]
            for _ in range(number, count, len(peers)):
                batch = one.draw()
                if not sample_only:
                    one.step(batch)
        turn[0] += count
        jax.block_until_ready(batch)
        for one in peers:
            one.wait()

    notes = {"trajectories": size.trajectories}
    return Contender(name, run, size.tokens / size.trajectories, notes)
