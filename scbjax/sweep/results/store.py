"""What a run keeps on disk: a manifest, finished chunks, and checkpoints of the unfinished one.

Layout of a results directory::

    OUT/manifest.json        the study, its fingerprint, and how it was cut into chunks
    OUT/chunks/00000.npz     a finished chunk
    OUT/checkpoints/00001.npz  a chunk in the middle
    OUT/STUDY.nc             the dataset, once every chunk is there

Each file appears under its name only when it is whole (written aside, synced, renamed), and
carries a checksum, so that a run can be stopped at any moment and what was damaged afterwards is
noticed. No file holds anything but plain arrays and JSON: reading one never runs code.
"""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scbjax.base import Experiment, StudyError
from scbjax.sweep.plan.plans import Chunk, Layout, Plan, plan_with_layout
from scbjax.sweep.results.arrays import (
    PARTIAL,
    Arrays,
    DamagedError,
    Facts,
    atomic_file,
    facts_in,
    open_regular,
    read_arrays,
    write_arrays,
)
from scbjax.sweep.study.files import Study, fingerprint, parse_study, to_toml
from scbjax.sweep.study.locating import check_name

FORMAT = 2
"""Version of the directory layout, and of what chunks hold: since 2, ``diverged_at``."""
_NUMBERED = "[0-9]*.npz"
_FINGERPRINT = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What a results directory is for.

    Attributes:
        name: the study's name.
        fingerprint: of the study.
        study: its resolved text, as TOML.
        layout: how the plan cuts every program.
        num_chunks: chunks of the plan.
        provenance: versions, device, random number generator and commit of the run that began it.
        format: version of the layout.
    """

    name: str
    fingerprint: str
    study: str
    layout: Layout
    num_chunks: int
    provenance: Mapping[str, str]
    format: int = FORMAT

    @classmethod
    def of(cls, plan: Plan, provenance: Mapping[str, str]) -> "Manifest":
        """The manifest of a plan."""
        return cls(
            name=plan.study.name,
            fingerprint=plan.fingerprint,
            study=to_toml(plan.study),
            layout=plan.layout,
            num_chunks=len(plan.chunks),
            provenance=dict(provenance),
        )


@dataclass(frozen=True)
class Status:
    """How far the run in a directory is.

    Attributes:
        out: the directory.
        manifest: what it is for.
        chunks_done: finished chunks.
        checkpoints: chunks that were left in the middle.
        dataset: the dataset, if it has been written.
    """

    out: Path
    manifest: Manifest
    chunks_done: int
    checkpoints: int
    dataset: Path | None

    @property
    def complete(self) -> bool:
        """Whether the dataset is there."""
        return self.dataset is not None


@dataclass(frozen=True)
class UnderWay:
    """A chunk that was left in the middle, as its checkpoint has it.

    Attributes:
        chunk: its place in the plan.
        records: that are done.
        num_records: that it will have.
    """

    chunk: int
    records: int
    num_records: int


@dataclass(frozen=True)
class Advance:
    """How much of a run's work is on the disk.

    Attributes:
        fraction: of the work of the whole study.
        under_way: the chunks that have a checkpoint.
    """

    fraction: float
    under_way: tuple[UnderWay, ...]


class Store:
    """The results directory of one study.

    Args:
        out: the directory; it is made when something is written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is."""
        return self.out / "manifest.json"

    @property
    def experiment_path(self) -> Path:
        """Where the file is kept that the experiment was read from, if it was one of the user's."""
        return self.out / "experiment.py"

    def chunk_path(self, chunk: Chunk) -> Path:
        """Where a finished chunk is."""
        return self._path("chunks", chunk)

    def checkpoint_path(self, chunk: Chunk) -> Path:
        """Where the checkpoint of a chunk is."""
        return self._path("checkpoints", chunk)

    def dataset_path(self, name: str) -> Path:
        """Where the dataset of a study is."""
        return self.out / f"{check_name(name)}.nc"

    def read_manifest(self) -> Manifest | None:
        """The manifest, or None where no run has begun.

        Raises:
            DamagedError: it is there and can't be understood.
            StudyError: it can't be read, or another version wrote it.
        """
        try:
            with open_regular(self.manifest_path) as file:
                content = json.load(file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StudyError(f"{self.manifest_path} can't be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise DamagedError(str(error)) from None
        found = content.get("format") if isinstance(content, dict) else None
        if type(found) is int and found != FORMAT:
            raise StudyError(
                f"{self.manifest_path} has format {found}; this version reads {FORMAT}: "
                f"choose another directory with --out, or move this one aside with --force"
            )
        try:
            return _read_manifest(content)
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedError(str(error)) from None

    def write_manifest(self, manifest: Manifest) -> None:
        """Begins a run: makes the directory and says what it is for."""
        with atomic_file(self.manifest_path) as file:
            file.write(json.dumps(asdict(manifest), indent=1).encode())

    def write_experiment(self, source: str) -> None:
        """Keeps the text of the experiment's file, if it has one."""
        if source:
            with atomic_file(self.experiment_path) as file:
                file.write(source.encode())

    def save_chunk(self, plan: Plan, chunk: Chunk, arrays: Arrays, facts: Facts) -> None:
        """Keeps a finished chunk, and forgets its checkpoint."""
        write_arrays(self._path("chunks", chunk), arrays, {**_identity(plan, chunk), **facts})
        self.forget_checkpoint(chunk)

    def load_chunk(self, plan: Plan, chunk: Chunk) -> tuple[Arrays, Facts]:
        """A finished chunk's arrays and facts.

        Raises:
            FileNotFoundError: it isn't there.
            DamagedError: it is there, and isn't this chunk of this plan as it was written.
        """
        return self._load("chunks", plan, chunk)

    def load_chunk_array(self, chunk: Chunk, name: str) -> npt.NDArray[Any]:
        """One array of a finished chunk that :meth:`load_chunk` has found to be whole."""
        with np.load(self._path("chunks", chunk), allow_pickle=False) as members:
            return np.asarray(members[name])

    def chunk_bytes(self) -> int:
        """Size of all finished chunks."""
        return sum(path.stat().st_size for path in self.out.glob("chunks/[0-9]*.npz"))

    def save_checkpoint(self, plan: Plan, chunk: Chunk, arrays: Arrays, facts: Facts) -> None:
        """Keeps a chunk in the middle, instead of its earlier checkpoint."""
        write_arrays(self._path("checkpoints", chunk), arrays, {**_identity(plan, chunk), **facts})

    def load_checkpoint(self, plan: Plan, chunk: Chunk) -> tuple[Arrays, Facts]:
        """A chunk in the middle; see :meth:`load_chunk`."""
        return self._load("checkpoints", plan, chunk)

    def _path(self, kind: str, chunk: Chunk) -> Path:
        return self.out / kind / _file_name(chunk)

    def _load(self, kind: str, plan: Plan, chunk: Chunk) -> tuple[Arrays, Facts]:
        arrays, facts = read_arrays(self._path(kind, chunk))
        for key, value in _identity(plan, chunk).items():
            if facts.get(key) != value:
                raise DamagedError(f"its {key} is {facts.get(key)}, not {value}")
        return arrays, facts

    def forget_checkpoint(self, chunk: Chunk) -> None:
        """Removes the checkpoint of a chunk that needs it no more, if there is one."""
        self._path("checkpoints", chunk).unlink(missing_ok=True)

    def remove_unfinished(self) -> int:
        """Removes the files that an earlier run was about to write when it ended; their number.

        Only the process that runs the study may do so: another one's files look the same.
        """
        found = [
            path
            for folder in (self.out, self.out / "chunks", self.out / "checkpoints")
            for path in folder.glob(PARTIAL.format("*"))
        ]
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    def holds_results(self) -> bool:
        """Whether a run was begun here; a directory that is used for other things is left alone."""
        return self.manifest_path.exists() or (self.out / "chunks").exists()

    def fingerprints(self) -> set[str]:
        """The fingerprints of the chunks and checkpoints in the directory that can be read."""
        found = set()
        for path in (*self.out.glob("chunks/*.npz"), *self.out.glob("checkpoints/*.npz")):
            with contextlib.suppress(FileNotFoundError, DamagedError):
                found.add(str(read_arrays(path)[1].get("fingerprint")))
        return found

    def layout_of_chunks(self, plan: Plan) -> Layout:
        """How the chunks and checkpoints in the directory are cut; as the plan is, without any."""
        layout = list(plan.layout)
        for path in (*self.out.glob("chunks/*.npz"), *self.out.glob("checkpoints/*.npz")):
            with contextlib.suppress(FileNotFoundError, DamagedError, LookupError, TypeError):
                facts = read_arrays(path)[1]
                if facts["fingerprint"] == plan.fingerprint:
                    layout[facts["program"]] = tuple(facts["layout"])
        return tuple(layout)

    def move_aside(self) -> Path:
        """Renames the directory to the first free OUT.old-N; returns the new name."""
        number = 1
        while (target := self.out.with_name(f"{self.out.name}.old-{number}")).exists():
            number += 1
        self.out.rename(target)
        return target


def default_out(study: Study, results: Path = Path("results")) -> Path:
    """Where a study's results go unless the user says otherwise.

    Args:
        study: the study.
        results: the directory that holds all results.

    Returns:
        ``results/NAME``, or ``results/NAME-<8 digits of the fingerprint>`` where that directory
        holds the results of other settings.
    """
    out = results / check_name(study.name)
    try:
        manifest = Store(out).read_manifest()
    except (DamagedError, StudyError):
        return out
    own = fingerprint(study)
    if manifest is None or manifest.fingerprint == own:
        return out
    if manifest.study == to_toml(study):  # the file of its experiment has changed: the run says so
        return out
    return out.with_name(f"{out.name}-{own[:8]}")


def status(out: Path) -> Status:
    """How far the run in a directory is, without reading its arrays.

    Raises:
        StudyError: the directory holds no run, or its manifest can't be understood.
    """
    store = Store(out)
    try:
        manifest = store.read_manifest()
    except DamagedError:
        raise StudyError(f"{store.manifest_path} is damaged") from None
    if manifest is None and (out / "cell-0").is_dir():
        raise StudyError(
            f"{out} holds a search; give one of its rounds, such as {out}/cell-0/round-0"
        )
    if manifest is None:
        raise StudyError(f"{out} holds no results: there is no {store.manifest_path.name} in it")
    dataset = store.dataset_path(manifest.name)
    return Status(
        out=out,
        manifest=manifest,
        chunks_done=_count(out / "chunks"),
        checkpoints=_count(out / "checkpoints"),
        dataset=dataset if dataset.exists() else None,
    )


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.glob(_NUMBERED))


def advance(found: Status, experiments: Sequence[Experiment] = ()) -> Advance | None:
    """How much of a run's work is done, down to the records of the chunks under way.

    Checksums are left aside, and so are files that can't be understood: the next run of the study
    says what is damaged.

    Returns:
        It, or None if the study in the manifest is not one of this version.
    """
    manifest = found.manifest
    try:
        study = parse_study(manifest.study, manifest.name, experiments=experiments)
        plan = plan_with_layout(study, manifest.layout)
    except StudyError:
        return None
    if plan.fingerprint != manifest.fingerprint:
        return None
    done = {chunk.index: 1.0 for chunk in _chunks_in(found.out / "chunks", plan)}
    under_way = []
    for chunk in _chunks_in(found.out / "checkpoints", plan):
        total = plan.programs[chunk.program].num_records
        facts = facts_in(found.out / "checkpoints" / _file_name(chunk))
        records = facts.get("records")
        ours = all(facts.get(key) == value for key, value in _identity(plan, chunk).items())
        if ours and chunk.index not in done and type(records) is int and 0 <= records <= total:
            under_way.append(UnderWay(chunk.index, records, total))
    done.update({each.chunk: each.records / each.num_records for each in under_way})
    work = {chunk.index: plan.seconds_of(chunk) for chunk in plan.chunks}
    part = sum(work[index] * share for index, share in done.items()) / sum(work.values())
    return Advance(part, tuple(under_way))


def _chunks_in(folder: Path, plan: Plan) -> list[Chunk]:
    """The chunks of a plan that have a file in a folder."""
    names = {path.name for path in folder.glob(_NUMBERED)}
    return [chunk for chunk in plan.chunks if _file_name(chunk) in names]


def _file_name(chunk: Chunk) -> str:
    return f"{chunk.index:05d}.npz"


def _read_manifest(content: Any) -> Manifest:  # noqa: ANN401 - whatever JSON holds
    """The manifest that a file holds; what isn't one raises KeyError, TypeError or ValueError."""
    texts = {name: content[name] for name in ("name", "fingerprint", "study")}
    provenance = {**content["provenance"]}
    if not all(isinstance(text, str) for text in (*texts.values(), *provenance.values())):
        raise TypeError("it has something else in the place of a text")
    check_name(content["name"])
    if not _FINGERPRINT.fullmatch(content["fingerprint"]):
        raise ValueError("it has something else in the place of a fingerprint")
    layout = tuple((outer, inner, block) for outer, inner, block in content["layout"])
    numbers = [number for shape in layout for number in shape] + [content["num_chunks"]]
    if not all(type(number) is int for number in numbers):
        raise TypeError("it has something else in the place of a number")
    if any(min(shape) < 1 for shape in layout):
        raise ValueError("its layout has an empty chunk")
    return Manifest(**{**content, "layout": layout, "provenance": provenance})


def _identity(plan: Plan, chunk: Chunk) -> dict[str, Any]:
    """What tells a chunk from that of any other plan."""
    return {
        "fingerprint": plan.fingerprint,
        "program": chunk.program,
        "outer": list(chunk.outer),
        "inner": list(chunk.inner),
        "layout": list(plan.layout[chunk.program]),
    }
