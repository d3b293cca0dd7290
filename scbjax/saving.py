"""Trees of arrays in one file: states, parameters, tasks and trajectories. Without pickle.

A file is an ``.npz`` of NumPy: the arrays, and a text in JSON that says how they are put together.
Reading one runs no code of the file's. Dictionaries, lists, tuples, None, numbers, keys of random
numbers and the tuples of this library come back as they were; the states of optax and other
libraries come back into a tree of the same structure, which is given as ``like``.
"""

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scbjax.algorithm import Tracked
from scbjax.arguments import what
from scbjax.composition import LearnerState, StepInfo
from scbjax.model import Params
from scbjax.paper import Info
from scbjax.sampling import Batch, PackedBatch
from scbjax.task import Task
from scbjax.theory import PathProjection, PopulationPath, Rates
from scbjax.trajectories import Trajectory

_STRUCTURE = "structure"  # the entry that is no array of the tree
_FORMAT = 1
_OWN: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        *(Batch, Info, LearnerState, PackedBatch, Params, PathProjection, PopulationPath),
        *(Rates, StepInfo, Task, Tracked, Trajectory),
    )
}


def save(path: str | os.PathLike[str], tree: Any) -> None:  # noqa: ANN401 - any tree
    """Writes a tree of arrays to a file, such as ``trajectory.state`` or ``trajectory.params``.

    The file is there as a whole or not at all.

    Args:
        path: where; an ``.npz`` file by its content, whatever it is called.
        tree: arrays of NumPy and JAX, keys of random numbers, numbers of Python and None, in
            dictionaries with names as keys, lists, tuples, and tuples with named fields.

    Raises:
        TypeError: for what is none of these, such as a function.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/params.npz", {"params": Params(jnp.eye(2), jnp.ones((3, 2)))})
        ...     load(f"{folder}/params.npz")
        {'params': Params(value=float32[2, 2], attention=float32[3, 2])}
    """
    arrays: list[np.ndarray] = []
    text = {"scbjax": _FORMAT, "tree": _encoded(tree, "tree", arrays)}
    entries = {f"array_{number}": array for number, array in enumerate(arrays)}
    entries[_STRUCTURE] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} can't be written: there is no folder {path.parent}")
    file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115 - it is renamed after it is closed
    try:
        with file:
            np.savez(file, allow_pickle=False, **entries)
        Path(file.name).replace(path)
    except BaseException:
        Path(file.name).unlink()
        raise


