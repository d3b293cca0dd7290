"""Sources: windows of a sequence against counting, and the SCB as a source."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbjax.losses import loss
from scbjax.model import Params
from scbjax.sampling import check_batch
from scbjax.sources import Text, held_out_loss, sample_windows, scb_source, windows
from scbjax.task import Task

LENGTH = 5


def counting(size: int = 60, **options: Any) -> Text:  # noqa: ANN401 - as `windows`
    """A sequence in which every token says where it stands."""
    options = {"context_length": LENGTH, "held_out": 0.25, **options}
    source = windows(np.arange(size), **options)
    text: Text = source.draw(jax.random.key(0))
    return text


@pytest.mark.parametrize("query_first", [False, True])
@pytest.mark.parametrize("held_out", [False, True])
def test_a_window_is_neighbours_of_the_sequence(query_first: bool, held_out: bool) -> None:
    text = counting(query_first=query_first)
    batch = sample_windows(jax.random.key(1), text, 200, held_out=held_out)
    check_batch(batch, 60, LENGTH)
    tokens, query, label = (np.asarray(array, int) for array in batch)
    np.testing.assert_array_equal(label, query + 1)
    if query_first:
        np.testing.assert_array_equal(tokens[:, 0], query)
        tokens = tokens[:, 1:]
    behind = np.arange(-tokens.shape[1], 0)
    np.testing.assert_array_equal(tokens, query[:, None] + behind[None, :])
    low, high = (45, 59) if held_out else (0, 44)
    assert tokens.min() >= low
    assert label.max() <= high


@pytest.mark.parametrize("query_first", [False, True])
def test_every_place_is_as_likely(query_first: bool) -> None:
    """The counts of the places against the multinomial law; those at both ends are drawn too."""
    text, draws = counting(query_first=query_first), 40_000
    batch = jax.jit(sample_windows, static_argnums=2)(jax.random.key(2), text, draws)
    first = np.asarray(batch.label, int) - np.asarray(batch.label, int).min()
    width = LENGTH + 2 - query_first
    places = 45 - width + 1
    counts = np.bincount(first, minlength=places)
    assert len(counts) == places
    expected = draws / places
    chi_square = np.sum((counts - expected) ** 2) / expected
    # Mean and deviation of chi-square with places - 1 degrees of freedom.
    assert abs(chi_square - (places - 1)) < 5 * np.sqrt(2 * (places - 1))


def test_a_text_says_how_often_tokens_occur() -> None:
    tokens = [0, 0, 1, 0, 3, 0, 1, 0, 2, 2]
    text = windows(tokens, context_length=1, held_out=0.3).draw(jax.random.key(0))
    # The last three are held out; each of the four tokens is counted once more.
    np.testing.assert_allclose(text.stationary, np.array([5, 3, 1, 2]) / 11, rtol=1e-6)
    assert (text.num_tokens, text.context_length) == (4, 1)
    larger = windows(tokens, context_length=1, num_tokens=300, held_out=0).draw(jax.random.key(0))
    assert (larger.num_tokens, larger.tokens.dtype) == (300, jnp.uint16)
    assert larger.held_out.shape == (0,)
    np.testing.assert_array_equal(larger.tokens, tokens)


def test_a_text_is_a_pytree_whose_sizes_are_static() -> None:
    text = counting()
    assert [leaf.shape for leaf in jax.tree.leaves(text)] == [(45,), (15,), (60,)]
    sizes = jax.jit(lambda text: jnp.zeros((text.context_length, text.num_tokens)))(text)
    assert sizes.shape == (LENGTH, 60)


def test_the_hand_written_loss_takes_windows() -> None:
    """Against the formula, with one-hot contexts."""
    rng = np.random.default_rng(0)
    text = windows(rng.integers(7, size=300), context_length=LENGTH).draw(jax.random.key(0))
    batch = sample_windows(jax.random.key(1), text, 16)
    v, a = rng.normal(size=(7, 7)), rng.normal(size=(LENGTH, 7))
    params = Params(jnp.asarray(v, jnp.float32), jnp.asarray(a, jnp.float32))
    tokens, query, label = map(np.asarray, batch)
    attended = np.einsum("btn,bt->bn", np.eye(7)[tokens], a.T[query])
    error = attended @ v.T - np.eye(7)[label]
    np.testing.assert_allclose(loss(params, batch), (error**2).sum() / 32, rtol=1e-5)
    grads = jax.grad(loss)(params, batch)
    np.testing.assert_allclose(grads.value, error.T @ attended / 16, atol=1e-5)


def test_the_held_out_loss_is_a_mean_over_held_out_windows() -> None:
    text = counting()

    class Seen:
        key, task = jax.random.key(3), text

        @staticmethod
        def loss(batch: Any) -> jax.Array:  # noqa: ANN401 - a batch
            return jnp.mean(batch.query.astype(jnp.float32))

    # Queries are 45 + 5 to 45 + 13, each as likely.
    assert abs(float(held_out_loss(Seen())) - 54) < 5 * np.sqrt(60 / 9 / 1024)


def test_the_scb_is_a_source() -> None:
    sizes: dict[str, Any] = {"num_tokens": 3, "context_length": 40, "sparsity": 2}
    source, packed = scb_source(**sizes), scb_source(packed=True, **sizes)
    task = source.draw(jax.random.key(0))
    assert isinstance(task, Task)
    key = jax.random.key(1)
    assert source.keys is not None
    keys, prepare = source.keys, source.prepare

    def losses(task: Task) -> list[jax.Array]:
        """Of the same batch in both of its forms."""
        params = Params(task.transition, jnp.full_like(task.pattern, 1 / 40))
        drawn = (
            own.sample(keys(key)(jnp.asarray(7)), prepare(task), 16) for own in (source, packed)
        )
        return [loss(params, batch) for batch in drawn]

    # Runs for milliseconds: optimising it costs more than it saves.
    found = jax.jit(losses, compiler_options={"xla_backend_optimization_level": 0})(task)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("message", "tokens", "options"),
    [
        ("tokens is an array int64[2, 2]; it must be an array of integers [n]", [[0, 1]] * 2, {}),
        ("tokens is an array float64[9]; it must be an array of", np.ones(9), {}),
        ("tokens[1] is -1; it must be at least 0", [0, -1, 2], {}),
        (
            "tokens[2] is 5; it must be between 0 and num_tokens - 1 = 4",
            [0, 1, 5],
            {"num_tokens": 5},
        ),
        ("num_tokens is 1; it must be at least 2", [0, 0], {"num_tokens": 1}),
        ("context_length is 0; it must be at least 1", [0, 1], {"context_length": 0}),
        ("held_out is 1.5; it must be between 0 and 1", [0, 1], {"held_out": 1.5}),
        (
            "tokens has 6 to learn from; there must be at least 7 of them, for one window",
            [0] * 6,
            {"held_out": 0},
        ),
        (
            "tokens has 2 held out; there must be at least 7 of them, for one window",
            [0] * 20,
            {"held_out": 0.1},
        ),
    ],
)
def test_sequences_without_windows_are_refused(
    message: str,
    tokens: Any,  # noqa: ANN401 - of any kind
    options: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        windows(tokens, **{"context_length": LENGTH, **options})


def test_nothing_held_out_can_not_be_looked_at() -> None:
    with pytest.raises(ValueError, match=r"^held_out is 0; it must be larger"):
        sample_windows(jax.random.key(0), counting(held_out=0), 4, held_out=True)
