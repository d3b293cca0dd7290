"""The dataset: each trajectory at its coordinates, and everything labelled."""

import gc
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from scbjax.base import StudyError
from scbjax.experiments.scb import EXPERIMENT
from scbjax.sweep.engine.chunks import Executor
from scbjax.sweep.plan.plans import Plan, make_plan
from scbjax.sweep.results.dataset import (
    axes_of,
    check_heaps,
    checksum_path,
    is_whole,
    read_dataset,
    save_dataset,
    write_dataset,
)
from scbjax.sweep.results.store import Store
from scbjax.sweep.study.files import Study, fingerprint, parse_study

TEXT = """
title = "A title"
question = "A question?"
[task]
num_tokens = 3
context_length = 20
[train]
batch_size = 4
steps = 20
record_every = 10
[record]
variables = ["attention_distance", "stage"]
final = true
truth = true
snapshots = [0, 20]
[axes]
seed = [5, 3]
sparsity = [1, 2, 4]
geometry = ["mu", "paper"]
[[zip]]
name = "arm"
optimizer = ["proximal", "sgd", "raw_sgd"]
learning_rate_2 = [0.01, 0.02, 0.03]
"""


def fill(plan: Plan, store: Store) -> None:
    """Chunks whose arrays hold the place of each trajectory in the flattened grid."""
    shapes: dict[str, tuple[int, ...]] = {
        "attention_distance": (3,),
        "stage": (3,),
        "transition_signal": (),
        "pattern_signal": (),
        "stationary_norm": (),
        "diverged_at": (),
        "value": (3, 3),
        "attention": (20, 3),
        "transition": (3, 3),
        "stationary": (3,),
        "pattern": (20, 3),
        "value_snapshots": (2, 3, 3),
        "attention_snapshots": (2, 20, 3),
    }
    for chunk in plan.chunks:
        place = plan.positions(chunk)
        arrays: dict[str, Any] = {}
        for name, shape in shapes.items():
            dtype = np.int32 if name in {"stage", "diverged_at"} else np.float32
            offsets = np.arange(np.prod(shape, dtype=int)).reshape(shape) / 1000
            own = place.reshape(place.shape + (1,) * len(shape))
            arrays[name] = (own + offsets).astype(dtype)
        store.save_chunk(plan, chunk, arrays, {})


def written(study: Study, out: Path, **attributes: object) -> xarray.Dataset:
    plan = make_plan(study, memory_bytes=200_000)
    store = Store(out)
    fill(plan, store)
    path = write_dataset(plan, store, attributes).path
    with xarray.open_dataset(path) as dataset:
        return dataset.load()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> xarray.Dataset:
    study = parse_study(TEXT, "study")
    return written(study, tmp_path_factory.mktemp("out"), wall_seconds=1.5, device="abacus")


def test_dimensions_are_the_axes_and_step(dataset: xarray.Dataset) -> None:
    axes = ("seed", "sparsity", "geometry", "arm")
    assert dataset.attention_distance.dims == (*axes, "step")
    assert dataset.stage.dims == (*axes, "step")
    assert dataset.value.dims == (*axes, "token_out", "token_in")
    assert dataset.attention.dims == (*axes, "position", "query")
    assert dataset.diverged_at.dims == axes
    # What the task is depends on its seed and its sparsity, not on the learner.
    assert dataset.transition_signal.dims == dataset.stationary_norm.dims == ("seed",)
    assert dataset.pattern_signal.dims == ("seed", "sparsity")
    assert dataset.transition.dims == ("seed", "token_out", "token_in")
    assert dataset.stationary.dims == ("seed", "token_in")
    assert dataset.pattern.dims == ("seed", "sparsity", "position", "query")
    assert dataset.value_snapshots.dims == (*axes, "snapshot", "token_out", "token_in")
    assert dataset.attention_snapshots.dims == (*axes, "snapshot", "position", "query")
    assert dict(dataset.sizes) == {
        "seed": 2, "sparsity": 3, "geometry": 2, "arm": 3, "step": 3,
        "token_out": 3, "token_in": 3, "position": 20, "query": 3, "snapshot": 2,
    }  # fmt: skip


def test_coordinates_hold_the_real_values(dataset: xarray.Dataset) -> None:
    assert dataset.seed.values.tolist() == [5, 3]
    assert dataset.sparsity.values.tolist() == [1, 2, 4]
    assert dataset.step.values.tolist() == [0, 10, 20]
    assert dataset.snapshot.values.tolist() == [0, 20]
    assert dataset.geometry.values.tolist() == ["mu", "paper"]
    assert dataset.optimizer.dims == dataset.learning_rate_2.dims == ("arm",)
    assert dataset.optimizer.values.tolist() == ["proximal", "sgd", "raw_sgd"]
    assert dataset.learning_rate_2.values.tolist() == [0.01, 0.02, 0.03]