def load(path: str | os.PathLike[str], like: Any = None) -> Any:  # noqa: ANN401 - any tree
    """Reads what :func:`save` wrote.

    Args:
        path: the file.
        like: a tree of the same structure with arrays of the same shapes and dtypes, such as what
            ``init`` makes (``jax.eval_shape`` of it will do); for files with parts of other
            libraries, such as the states of optax optimisers.

    Returns:
        The tree, its arrays of JAX or of NumPy as they were. An array of 64 bits comes as one of
        NumPy where JAX has none.

    Raises:
        ValueError: if the file is another one, has parts of other libraries and there is no
            ``like``, or has another structure than that.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            text = json.loads(bytes(file[_STRUCTURE]).decode())
            arrays = [file[f"array_{number}"] for number in range(len(file.files) - 1)]
    except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds nothing that scbjax.save wrote: {error}") from None
    if text.get("scbjax") != _FORMAT:
        raise ValueError(f"{path} is of format {text.get('scbjax')}; this version reads {_FORMAT}")
    if like is None:
        return _decoded(text["tree"], arrays, path)
    wanted: list[np.ndarray] = []
    own = _encoded(like, "tree", wanted)
    difference = _difference(text["tree"], own, "tree")
    if difference:
        raise ValueError(f"{path} and like differ: {difference}")
    leaves = [_leaf(node, arrays) for node in _leaf_nodes(text["tree"])]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _encoded(tree: Any, place: str, arrays: list[np.ndarray]) -> dict[str, Any]:  # noqa: ANN401
    """The JSON of a tree; its arrays are appended to a list."""
    if tree is None:
        return {"kind": "none"}
    if isinstance(tree, dict):
        wrong = [key for key in tree if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"{place} has the key {wrong[0]!r}; it must be a name")
        # In the order in which JAX goes through them.
        parts = {key: _encoded(tree[key], f"{place}[{key!r}]", arrays) for key in sorted(tree)}
        return {"kind": "dict", "parts": parts, "order": list(tree)}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        pairs = zip(tree._fields, tree, strict=True)
        parts = {name: _encoded(part, f"{place}.{name}", arrays) for name, part in pairs}
        return {"kind": "named", "type": _type_name(tree), "parts": parts}
    if isinstance(tree, list | tuple):
        numbered = [_encoded(part, f"{place}[{i}]", arrays) for i, part in enumerate(tree)]
        kind = "list" if isinstance(tree, list) else "tuple"
        return {"kind": kind, "parts": {str(i): part for i, part in enumerate(numbered)}}
    leaf = _encoded_leaf(tree, arrays)
    if leaf is not None:
        return leaf
    children = jax.tree.leaves(tree, is_leaf=lambda part: part is not tree)
    if len(children) == 1 and children[0] is tree:
        raise TypeError(f"{place} is {what(tree)}; what is saved must be arrays and numbers")
    numbered = [_encoded(part, f"{place}[{i}]", arrays) for i, part in enumerate(children)]
    parts = {str(i): part for i, part in enumerate(numbered)}
    return {"kind": "other", "type": _type_name(tree), "parts": parts}


def _type_name(value: object) -> str:
    kind: type = type(value)
    ours = _OWN.get(kind.__name__) == kind
    return kind.__name__ if ours else f"{kind.__module__}.{kind.__qualname__}"


def _encoded_leaf(leaf: Any, arrays: list[np.ndarray]) -> dict[str, Any] | None:  # noqa: ANN401
    if isinstance(leaf, bool | int | float) and not isinstance(leaf, np.generic):
        text: str = leaf.hex() if isinstance(leaf, float) else str(leaf)
        return {"kind": type(leaf).__name__, "value": text}
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return None
    node: dict[str, Any] = {"kind": "array", "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    node["jax"] = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return node
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        node["generator"] = str(jax.random.key_impl(jnp.asarray(leaf)))
        leaf = jax.random.key_data(jnp.asarray(leaf))
    array = np.asarray(leaf)
    # NumPy has no name of its own for the short floats of JAX: their bits are stored.
    stored = array if array.dtype.isbuiltin else array.view(f"u{array.dtype.itemsize}")
    node["place"] = len(arrays)
    arrays.append(stored)
    return node


def _leaf(node: dict[str, Any], arrays: list[np.ndarray]) -> Any:  # noqa: ANN401 - any leaf
    if node["kind"] != "array":
        value = node["value"]
        if node["kind"] == "float":
            return float.fromhex(value)
        return value == "True" if node["kind"] == "bool" else int(value)
    array = arrays[node["place"]]
    if "generator" in node:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=node["generator"])
    array = array.view(jnp.dtype(node["dtype"]))
    held = node["jax"] and jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
    return jnp.asarray(array) if held else array


def _leaf_nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    if node["kind"] == "none":
        return []
    if "parts" not in node:
        return [node]
    return [leaf for part in node["parts"].values() for leaf in _leaf_nodes(part)]


def _decoded(node: dict[str, Any], arrays: list[np.ndarray], path: Any) -> Any:  # noqa: ANN401
    kind = node["kind"]
    if kind == "none":
        return None
    if "parts" not in node:
        return _leaf(node, arrays)
    if node.get("type") not in {None, *_OWN}:
        raise ValueError(
            f"{path} holds a {node['type']} of another library; give load a tree of the same "
            "structure, as in load(path, like=state)"
        )
    parts = {name: _decoded(part, arrays, path) for name, part in node["parts"].items()}
    if kind == "dict":
        return {name: parts[name] for name in node["order"]}
    if kind == "named":
        return _OWN[node["type"]](**parts)
    return list(parts.values()) if kind == "list" else tuple(parts.values())


def _difference(found: dict[str, Any], wanted: dict[str, Any], place: str) -> str:
    """The first thing in which two trees differ, in words; nothing where they don't."""
    for key, word in (("kind", "a"), ("type", "a"), ("shape", "of shape"), ("dtype", "of")):
        if found.get(key) != wanted.get(key):
            return f"{place} is {word} {found.get(key)} in the file and {wanted.get(key)} in like"
    parts = found.get("parts", {}), wanted.get("parts", {})
    if parts[0].keys() != parts[1].keys():
        names = [", ".join(own) or "nothing" for own in parts]
        return f"{place} has {names[0]} in the file and {names[1]} in like"
    pairs = ((part, parts[1][name], f"{place}.{name}") for name, part in parts[0].items())
    return next(filter(None, (_difference(*pair) for pair in pairs)), "")
