"""Bad input: whatever is in a file or an argument, the answer is a result or one sentence.

A small coverage-guided fuzzer: an input that reaches lines in an order not seen before joins those
that further ones are made of. It needs no package, works with every Python, and gives the same
inputs for the same seed. `python tests/sweep/test_fuzz.py TARGET` feeds a target by libFuzzer
instead, where atheris is installed.
"""

import faulthandler
import io
import json
import os
import random
import re
import signal
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias
from unittest.mock import Mock

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from scbjax import cli
from scbjax.base import StudyError
from scbjax.experiments.scb import EXPERIMENT
from scbjax.sweep.engine import execute, session
from scbjax.sweep.plan.plans import plan_with_layout
from scbjax.sweep.results.arrays import DamagedError
from scbjax.sweep.results.dataset import check_arrays, read_dataset, save_dataset
from scbjax.sweep.results.store import Manifest, Store, advance, default_out, status
from scbjax.sweep.study.fields import fields_of
from scbjax.sweep.study.files import fingerprint, load_study, parse_study, to_toml

FIELDS = fields_of(EXPERIMENT)
RUNS = {"study": 50_000, "override": 20_000, "manifest": 15_000, "chunk": 8_000, "member": 5_000}
RUNS |= {"facts": 5_000, "dataset": 2_000, "command": 2_000}
"""Inputs of each target in the slow suite: more than 10^5 together."""
SECONDS = 20
"""No input may take as long."""

TEXT = """
title = "A study"
question = "Does it hold?"
small = ["steps=10"]
[task]
num_tokens = 2
context_length = 6
sparsity = 1
[train]
batch_size = 4
steps = 20
record_every = 10
optimizer = 'sgd'
[record]
variables = ["value_distance", "stage"]
snapshots = [10]
[axes]
seed = { range = [0, 2] }
threshold = { log_range = [0.1, 2, 3] }
[[zip]]
name = 'arm'
stop_level = [1, inf]
train.rounding_level = [0.1, 0.2]
"""
COMMANDS = [
    "run quickstart --set steps=10 --memory 2GiB --out kept --cpu-devices 2",
    "run fig1 --small --force --no-figure --precision high --compilation-cache off",
    "show quickstart --set axes.seed=[1,2] --memory 500MB",
    "status kept",
    "verify kept --count 3 --seed 1",
    "rerun kept.nc --out other",
    "figure quickstart --results results --out pictures",
    "bench step --quick --out there",
    "list",
    "--version",
]
OVERRIDES = [
    *("train.steps=20", "axes.l1=[1e-4, 1e-3]", "axes.seed={range=[0, 4]}", "optimizer=sgd"),
    "zip.arm=[1, 0]",
]

# What any of the readers gives a meaning.
WORDS = [
    *(word.encode() for path in FIELDS for word in (path, path.rpartition(".")[2])),
    *b"[ ] { } = , . : ' \" # \\ \n \r \0 inf nan -nan 1e999 -0 0x 0xfffffffff".split(b" "),
    *(b"1_000", b"true", b"null"),
    *(b"[axes]", b"[[zip]]", b"range", b"log_range", b"name", b"small", b"..", b"/", b"\\u0000"),
    *(b"../../x", b"/etc/passwd", b"\xff", b"\xed\xb0\x80", b"9" * 400, b"0x" + b"f" * 4000),
    *(
        b"[" * 300,
        b"{'a':" * 200,
        b"'descr'",
        b"'shape'",
        b"|O",
        b"<f8",
        b"PK\x03\x04",
        b"PK\x05\x06",
    ),
    *(b"1979-05-27T07:32:00Z", b"__import__('os')", b"\x80\x04c", b"2147483648", b"-1", b"a" * 300),
]

Target: TypeAlias = Callable[[Path, bytes], None]


PLAN = plan_with_layout(parse_study(TEXT, "kept", ("record.snapshots=[]",)), [(2, 6, 1)])


def arrays_of_a_chunk() -> dict[str, Any]:
    shape = PLAN.chunks[0].shape
    arrays: dict[str, Any] = {
        "value_distance": np.ones((*shape, 3), np.float32),
        "stage": np.ones((*shape, 3), np.int32),
        "diverged_at": np.full(shape, -1, np.int32),
    }
    for name in ("transition_signal", "pattern_signal", "stationary_norm"):
        arrays[name] = np.ones(shape, np.float32)
    return arrays


