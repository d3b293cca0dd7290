"""Nothing is lost: whatever ends a run, the next one says what it found and ends as it would have.

Here the disk fails under a run in this process; processes are killed in `test_kills.py`.
"""

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray

from scbjax.base import StudyError
from scbjax.sweep.engine.chunks import Checkpoint, ChunkResult, Executor, Segment
from scbjax.sweep.engine.engines import LocalEngine
from scbjax.sweep.engine.execute import run_study
from scbjax.sweep.engine.progress import SilentProgress
from scbjax.sweep.plan.plans import Plan, plan_with_layout
from scbjax.sweep.results.arrays import read_arrays, write_arrays
from scbjax.sweep.study.files import parse_study

TEXT = """
[task]
num_tokens = 2
context_length = 6
sparsity = 1
[train]
batch_size = 4
steps = 6
record_every = 2
[record]
variables = ["value_distance", "stage"]
final = true
[axes]
seed = [5, 3, 4]
"""


class Heard(SilentProgress):
    """Remembers what a run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Chaos:
    """In the place of an executor, without its compilation: a map in which no bit may be lost."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def run(
        self,
        index: int,
        *,
        checkpoint: Checkpoint | None,
        listen: Callable[[Segment], None],
        **_: object,
    ) -> ChunkResult:
        chunk = self._plan.chunks[index]
        done, state = 0, (1.0 + self._plan.positions(chunk)) / 7
        records = np.zeros((*chunk.shape, 4), np.float32)
        if checkpoint is not None:
            done, state = checkpoint.records, checkpoint.arrays["state"]
            records = checkpoint.arrays["records"].copy()
        while done < 4:
            for _step in range(25):
                state = 3.99 * state * (1 - state)
            records[..., done] = state
            done += 1
            found = Checkpoint({"state": state, "records": records.copy()}, done, 0.0)
            listen(Segment(chunk, 1, done, 0.001, 0.0, lambda found=found: found))  # type: ignore[misc]
        arrays: dict[str, Any] = {"value_distance": records, "stage": records.astype(np.int32)}
        for name in ("transition_signal", "pattern_signal", "stationary_norm", "diverged_at"):
            arrays[name] = np.ones(chunk.shape, np.float32)
        arrays["value"] = np.tile(state[..., None, None], (2, 2))
        arrays["attention"] = np.tile(state[..., None, None], (6, 2))
        return ChunkResult(arrays, 0.0, 0.0, self._plan.programs[chunk.program].block)


class Reference(NamedTuple):
    """A plan of two chunks, the second padded, and the bytes of its dataset's variables."""

    plan: Plan
    engine: LocalEngine
    content: dict[str, bytes]

    def run(self, out: Path) -> list[str]:
        """Runs or continues the study; returns what was said. Checkpoints after every record."""
        heard = Heard()
        report = run_study(self.plan, out, progress=heard, engine=self.engine, checkpoint_seconds=0)
        assert report.dataset is not None
        assert content_of(report.dataset) == self.content
        return heard.said


def content_of(dataset: Path) -> dict[str, bytes]:
    with xarray.open_dataset(dataset, engine="h5netcdf") as found:
        return {str(name): found[name].to_numpy().tobytes() for name in found.variables}


def make_reference(plan: Plan, executor: Any, out: Path) -> Reference:  # noqa: ANN401
    engine = LocalEngine(lambda _: executor)
    report = run_study(plan, out, progress=SilentProgress(), engine=engine)
    assert report.dataset is not None
    return Reference(plan, engine, content_of(report.dataset))


def make_plan() -> Plan:
    return plan_with_layout(parse_study(TEXT, "study"), [(2, 1, 2)])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    plan = make_plan()
    return make_reference(plan, Chaos(plan), tmp_path_factory.mktemp("chaos") / "out")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    plan = make_plan()
    executor = Executor(plan, segment_seconds=0)  # a segment for every record
    return make_reference(plan, executor, tmp_path_factory.mktemp("compiled") / "out")


# ------------------------------------------------------------------------- the disk as it is used


class PowerCutError(BaseException):
    """The end of everything: no handler of ordinary errors may see it."""


