"""Trees in files: what is read is what was written, bit for bit, and nothing is run."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scbjax.composition import LearnerState
from scbjax.model import Params, init_params
from scbjax.paper import init
from scbjax.saving import load, save
from scbjax.settings import Settings
from scbjax.task import Task, random_task
from scbjax.training import train

KEY = jax.random.key(0)


def make_task() -> Task:
    return random_task(KEY, num_tokens=3, context_length=10, sparsity=2)


def round_trip(tree: Any, folder: Path, like: Any = None) -> Any:  # noqa: ANN401 - any tree
    save(folder / "tree.npz", tree)
    return load(folder / "tree.npz", like)


def assert_same(found: Any, tree: Any) -> None:  # noqa: ANN401 - any trees
    """Also kinds, dtypes and the bits of NaN."""
    structures: list[Any] = [jax.tree.structure(found), jax.tree.structure(tree)]
    assert structures[0] == structures[1]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert isinstance(one, jax.Array) == isinstance(other, jax.Array)
        if isinstance(other, jax.Array | np.ndarray):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()
        else:
            assert type(one) is type(other)
            assert repr(one) == repr(other)


def test_trees_come_back_as_they_were(tmp_path: Path) -> None:
    tree = {
        "z": [1, 2.5, True, None, float("nan"), float("-inf"), 0.1],
        "a": (jnp.arange(3), np.arange(4.0), jnp.array(jnp.nan), np.zeros((0, 2), np.uint8)),
        "short": jnp.array([1.0, -2.5], jnp.bfloat16),
        "flags": jnp.array([True, False]),
        "nested": {"params": Params(jnp.eye(2), jnp.ones((3, 2))), "empty": [(), {}]},
        "long": np.array([2**60, -1]),
    }
    found = round_trip(tree, tmp_path)
    assert list(found) == list(tree)
    assert_same(found, tree)


def test_keys_come_back_with_their_generators(tmp_path: Path) -> None:
    keys = [jax.random.key(3, impl=name) for name in ("threefry2x32", "rbg")]
    keys.append(jax.random.split(jax.random.key(1), 4))
    for key, found in zip(keys, round_trip(keys, tmp_path), strict=True):
        assert jax.random.key_impl(found) == jax.random.key_impl(key)
        np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(key))


def test_the_paper_s_state_and_trajectory_need_nothing_like_them(tmp_path: Path) -> None:
    task = make_task()
    params = init_params(task)
    assert_same(round_trip((task, params), tmp_path), (task, params))


@pytest.mark.parametrize("optimizer", ["proximal", "adam"])
def test_states_of_optax_are_read_into_one_like_them(tmp_path: Path, optimizer: Any) -> None:  # noqa: ANN401
    task = make_task()
    settings = Settings(
        batch_size=4, steps=2, record_every=2, optimizer=optimizer, record=("stage",)
    )
    options = {"xla_backend_optimization_level": 0}
    trajectory = jax.jit(train, compiler_options=options)(KEY, task, settings)
    state: LearnerState = trajectory.state
    like = jax.eval_shape(init, KEY, task, settings)
    assert_same(round_trip(state, tmp_path, like), state)
    with pytest.raises(ValueError, match=r"holds a optax\..* of another library; give load a tree"):
        load(tmp_path / "tree.npz")
    whole = jax.eval_shape(train, KEY, task, settings)
    assert_same(round_trip(trajectory, tmp_path, whole), trajectory)


def test_states_of_any_optimiser(tmp_path: Path) -> None:
    optimizers = [
        optax.chain(optax.clip(1.0), optax.adamw(1e-3)),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9),
        optax.lbfgs(),
    ]
    params = {"b": jnp.ones(2), "a": [jnp.zeros((2, 2))]}
    for optimizer in optimizers:
        state = optimizer.init(params)
        assert_same(round_trip(state, tmp_path, state), state)


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": jnp.ones(2)}, "tree.a is of shape [3] in the file and [2] in like"),
        ({"a": jnp.ones(3, jnp.int32)}, "tree.a is of float32 in the file and int32 in like"),
        ({"b": jnp.ones(3)}, "tree has a in the file and b in like"),
        ([jnp.ones(3)], "tree is a dict in the file and list in like"),
        (
            {"a": Params(jnp.ones(1), jnp.ones(1))},
            "tree.a is a array in the file and named in like",
        ),
    ],
)
def test_what_differs_is_named(tmp_path: Path, like: Any, message: str) -> None:  # noqa: ANN401
    save(tmp_path / "a", {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=re.escape(message)):
        load(tmp_path / "a", like)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [print]}, "tree['a'][0] is a function; what is saved must be arrays and numbers"),
        ("text", "tree is 'text'; what is saved must be arrays and numbers"),
        ({1: 2}, "tree has the key 1; it must be a name"),
        (Params(lambda: 0, 1), "tree.value is a function; what is saved"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_array_is_refused_and_leaves_no_file(
    tmp_path: Path,
    tree: Any,  # noqa: ANN401 - any tree
    message: str,
) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        save(tmp_path / "a.npz", tree)
    assert list(tmp_path.iterdir()) == []


def test_a_file_stays_what_it_was_if_the_next_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "a.npz", [1])

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "a.npz", [2])
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    assert load(tmp_path / "a.npz") == [1]


def other_files() -> list[Callable[[Path], object]]:
    return [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no zip at all"),
        lambda path: np.savez(path, a=np.ones(2)),
        lambda path: np.savez(path, structure=np.frombuffer(b"{nothing", np.uint8)),
        lambda path: zipfile.ZipFile(path, "w").close(),
    ]


@pytest.mark.parametrize("write", other_files())
def test_other_files_are_refused(tmp_path: Path, write: Callable[[Path], object]) -> None:
    path = tmp_path / "other.npz"
    write(path)
    with pytest.raises(ValueError, match=r"other\.npz holds nothing that scbjax\.save wrote"):
        load(path)


def test_a_file_runs_no_code(tmp_path: Path) -> None:
    """Arrays of objects, which NumPy would unpickle, are no arrays of a tree."""
    path = tmp_path / "bad.npz"
    text = {"scbjax": 1, "tree": {"kind": "array", "place": 0}}
    structure = np.frombuffer(json.dumps(text).encode(), np.uint8)
    np.savez(path, structure=structure, array_0=np.array([print], object))
    with pytest.raises(ValueError, match=r"holds nothing that scbjax\.save wrote"):
        load(path)


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "later.npz"
    np.savez(path, structure=np.frombuffer(b'{"scbjax": 2, "tree": 0}', np.uint8))
    with pytest.raises(ValueError, match=r"is of format 2; this version reads 1$"):
        load(path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x.npz can't be written: there is no folder .*no"):
        save(tmp_path / "no" / "x.npz", jnp.zeros(2))


def test_no_file_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing.npz")


def test_doubles_without_doubles_in_jax_are_those_of_numpy(tmp_path: Path) -> None:
    jax.config.update("jax_enable_x64", True)
    try:
        array = jnp.array([0.1, 1e300])
        save(tmp_path / "a", array)
        assert_same(load(tmp_path / "a"), array)
    finally:
        jax.config.update("jax_enable_x64", False)
    found = load(tmp_path / "a")
    assert isinstance(found, np.ndarray)
    assert found.tolist() == [0.1, 1e300]
