"""Keys of random numbers: of whatever kind they come in, they are made those of Threefry.

JAX has several generators. What those of the family ``rbg`` draw under ``vmap`` depends on the keys
of the whole batch, so that a trajectory would depend on what it is mapped together with; and keys
without a kind (:func:`jax.random.PRNGKey`) are of whichever kind the process has as its default.
Threefry draws from each key by itself, wherever it stands. So public functions turn the key that
they get into one of Threefry, by its words.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.arguments import what

THREEFRY = "threefry2x32"
"""The name that JAX has for the generator of all keys of this library."""

_WORDS = 2  # of a key of Threefry
_OLD_WORDS = (_WORDS, 4)  # of old-style keys: those of Threefry, and of the family rbg


def as_threefry(key: jax.Array, name: str = "key") -> jax.Array:
    """The key of Threefry that stands for a PRNG key of any kind.

    A key of Threefry stays what it is, and so does an old one (:func:`jax.random.PRNGKey`) of two
    words. Of any other, the first two words are the key that the further ones are folded into.
    Words are all that is used, so that under ``vmap`` each key gives what it gives by itself.

    Args:
        key: a single key; under ``vmap``, one of those that are mapped.
        name: of the argument, for messages.

    Returns:
        A new-style key of shape ().

    Raises:
        TypeError: if it is no key.
        ValueError: if it is several keys.

    Example:
        >>> key = jax.random.key(3, impl="threefry2x32")
        >>> bool(as_threefry(jax.random.key_data(key)) == key)
        True
        >>> as_threefry(7)
        Traceback (most recent call last):
        ...
        TypeError: key is 7; it must be a PRNG key, such as jax.random.key(7)
    """
    words = _words_of(key, name)
    if words is None:
        return key
    threefry: jax.Array = jax.random.wrap_key_data(words[:_WORDS], impl=THREEFRY)
    for number in range(_WORDS, words.shape[0]):
        threefry = jax.random.fold_in(threefry, words[number])
    return threefry


def _words_of(key: Any, name: str) -> jax.Array | None:  # noqa: ANN401 - it is looked at
    """The words of a key, uint32 [words]; None for one that is of Threefry already."""
    is_array = isinstance(key, jax.Array | np.ndarray)
    if is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        batch = key.shape
    elif is_array and key.dtype == jnp.uint32 and key.shape[-1:] in {(n,) for n in _OLD_WORDS}:
        batch = key.shape[:-1]
    else:
        seed = key if isinstance(key, int) and not isinstance(key, bool) else 0
        raise TypeError(
            f"{name} is {what(key)}; it must be a PRNG key, such as jax.random.key({seed})"
        )
    if batch:
        raise ValueError(
            f"{name} is an array of keys of shape {batch}; it must be a single key: "
            "jax.vmap maps a function over several"
        )
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return jnp.asarray(key)
    return None if str(jax.random.key_impl(key)) == THREEFRY else jax.random.key_data(key)
