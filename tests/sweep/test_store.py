"""The results directory: whole files or none, damage noticed, nothing overwritten."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray

from scbjax.base import StudyError
from scbjax.sweep.plan.plans import Plan, make_plan, plan_with_layout
from scbjax.sweep.results.arrays import DamagedError, atomic_file, read_arrays, write_arrays
from scbjax.sweep.results.store import Manifest, Store, default_out, status
from scbjax.sweep.study.files import Study, fingerprint, parse_study, to_toml

TEXT = """
[task]
num_tokens = 3
context_length = 20
sparsity = 2
[train]
batch_size = 4
steps = 20
record_every = 10
[axes]
seed = [0, 1, 2]
"""


def make_study(*overrides: str) -> Study:
    return parse_study(TEXT, "study", overrides)


@pytest.fixture
def plan() -> Plan:
    return make_plan(make_study())


def arrays_of(seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(3, 1, 5)).astype(np.float32), "empty": np.zeros((0, 2), "f4")}


def test_arrays_and_facts_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = arrays_of(0) | {"flags": np.array([True, False]), "scalar": np.array(3, np.int32)}
    write_arrays(tmp_path / "a.npz", arrays, {"seconds": 0.1, "name": "ä"})
    found, facts = read_arrays(tmp_path / "a.npz")
    assert facts == {"seconds": 0.1, "name": "ä"}
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


FILE = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FILE
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_noticed(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, arrays_of(0), {"records": 3})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DamagedError):
        read_arrays(path)


@FILE
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_without_effect(tmp_path: Path, share: float, bit: int) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, arrays_of(0), {"records": 3})
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        found, facts = read_arrays(path)
    except DamagedError:
        return
    assert facts == {"records": 3}
    np.testing.assert_array_equal(found["x"], arrays_of(0)["x"])


def test_a_flipped_bit_of_an_array_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    array = arrays_of(0)["x"]
    write_arrays(path, {"x": array}, {})
    content = bytearray(path.read_bytes())
    content[content.index(array.tobytes()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError):
        read_arrays(path)


def test_arrays_that_do_not_fit_their_checksum_are_noticed(tmp_path: Path) -> None:
    meta = json.dumps({"sha256": "0" * 64}).encode()
    np.savez(tmp_path / "a.npz", x=np.ones(3), meta=np.frombuffer(meta, np.uint8))
    with pytest.raises(DamagedError, match="checksum"):
        read_arrays(tmp_path / "a.npz")


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], object), meta=np.zeros(2, np.uint8))
    with pytest.raises(DamagedError):
        read_arrays(tmp_path / "a.npz")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with atomic_file(path) as file:
        file.write(b"old")

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StudyError, match="No space left"):
        fail()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "deep" / "a") as file:
        file.write(b"half")
        file.flush()
        assert not (tmp_path / "deep" / "a").exists()
    assert (tmp_path / "deep" / "a").read_bytes() == b"half"


def test_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StudyError, match=r"file/manifest.json can't be written: "),
        atomic_file(tmp_path / "file" / "manifest.json"),
    ):
        pass


def test_chunks_and_checkpoints_are_kept_apart(tmp_path: Path, plan: Plan) -> None:
    store, chunk = Store(tmp_path / "out"), plan.chunks[0]
    store.save_checkpoint(plan, chunk, arrays_of(1), {"records": 2})
    with pytest.raises(FileNotFoundError):
        store.load_chunk(plan, chunk)
    assert store.load_checkpoint(plan, chunk)[1]["records"] == 2
    store.save_chunk(plan, chunk, arrays_of(2), {})
    np.testing.assert_array_equal(store.load_chunk(plan, chunk)[0]["x"], arrays_of(2)["x"])
    with pytest.raises(FileNotFoundError):  # no longer of use
        store.load_checkpoint(plan, chunk)


@pytest.mark.parametrize("override", ["axes.seed=[0, 1, 3]", "train.l1=0.5"])
def test_a_chunk_of_another_study_is_not_taken(tmp_path: Path, plan: Plan, override: str) -> None:
    store = Store(tmp_path)
    store.save_chunk(plan, plan.chunks[0], arrays_of(0), {})
    other = make_plan(make_study(override))
    with pytest.raises(DamagedError, match="fingerprint"):
        store.load_chunk(other, other.chunks[0])


def test_a_chunk_of_another_layout_is_not_taken(tmp_path: Path, plan: Plan) -> None:
    store = Store(tmp_path)
    store.save_chunk(plan, plan.chunks[0], arrays_of(0), {})
    other = plan_with_layout(plan.study, [(2, 1, 1)])
    with pytest.raises(DamagedError, match="outer"):
        store.load_chunk(other, other.chunks[0])


def test_the_manifest_comes_back_and_holds_the_study(tmp_path: Path, plan: Plan) -> None:
    store = Store(tmp_path / "out")
    assert store.read_manifest() is None
    manifest = Manifest.of(plan, {"device": "abacus"})
    store.write_manifest(manifest)
    assert store.read_manifest() == manifest
    assert parse_study(manifest.study, manifest.name) == plan.study


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff", b"null", b'{"layout": [[0, 1, 1]]}', b'{"layout": 3}', b'{"x": 1}'],
)
def test_a_damaged_manifest_is_noticed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedError):
        Store(tmp_path).read_manifest()
    with pytest.raises(StudyError, match="damaged"):
        status(tmp_path)


def test_an_empty_chunk_shape_is_damage(tmp_path: Path, plan: Plan) -> None:
    store = Store(tmp_path)
    store.write_manifest(Manifest.of(plan, {}))
    content = json.loads(store.manifest_path.read_text())
    store.manifest_path.write_text(json.dumps({**content, "layout": [[0, 1, 1]]}))
    with pytest.raises(DamagedError, match="empty chunk"):
        store.read_manifest()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"name": []},
        {"name": "a" * 300},
        {"fingerprint": 3},
        {"fingerprint": "4s\n" + 61 * "0"},
        {"study": None},
        {"num_chunks": "1"},
        {"provenance": []},
        {"provenance": {"device": 3}},
        {"layout": [[float("inf"), 1, 1]]},
        {"layout": [[3, True, 1]]},
        {"layout": [[3, 1]]},
        {"layout": [3]},
        {"more": 1},
    ],
)
def test_a_manifest_of_something_else_is_damaged(
    tmp_path: Path, plan: Plan, change: dict[str, Any]
) -> None:
    store = Store(tmp_path)
    store.write_manifest(Manifest.of(plan, {}))
    content = json.loads(store.manifest_path.read_text())
    store.manifest_path.write_text(json.dumps({**content, **change}))
    with pytest.raises(DamagedError):
        store.read_manifest()
    with pytest.raises(StudyError, match="damaged"):
        status(tmp_path)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, plan: Plan) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(StudyError, match=r"manifest\.json can't be read: not a regular file"):
        Store(tmp_path).read_manifest()
    (tmp_path / "chunks").mkdir()
    os.mkfifo(tmp_path / "chunks" / "00000.npz")
    with pytest.raises(DamagedError, match="not a regular file"):
        Store(tmp_path).load_chunk(plan, plan.chunks[0])


def test_a_compressed_file_is_not_unpacked(tmp_path: Path) -> None:
    """Its content may be a thousand times as large."""
    meta = json.dumps({"sha256": "0" * 64}).encode()
    np.savez_compressed(
        tmp_path / "a.npz",
        x=np.zeros(10**6),
        meta=np.frombuffer(meta, np.uint8),
        allow_pickle=False,
    )
    with pytest.raises(DamagedError, match="compressed"):
        read_arrays(tmp_path / "a.npz")


def test_a_newer_layout_of_the_directory_is_refused(tmp_path: Path, plan: Plan) -> None:
    store = Store(tmp_path)
    store.write_manifest(Manifest.of(plan, {}))
    content = json.loads(store.manifest_path.read_text())
    store.manifest_path.write_text(json.dumps({**content, "format": 99, "more": 1}))
    with pytest.raises(StudyError, match="format 99"):
        store.read_manifest()


def test_status_counts_what_is_there(tmp_path: Path, plan: Plan) -> None:
    store = Store(tmp_path)
    store.write_manifest(Manifest.of(plan, {}))
    assert (status(tmp_path).chunks_done, status(tmp_path).complete) == (0, False)
    store.save_chunk(plan, plan.chunks[0], arrays_of(0), {})
    store.dataset_path("study").write_bytes(b"")
    found = status(tmp_path)
    assert (found.chunks_done, found.manifest.num_chunks, found.complete) == (1, 1, True)


def test_status_of_an_empty_directory_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"holds no results: there is no manifest.json in it"):
        status(tmp_path)


def test_other_settings_get_another_directory(tmp_path: Path, plan: Plan) -> None:
    assert default_out(plan.study, tmp_path) == tmp_path / "study"
    Store(tmp_path / "study").write_manifest(Manifest.of(plan, {}))
    assert default_out(plan.study, tmp_path) == tmp_path / "study"
    other = make_study("train.l1=0.5")
    assert default_out(other, tmp_path) == tmp_path / f"study-{fingerprint(other)[:8]}"


def test_a_directory_is_moved_to_the_first_free_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "out")
    for number in (1, 2):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / str(number)).touch()
        assert store.move_aside() == tmp_path / f"out.old-{number}"
    assert (tmp_path / "out.old-1" / "1").exists()
    assert (tmp_path / "out.old-2" / "2").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/etc/passwd"])
def test_a_name_never_becomes_another_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(StudyError, match="file name"):
        Store(tmp_path).dataset_path(name)


def test_the_manifest_is_plain_json(tmp_path: Path, plan: Plan) -> None:
    store = Store(tmp_path)
    store.write_manifest(Manifest.of(plan, {}))
    content = json.loads(store.manifest_path.read_text())
    assert content["study"] == to_toml(plan.study)
    assert content["layout"] == [[3, 1, 3]]