def test_every_trajectory_is_at_its_place(dataset: xarray.Dataset) -> None:
    places = np.arange(2 * 3 * 2 * 3).reshape(2, 3, 2, 3)
    np.testing.assert_array_equal(dataset.diverged_at, places)
    np.testing.assert_array_equal(dataset.transition_signal, places[:, 0, 0, 0])
    np.testing.assert_array_equal(dataset.pattern_signal, places[:, :, 0, 0])
    np.testing.assert_array_equal(dataset.stage, np.repeat(places[..., None], 3, axis=-1))
    offsets = np.arange(60).reshape(20, 3) / 1000
    expected = places[..., None, None] + offsets
    np.testing.assert_allclose(dataset.attention, expected, rtol=1e-6)
    point = dataset.sel(seed=3, sparsity=2, geometry="paper").isel(arm=1)
    assert int(point.diverged_at) == ((1 * 3 + 1) * 2 + 1) * 3 + 1


def test_types_are_kept(dataset: xarray.Dataset) -> None:
    assert dataset.stage.dtype == np.int32
    assert dataset.attention_distance.dtype == np.float32
    assert dataset.attention.dtype == np.float32


def test_everything_is_labelled(dataset: xarray.Dataset) -> None:
    for name, variable in dataset.data_vars.items():
        assert {"long_name", "units", "symbol"} <= variable.attrs.keys(), name
    for name, coordinate in dataset.coords.items():
        assert {"long_name", "units"} <= coordinate.attrs.keys(), name
    assert dataset.attention_distance.attrs["long_name"] == "distance of A to Q"
    assert dataset.transition_signal.attrs["symbol"] == "$K_P$"
    assert dataset.sparsity.attrs["symbol"] == "$Q$"
    assert dataset.sparsity.attrs["field"] == "task.sparsity"


def test_attributes_say_how_it_was_made(dataset: xarray.Dataset) -> None:
    study = parse_study(TEXT, "study")
    attrs = dataset.attrs
    assert (attrs["title"], attrs["question"], attrs["name"]) == ("A title", "A question?", "study")
    assert parse_study(attrs["study"], attrs["name"]) == study
    assert attrs["fingerprint"] == fingerprint(study)
    assert (attrs["wall_seconds"], attrs["device"]) == (1.5, "abacus")
    settings = json.loads(attrs["settings"])
    assert settings["task.num_tokens"] == 3
    assert settings["record.snapshots"] == [0, 20]


def test_settings_are_strict_json(tmp_path: Path) -> None:
    study = parse_study(TEXT, "study", ["train.stop_level=inf"])

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    settings = written(study, tmp_path).attrs["settings"]
    assert json.loads(settings, parse_constant=refuse)["train.stop_level"] == "inf"


def test_matrices_are_compressed(tmp_path: Path) -> None:
    dataset = written(parse_study(TEXT, "study"), tmp_path)
    assert dataset.attention.encoding["zlib"]
    assert not dataset.attention_distance.encoding.get("zlib")


def test_the_signal_asked_for_is_kept_beside_the_signal_drawn(tmp_path: Path) -> None:
    study = parse_study(TEXT, "study", ["axes.transition_signal=[0.3, 0.9]"])
    dataset = written(study, tmp_path)
    assert dataset.transition_signal.values.tolist() == [0.3, 0.9]
    assert "step" not in dataset.drawn_transition_signal.dims
    assert dataset.drawn_transition_signal.dims == ("seed", "transition_signal")
    assert dataset.stationary_norm.dims == ("seed",)


# Axes, and what K_P, K_Q and |mu|^2 depend on.
SWEPT = {
    "seed=[1, 2]": ("KP", "KQ", "mu"),
    "task_seed=[1, 2]": ("KP", "KQ", "mu"),
    "data_seed=[1, 2]": (),
    "init_seed=[1, 2]": (),
    "num_tokens=[3, 4]": ("KP", "KQ", "mu"),
    "skew=[1.5, 2.0]": ("KP", "KQ", "mu"),
    "transition_signal=[0.2, 0.4]": ("KP",),
    "context_length=[20, 30]": ("KQ",),
    "sparsity=[1, 2]": ("KQ",),
    "batch_size=[4, 8]": (),
    "l1=[0.0, 1e-3]": (),
    "optimizer=['sgd', 'adam']": (),
    "correlation=[0.1, 0.2]": (),
}
SHORT = {"transition_signal": "KP", "pattern_signal": "KQ", "stationary_norm": "mu"}
PLAIN = """
[task]
num_tokens = 3
context_length = 20
sparsity = 2
[train]
batch_size = 4
steps = 4
record_every = 4
[record]
variables = ["stage"]
"""


# A program each; the rest of them is slow.
QUICKLY = ("seed=[1, 2]", "sparsity=[1, 2]", "l1=[0.0, 1e-3]")