class Disk:
    """Watches what is done to a directory, and fails at one operation or from one on.

    Args:
        root: the directory; files called `lock` are left alone, since a lock ends with its process.
        fail: called before each operation with its number and the file.
    """

    def __init__(self, root: Path, fail: Callable[[int, str], None] = lambda *_: None) -> None:
        self.log: list[tuple[str, str]] = []
        self._root = root
        self._fail = fail

    def note(self, operation: str, path: str | os.PathLike[str]) -> None:
        name = os.fspath(path)
        if name.startswith(str(self._root)) and not name.endswith("/lock"):
            self._fail(len(self.log), name)
            self.log.append((operation, name))

    @contextmanager
    def watched(self) -> Iterator["Disk"]:
        """Puts itself in the place of what writes."""

        def noting(operation: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
                place = Path(f"/proc/self/fd/{path}").readlink() if operation == "sync" else path
                mode = (arguments or (options.get("mode", "r"),))[0]
                if operation != "open" or set(mode) & set("wa+"):
                    self.note(operation, place)
                return function(path, *arguments, **options)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", noting("sync", os.fsync))
            for operation in ("open", "mkdir", "replace", "unlink"):
                patch.setattr(Path, operation, noting(operation, getattr(Path, operation)))
            yield self


@pytest.fixture(scope="module")
def operations(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of all operations of an uninterrupted run."""
    root = tmp_path_factory.mktemp("watched")
    with Disk(root).watched() as disk:
        reference.run(root / "out")
    return [operation for operation, _ in disk.log]


def test_a_file_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, reference: Reference
) -> None:
    """What a power cut can undo is the renaming, and never the content of what has its name."""
    with Disk(tmp_path).watched() as disk:
        reference.run(tmp_path / "out")
    renamed = [place for place, entry in enumerate(disk.log) if entry[0] == "replace"]
    names = set()
    for place in renamed:
        aside = Path(disk.log[place][1])
        names.add(aside.name)
        assert disk.log[place - 1] == ("sync", str(aside))
        following = [entry for entry in disk.log[place + 1 :] if entry[0] != "open"]
        if aside.name == ".study.nc.partial":  # the checksum's comes with it
            following = following[2:]
        assert following[0] == ("sync", str(aside.parent))
    whole = {".manifest.json.partial", ".study.nc.partial", ".study.nc.sha256.partial"}
    assert names == whole | {".00000.npz.partial", ".00001.npz.partial"}
    # New folders as well.
    for place, (operation, name) in enumerate(disk.log):
        if operation == "mkdir" and Path(name).name in {"chunks", "checkpoints"}:
            assert disk.log[place + 1] == ("sync", str(Path(name).parent))


def cut_at(number: int) -> Callable[[int, str], None]:
    def fail(count: int, _: str) -> None:
        if count >= number:
            raise PowerCutError

    return fail


def full_at(number: int) -> Callable[[int, str], None]:
    done: list[int] = []

    def fail(count: int, _: str) -> None:
        if count == number and not done:
            done.append(number)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fail


def cut_and_continue(reference: Reference, folder: Path, numbers: range) -> None:
    for number in numbers:
        out = folder / str(number) / "out"
        out.parent.mkdir()
        disk = Disk(out.parent, cut_at(number))
        with disk.watched(), pytest.raises(PowerCutError):
            reference.run(out)
        reference.run(out)
        assert list(out.rglob(".*")) == []
        assert list(out.glob("checkpoints/*")) == []


def fill_and_continue(reference: Reference, folder: Path, numbers: range, names: list[str]) -> int:
    count = 0
    for number in numbers:
        if names[number] == "unlink":  # that needs no room
            continue
        out = folder / str(number) / "out"
        out.parent.mkdir()
        disk = Disk(out.parent, full_at(number))
        with disk.watched(), pytest.raises(StudyError, match="No space left on device") as error:
            reference.run(out)
        assert "\n" not in str(error.value)
        assert list(out.rglob(".*")) == []
        reference.run(out)
        count += 1
    return count


def test_a_power_cut_before_some_operations(
    tmp_path: Path, reference: Reference, operations: list[str]
) -> None:
    cut_and_continue(reference, tmp_path, range(1, len(operations), 12))


def test_a_full_disk_at_some_operations(
    tmp_path: Path, reference: Reference, operations: list[str]
) -> None:
    fill_and_continue(reference, tmp_path, range(3, len(operations), 16), operations)


@pytest.mark.slow
def test_a_power_cut_before_every_operation(
    tmp_path: Path, reference: Reference, operations: list[str]
) -> None:
    cut_and_continue(reference, tmp_path, range(len(operations)))
    print(f"power cuts, one before every operation on the disk: {len(operations)}; differences: 0")


@pytest.mark.slow
def test_a_full_disk_at_every_operation(
    tmp_path: Path, reference: Reference, operations: list[str]
) -> None:
    count = fill_and_continue(reference, tmp_path, range(len(operations)), operations)
    print(f"full disks, one at every operation that needs room: {count}; differences: 0")


# ------------------------------------------------------------------------- damage


def interrupted(reference: Reference, out: Path) -> None:
    """A run that was cut off with a finished chunk, a checkpoint of the other and a stray file."""

    def fail(_: int, name: str) -> None:
        if name.endswith("chunks/.00001.npz.partial"):
            raise PowerCutError

    with Disk(out.parent, fail).watched(), pytest.raises(PowerCutError):
        reference.run(out)
    (out / "checkpoints" / ".00001.npz.partial").write_bytes(b"half")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "checkpoints/.00001.npz.partial",
        "checkpoints/00001.npz",
        "chunks/00000.npz",
        "manifest.json",
    ]


def truncated(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def zeroed(path: Path, rng: random.Random) -> None:
    """The end of the file as zeros, as a file system may leave what it did not write."""
    content = path.read_bytes()
    kept = rng.randrange(len(content))
    path.write_bytes(content[:kept].ljust(len(content), b"\0"))


def flipped(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def missing(path: Path, _: random.Random) -> None:
    path.unlink()


DAMAGES = (truncated, zeroed, flipped, missing)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["manifest.json", "chunks/00000.npz", "checkpoints/00001.npz"])
def test_damage_costs_what_is_damaged(
    tmp_path: Path, reference: Reference, name: str, damage: Callable[..., None]
) -> None:
    interrupted(reference, tmp_path / "out")
    damage(tmp_path / "out" / name, random.Random(f"{name} {damage.__name__}"))
    said = reference.run(tmp_path / "out")
    assert "removed 1 file that an earlier run was about to write" in said
    lost = "damaged" in " ".join(said) or damage is missing
    if name != "chunks/00000.npz" or not lost:
        assert "found 1 of 2 chunks done" in said
    if name != "checkpoints/00001.npz" or not lost:
        assert any("chunk 1 goes on after" in line for line in said)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["study.nc", "study.nc.sha256"])
def test_a_damaged_dataset_costs_no_chunk(
    tmp_path: Path, reference: Reference, name: str, damage: Callable[..., None]
) -> None:
    reference.run(tmp_path / "out")
    damage(tmp_path / "out" / name, random.Random(name))
    said = reference.run(tmp_path / "out")
    assert "found 2 of 2 chunks done" in said
    path = tmp_path / "out" / "study.nc"
    assert (f"{path} is damaged and is written again" in said) == path.exists() or damage is missing


def test_a_lost_manifest_does_not_cost_chunks_that_were_cut_otherwise(
    tmp_path: Path, reference: Reference
) -> None:
    interrupted(reference, tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    other = plan_with_layout(reference.plan.study, [(3, 1, 3)])
    said = reference._replace(plan=other).run(tmp_path / "out")
    assert "found 1 of 2 chunks done" in said


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    arrays, facts = (dict(part) for part in read_arrays(path))
    change(arrays, facts)
    write_arrays(path, arrays, facts)


def rename_an_array(arrays: dict[str, Any], _: dict[str, Any]) -> None:
    arrays["carry_99"] = arrays.pop("carry_0", arrays.get("stage"))


def drop_a_row(arrays: dict[str, Any], _: dict[str, Any]) -> None:
    for name in arrays:
        arrays[name] = arrays[name][:1]


def other_types(arrays: dict[str, Any], facts: dict[str, Any]) -> None:
    for name in arrays:
        arrays[name] = np.array(["x"])
    facts["run_seconds"] = []


def no_times(_: dict[str, Any], facts: dict[str, Any]) -> None:
    facts["run_seconds"] = "soon"


def no_records(_: dict[str, Any], facts: dict[str, Any]) -> None:
    facts["records"] = 0
    facts.pop("compile_seconds", None)


CHANGES = [rename_an_array, drop_a_row, other_types, no_times, no_records]


@pytest.mark.parametrize("change", CHANGES)
def test_a_chunk_of_another_version_is_done_again(
    tmp_path: Path, reference: Reference, change: Callable[..., None]
) -> None:
    interrupted(reference, tmp_path / "out")
    rewrite(tmp_path / "out" / "chunks" / "00000.npz", change)
    assert any("chunk 0 is damaged" in line for line in reference.run(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_another_version_is_left_out(
    tmp_path: Path, compiled: Reference, change: Callable[..., None]
) -> None:
    interrupted(compiled, tmp_path / "out")
    rewrite(tmp_path / "out" / "checkpoints" / "00001.npz", change)
    said = compiled.run(tmp_path / "out")
    assert any("the checkpoint of chunk 1 is damaged" in line for line in said)