# ------------------------------------------------------------------------------- what is fed


def feed_study(folder: Path, data: bytes) -> None:
    path = folder / "kept.toml"
    path.write_bytes(data)
    study = load_study(path)
    again = parse_study(to_toml(study), study.name)
    assert fingerprint(again) == fingerprint(study)


def feed_override(_: Path, data: bytes) -> None:
    parse_study(TEXT, "kept", (data.decode(errors="surrogateescape"),))


def feed_manifest(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    default_out(PLAN.study, folder.parent)
    try:
        execute._begun(Store(folder), PLAN)
    finally:
        advance(status(folder))


def feed_chunk(folder: Path, data: bytes) -> None:
    (folder / "chunks").mkdir(exist_ok=True)
    (folder / "chunks" / "00000.npz").write_bytes(data)
    Store(folder).fingerprints()
    Store(folder).layout_of_chunks(PLAN)
    session.load_chunk(Store(folder), PLAN, PLAN.chunks[0])


def packed(members: dict[str, bytes]) -> bytes:
    """A zip file whose own checksums are right."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def feed_member(folder: Path, data: bytes) -> None:
    """One array of a chunk, in a file that is otherwise whole."""
    members = {f"{name}.npy": npy(array) for name, array in arrays_of_a_chunk().items()}
    meta = npy(np.frombuffer(b'{"sha256": ""}', np.uint8))
    feed_chunk(folder, packed({**members, "meta.npy": meta, "stage.npy": data}))


def feed_facts(folder: Path, data: bytes) -> None:
    """The description of a chunk, with the checksum that it should have."""
    arrays = arrays_of_a_chunk()
    check_arrays(PLAN, PLAN.chunks[0], arrays)
    try:
        facts = {**json.loads(data), "sha256": DIGEST}
    except (ValueError, TypeError, RecursionError):
        facts = None
    meta = data if facts is None else json.dumps(facts).encode()
    members = {f"{name}.npy": npy(array) for name, array in arrays.items()}
    feed_chunk(folder, packed({**members, "meta.npy": npy(np.frombuffer(meta, np.uint8))}))


def feed_dataset(folder: Path, data: bytes) -> None:
    (folder / "kept.nc").write_bytes(data)
    read_dataset(folder / "kept.nc")


def feed_command(folder: Path, data: bytes) -> None:
    """Arguments, a line each; what would start JAX, a benchmark or a drawing ends there."""
    arguments = [part.decode(errors="surrogateescape") for part in data.split(b"\n")]
    out, err = io.StringIO(), io.StringIO()
    reached = StudyError("everything was accepted")
    with pytest.MonkeyPatch.context() as patch, chdir(folder):
        for place in STARTS:
            patch.setattr(place, Mock(side_effect=reached))
        with redirect_stdout(out), redirect_stderr(err):
            status = cli.main(arguments)
    told = err.getvalue().splitlines()
    assert status in (0, 2)
    if status == 2:
        assert told[-1].startswith("scbjax: "), told
        raise StudyError(told[-1])


STARTS = (
    "scbjax.sweep.engine.backend.keep_programs",
    "scbjax.sweep.scripts.figures.draw_figure",
    "scbjax.sweep.scripts.benchmarks.run_benchmark",
    "scbjax.cli.starting.dask_place",
    "scbjax.sweep.engine.backend.find_devices",
    "scbjax.sweep.engine.backend.probe_devices",
)

TARGETS: dict[str, Target] = {
    "study": feed_study,
    "override": feed_override,
    "manifest": feed_manifest,
    "chunk": feed_chunk,
    "member": feed_member,
    "facts": feed_facts,
    "dataset": feed_dataset,
    "command": feed_command,
}


def whole_chunk(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """The file of a chunk, and its facts with the checksum."""
    store, chunk = Store(folder / "made"), PLAN.chunks[0]
    store.save_chunk(PLAN, chunk, arrays_of_a_chunk(), {"run_seconds": 1.0, "compile_seconds": 2.0})
    path = store.out / "chunks" / "00000.npz"
    with np.load(path) as members:
        facts = json.loads(members["meta"].tobytes())
    return path.read_bytes(), facts


with tempfile.TemporaryDirectory() as _made:
    CHUNK, FACTS = whole_chunk(Path(_made))
    DIGEST = FACTS["sha256"]


def manifest(folder: Path) -> bytes:
    Store(folder).write_manifest(Manifest.of(PLAN, {"device": "abacus"}))
    return Store(folder).manifest_path.read_bytes()


def dataset(folder: Path) -> bytes:
    import xarray

    found = xarray.Dataset({"x": (("seed", "step"), np.ones((2, 3), np.float32))}, {"seed": [1, 2]})
    save_dataset(found.assign_attrs(name="kept", study=TEXT), folder / "kept.nc")
    return (folder / "kept.nc").read_bytes()


SEEDS: dict[str, Callable[[Path], list[bytes]]] = {
    "study": lambda _: [TEXT.encode(), to_toml(PLAN.study).encode()],
    "override": lambda _: [override.encode() for override in OVERRIDES],
    "manifest": lambda folder: [manifest(folder)],
    "chunk": lambda _: [CHUNK],
    "member": lambda _: [npy(arrays_of_a_chunk()["stage"])],
    "facts": lambda _: [json.dumps(FACTS).encode()],
    "dataset": lambda folder: [dataset(folder)],
    "command": lambda _: [line.replace(" ", "\n").encode() for line in COMMANDS],
}
"""Inputs that are right, to begin with."""


# ------------------------------------------------------------------------------- what is forbidden

FORBIDDEN = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "socket.connect")
WRITING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
MAKING_CODE = ("typing", "collections", "dataclasses")
_guarded: list[Path] = []  # the folder that may be written, while something is fed
_hooked: list[bool] = []


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Hears of everything that Python does; raises where it must not be done."""
    if not _guarded:
        return
    # Modules are imported when they are used; their code has a file. Type hints, which the parser
    # of the command line asks for, are strings that `typing` evaluates, and classes of tuples and
    # of data have methods that are made of one.
    runs = event == "exec" and arguments[0].co_filename == "<string>"
    runs = runs and sys._getframe(1).f_globals.get("__name__") not in MAKING_CODE
    if runs or event.startswith(FORBIDDEN):
        raise AssertionError(f"{event}: {arguments}")
    writes = event == "open" and isinstance(arguments[2], int)
    writes = writes and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if (writes or event in WRITING) and not isinstance(arguments[0], int):
        place = os.path.realpath(os.fsdecode(arguments[0]))
        if not place.startswith(str(_guarded[0])):
            raise AssertionError(f"{event} outside: {place}")


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Forbids code from a file, writing anywhere but in the folder, and taking too long."""
    if not _hooked:
        sys.addaudithook(audit)
        _hooked.append(True)
    _guarded.append(Path(os.path.realpath(folder)))
    signal.alarm(SECONDS)
    # An alarm waits for the next line of Python, which code of a library may never come back to.
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    try:
        yield
    finally:
        _guarded.clear()
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()


def took_too_long(*_: object) -> None:
    raise AssertionError(f"an input took more than {SECONDS} s")


def feed(target: Target, folder: Path, data: bytes) -> bool:
    """Feeds an input; returns whether it was taken. What is no sentence for the user is raised."""
    try:
        target(folder, data)
    except DamagedError:
        return False
    except StudyError as error:
        if "\n" in str(error):
            raise AssertionError("more than one line") from error
        return False
    return True


# ------------------------------------------------------------------------------- the fuzzer

FOLLOWED = ("/scbjax/sweep/", "/tomllib/", "/json/", "/numpy/lib/", "zipfile.py", "/zipfile/")


class Coverage:
    """The pairs of lines that follow each other in what is fed."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, int, int]] = set()
        self._new = False
        self._last = 0
        self._followed: dict[object, bool] = {}

    def _enter(self, frame: FrameType, _: str, __: object) -> Any:  # noqa: ANN401
        code = frame.f_code
        followed = self._followed.get(code)
        if followed is None:
            followed = any(part in code.co_filename for part in FOLLOWED)
            self._followed[code] = followed
        return self._step if followed else None

    def _step(self, frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401
        if event == "line":
            pair = (id(frame.f_code), self._last, frame.f_lineno)
            self._last = frame.f_lineno
            if pair not in self.seen:
                self.seen.add(pair)
                self._new = True
        return self._step

    def of(self, function: Callable[[], bool]) -> tuple[bool, bool]:
        """What the function returns, and whether it did anything new."""
        before = sys.gettrace()
        self._new, self._last = False, 0
        sys.settrace(self._enter)
        try:
            taken = function()
        finally:
            sys.settrace(before)
        return taken, self._new


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    """A new input: one of those that are there, changed in a few places."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 2, 4, 16, 64)))
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[start:end]
        elif kind == 2:
            data[start:end] = rng.choice(WORDS)
        elif kind == 3:
            data[start:start] = data[start:end] * rng.choice((1, 2, 30))
        elif kind == 4:
            other = rng.choice(corpus)
            first = rng.randrange(len(other) + 1)
            data[start:end] = other[first : first + rng.choice((1, 8, 64))]
        elif kind == 5 and (numbers := list(re.finditer(rb"\d+", data))):
            place = rng.choice(numbers)
            data[place.start() : place.end()] = rng.choice(
                (b"0", b"-1", b"1e9", b"4294967296", b"3")
            )
        else:
            data[start:end] = rng.randbytes(rng.choice((1, 2, 8)))
    return bytes(data)


def fuzz(name: str, folder: Path, runs: int, seed: int) -> dict[str, int]:
    """Feeds a target so many inputs; returns the counts. What is wrong is raised with its input."""
    rng, coverage = random.Random(f"{name} {seed}"), Coverage()
    folder.mkdir(exist_ok=True)
    corpus, target, taken = SEEDS[name](folder), TARGETS[name], 0
    for data in corpus:
        assert feed(target, folder, data) or name in ("member", "command"), name
    signal.signal(signal.SIGALRM, took_too_long)
    for _ in range(runs):
        data = mutated(rng, corpus)
        try:
            with guarded(folder):
                was_taken, is_new = coverage.of(lambda data=data: feed(target, folder, data))  # type: ignore[misc]
        except BaseException as error:
            error.add_note(f"input of {name}: {data!r}")
            raise
        taken += was_taken
        if is_new and len(data) < 20_000:
            corpus.append(data)
    return {"inputs": runs, "taken": taken, "kept": len(corpus), "pairs": len(coverage.seen)}


@pytest.mark.parametrize("name", ["study", "override", "manifest", "chunk", "command"])
def test_a_few_mutated_inputs(tmp_path: Path, name: str) -> None:
    fuzz(name, tmp_path / "out", runs=50, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_many_mutated_inputs(tmp_path: Path, name: str) -> None:
    counts = fuzz(name, tmp_path / "out", RUNS[name], seed=0)
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    print(f"\nfuzzed {name}: {told}; tracebacks, hangs, writes outside: 0", end="")


def test_the_slow_suite_feeds_enough() -> None:
    assert sum(RUNS.values()) >= 10**5


# ------------------------------------------------------------------------------- names and paths

NAMES = st.text(st.characters(), max_size=40) | st.sampled_from(
    [
        "../x",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a\0b",
        "x" * 300,
        "x/y",
        "~",
        "-",
        "--",
        "\udcff",
        "CON",
    ]
)
FEW = settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FEW
@given(name=NAMES)
def test_names_in_a_manifest_never_become_other_places(tmp_path: Path, name: str) -> None:
    content = json.loads(json.dumps({"name": name}))
    manifest = {**content, "fingerprint": 64 * "0", "study": "", "layout": [], "num_chunks": 0}
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "provenance": {}, "format": 2}))
    try:
        found = status(tmp_path)
    except StudyError:
        return
    assert Store(tmp_path).dataset_path(found.manifest.name).parent == tmp_path


def feed_atheris() -> None:
    """Hands a target to libFuzzer: ``test_fuzz.py study -runs=100000 -seed=1``."""
    import atheris

    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        seeds = SEEDS[name](folder)
        corpus = folder / "corpus"
        corpus.mkdir()
        for number, data in enumerate(seeds):
            (corpus / str(number)).write_bytes(data)
        atheris.instrument_all()
        atheris.Setup(
            [*sys.argv, str(corpus)], lambda data: feed(TARGETS[name], folder, data) and None
        )
        atheris.Fuzz()


if __name__ == "__main__":
    feed_atheris()