@pytest.mark.parametrize(
    "axis",
    [pytest.param(axis, marks=() if axis in QUICKLY else pytest.mark.slow) for axis in SWEPT],
)
def test_a_task_is_stored_along_what_it_depends_on(axis: str) -> None:
    """Compared with tasks that are drawn for the two ends of the axis."""
    field = axis.partition("=")[0]
    overrides = ["start=transfer", "first_samples=8"] if field == "correlation" else []
    study = parse_study(PLAIN, "study", [f"axes.{axis}", *overrides])
    plan = make_plan(study)
    arrays = [Executor(plan).run(index).arrays for index in range(len(plan.chunks))]
    for name, short in SHORT.items():
        first, last = arrays[0][name].reshape(-1)[0], arrays[-1][name].reshape(-1)[-1]
        assert (abs(first - last) > 1e-4) == (short in SWEPT[axis]), name
        assert axes_of(study, name) == ((field,) if short in SWEPT[axis] else ())


def test_a_seed_of_the_task_takes_the_place_of_the_seed() -> None:
    both = ["axes.seed=[0, 1]", "axes.task_seed=[5, 6]"]
    assert axes_of(parse_study(PLAIN, "x", both), "pattern") == ("task_seed",)
    assert axes_of(parse_study(PLAIN, "x", ["axes.seed=[0, 1]", "task_seed=5"]), "pattern") == ()
    arms = f"{PLAIN}[[zip]]\nname = 'arm'\nl1 = [0.0, 1.0]\nskew = [1.5, 2.0]\n"
    assert axes_of(parse_study(arms, "x"), "stationary") == ("arm",)
    assert axes_of(parse_study(arms, "x"), "attention_distance") == ("arm",)


def test_a_study_without_axes_has_only_steps(tmp_path: Path) -> None:
    lines = TEXT.partition("[axes]")[0].replace("num_tokens", "sparsity = 2\nnum_tokens")
    dataset = written(parse_study(lines, "study"), tmp_path)
    assert dataset.stage.dims == ("step",)
    assert dataset.transition_signal.dims == ()


def test_where_trajectories_diverged_is_kept(dataset: xarray.Dataset, tmp_path: Path) -> None:
    places = np.arange(36)
    assert dataset.diverged_at.dims == ("seed", "sparsity", "geometry", "arm")
    assert dataset.diverged_at.dtype == np.int32
    np.testing.assert_array_equal(dataset.diverged_at.values.ravel(), places)
    plan = make_plan(parse_study(TEXT, "study"), memory_bytes=200_000)
    store = Store(tmp_path)
    fill(plan, store)
    np.testing.assert_array_equal(write_dataset(plan, store, {}).diverged_at, places)


def test_a_whole_dataset_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    written(parse_study(TEXT, "study"), tmp_path)
    path = tmp_path / "study.nc"
    assert is_whole(path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert not is_whole(path)
    path.write_bytes(content)
    assert is_whole(path)
    checksum_path(path).unlink()
    assert not is_whole(path)


def test_a_damaged_file_is_one_sentence_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when what was left half open is collected: Python would print why it can't be closed."""
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    path = tmp_path / "kept.nc"
    save_dataset(xarray.Dataset({"x": ("step", np.ones(3))}), path)
    whole, sentences = path.read_bytes(), []
    for place in range(0, min(len(whole), 1600), 25):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            read_dataset(path)
        except StudyError as error:
            sentences.append(str(error))
    gc.collect()
    assert said == []
    assert len(sentences) > 5
    assert not any("\n" in sentence for sentence in sentences)


@pytest.mark.parametrize("size", [0, 2**64 - 16, 2**40])
def test_a_heap_that_hdf5_would_walk_for_ever_is_refused(tmp_path: Path, size: int) -> None:
    """An entry that leads to itself, and ones that lead out of the heap."""
    path = tmp_path / "kept.nc"
    save_dataset(xarray.Dataset({"x": ("step", np.ones(3))}, attrs={"study": "a" * 99}), path)
    check_heaps(path)
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL\x01")
    index = heap + 16
    while data[index] != 0:  # the entry of free space, which ends the list
        (length,) = struct.unpack_from("<Q", data, index + 8)
        index += 16 + -(-length // 8) * 8
    struct.pack_into("<Q", data, index + 8, size)
    path.write_bytes(data)
    with pytest.raises(StudyError, match=r"kept\.nc can't be read as a dataset: it has a damaged"):
        read_dataset(path)


def test_a_failed_write_leaves_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xarray.Dataset, "to_netcdf", fail)
    with pytest.raises(StudyError, match=r"study.nc can't be written: No space left on device"):
        written(parse_study(TEXT, "study"), tmp_path)
    assert not list(tmp_path.glob("*.nc"))


def test_descriptions_are_complete() -> None:
    parts = (EXPERIMENT.constants, EXPERIMENT.kept, EXPERIMENT.truth, EXPERIMENT.dims)
    described = [*EXPERIMENT.variables.values(), *(v for part in parts for v in part.values())]
    assert all(each.long_name and each.units and each.symbol for each in described)
