"""Sweeps from Python: the bits of the command, and nothing left behind."""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import xarray

import scbjax
from scbjax import cli
from scbjax.experiments.scb_cost import COST
from scbjax.sweep import StudyError, load, run
from scbjax.sweep.engine import execute
from scbjax.sweep.engine.chunks import ChunkResult, Executor
from scbjax.sweep.engine.engines import LocalEngine, Session
from scbjax.sweep.plan.plans import Plan, make_plan
from scbjax.sweep.results.dataset import checksum_path
from scbjax.sweep.study.files import parse_study

TEXT = """
title = "A tiny study"
small = ["steps=4"]
[task]
num_tokens = 2
context_length = 6
[train]
batch_size = 4
steps = 8
record_every = 2
refit_samples = 16
[record]
variables = ["value_distance", "attention_distance", "stage"]
final = true
[axes]
seed = [5, 3]
sparsity = [1, 2]
"""
STUDY = {
    "title": "A tiny study",
    "small": ("steps=4",),
    "task": {"num_tokens": 2, "context_length": np.int64(6)},
    "train": {"batch_size": 4, "steps": 8, "record_every": 2, "refit_samples": 16},
    "record": {"variables": ("value_distance", "attention_distance", "stage"), "final": True},
    "axes": {"seed": np.array([5, 3]), "sparsity": range(1, 3)},
}
MADE: dict[tuple[str, object], Executor] = {}
"""What has compiled the programs of a plan, for all tests."""

WAIT_SECONDS = 120.0


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with one study; temporary files go to a folder that must be empty."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "tiny.toml").write_text(TEXT)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert list(temporary.iterdir()) == []


def make_executor(plan: Plan) -> Executor:
    return MADE.setdefault((plan.fingerprint, plan.layout), Executor(plan))


@pytest.fixture
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets runs in this process share the programs that they have compiled."""
    monkeypatch.setattr(execute, "LocalEngine", lambda *_: LocalEngine(make_executor))


def memory_of_a_seed() -> int:
    """Bytes that cut the study into a chunk of each seed."""
    (program,) = make_plan(parse_study(TEXT, "tiny")).programs
    return COST.chunk_bytes(program.fixed, (1, 2), 1)


BEFORE = ["sweeps", "temporary"]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def of_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of the study."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "tiny.toml").write_text(TEXT)
    options = ["--no-figure", "--cpu-devices", "1", "--compilation-cache", "off"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "LocalEngine", lambda *_: LocalEngine(make_executor))
        given = ["run", str(folder / "tiny.toml"), "--out", str(folder / "out"), *options]
        assert cli.main(given) == 0
    return folder / "out"


def assert_same(found: xarray.Dataset, expected: xarray.Dataset) -> None:
    assert list(found.variables) == list(expected.variables)
    for name in expected.variables:
        assert found[name].dtype == expected[name].dtype
        assert found[name].values.tobytes() == expected[name].values.tobytes(), name
        assert found[name].attrs == expected[name].attrs


class Engine(LocalEngine):
    """The local engine, which calls something after each chunk and counts them.

    Args:
        after: is called with the number of chunks that are done.
    """

    def __init__(self, after: Callable[[int], object] = lambda _: None) -> None:
        super().__init__(make_executor)
        self.ran: list[int] = []
        self._after = after

    def run(
        self, plan: Plan, indices: Sequence[int], session: Session
    ) -> Iterator[tuple[int, ChunkResult]]:
        for index, result in super().run(plan, indices, session):
            self.ran.append(index)
            self._after(len(self.ran))
            yield index, result


# ------------------------------------------------------------------------- as the command has it


TIMES = {"wall_seconds", "compile_seconds"}


def test_a_run_has_the_bits_of_the_command(place: Path, of_command: Path) -> None:
    found, expected = run(STUDY, progress=False), load(of_command)
    assert_same(found, expected)
    assert {key: found.attrs[key] for key in expected.attrs.keys() - TIMES - {"study", "name"}} == {
        key: expected.attrs[key] for key in expected.attrs.keys() - TIMES - {"study", "name"}
    }
    assert found.attrs["name"] == "study"
    assert names_in(place) == BEFORE


@pytest.mark.usefixtures("compiled_once")
@pytest.mark.parametrize(
    "study",
    [
        "tiny",
        pytest.param(Path("sweeps/tiny.toml"), marks=pytest.mark.slow),
        pytest.param("sweeps/tiny.toml", marks=pytest.mark.slow),
    ],
)
def test_a_study_is_a_name_or_a_file_too(place: Path, of_command: Path, study: str | Path) -> None:
    found, expected = run(study, progress=False), load(of_command)
    assert_same(found, expected)
    assert found.attrs.keys() == expected.attrs.keys()
    for key in expected.attrs.keys() - TIMES:
        assert found.attrs[key] == expected.attrs[key], key
    assert names_in(place) == BEFORE


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_once")
def test_what_is_set_is_that_of_the_command(place: Path) -> None:
    settings = {"steps": np.int32(4), "train.l1": np.float32(1e-4)}
    axes = {"seed": range(7, 9), "learning_rate_2": np.geomspace(1e-3, 1e-2, 2)}
    found = run("tiny", set=settings, axes=axes, small=True, name="other", progress=False)
    words = ["steps=4", "train.l1=1e-4", "axes.seed={range=[7, 9]}"]
    words.append("axes.learning_rate_2={log_range=[1e-3, 1e-2, 2]}")
    given = [word for override in words for word in ("--set", override)]
    options = ["--small", "--no-figure", "--compilation-cache", "off", "--out", "out"]
    assert cli.main(["run", "tiny", *given, *options]) == 0
    expected = load("out")
    assert_same(found, expected)
    assert found.attrs["fingerprint"] == expected.attrs["fingerprint"]
    assert found.attrs["name"] == "other"
    assert place.is_dir()


@pytest.mark.slow
def test_what_the_session_has_set_changes_nothing(place: Path, of_command: Path) -> None:
    with jax.enable_x64(True), jax.default_matmul_precision("default"):
        assert_same(run(STUDY, progress=False), load(of_command))
    assert place.is_dir()


@pytest.mark.slow
def test_a_process_of_its_own_has_the_devices_and_bits_of_the_command(place: Path) -> None:
    code = "import scbjax\nscbjax.sweep.run('tiny', out='python', cpu_devices=2)\n"
    for words in (
        ["-c", code],
        ["-m", "scbjax", "run", "tiny", "--out", "command", "--cpu-devices", "2", "--no-figure"],
    ):
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
    found, expected = load("python"), load("command")
    assert_same(found, expected)
    assert found.attrs["device"] == expected.attrs["device"]
    assert found.attrs["device"].startswith("2 x cpu")
    assert place.is_dir()


@pytest.mark.slow
def test_a_search_is_run_too(place: Path) -> None:
    search = {"field": "learning_rate_1", "first": 0.01, "last": 0.1, "points": 3, "rounds": 2}
    goal = {"goal": "attention_distance", "direction": "falls", "level": 0.1}
    record = {"variables": ["attention_distance", "samples", "stage"]}
    study = {**STUDY, "search": search | goal, "record": record}
    found = run(study, progress=False)
    assert dict(found.sizes) == {"seed": 2, "sparsity": 2, "probe": 6}
    assert_same(run(study, out="out", progress=False), found)
    assert_same(load("out"), found)
    (place / "out" / "study.nc").unlink()
    with pytest.raises(StudyError, match=r"^out is not complete: 4 rounds of a search are done"):
        load("out")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="needs Dask")
def test_workers_of_dask_give_the_same_bits(place: Path, of_command: Path) -> None:
    assert_same(run(STUDY, engine="dask", cpu_devices=1, progress=False), load(of_command))
    assert place.is_dir()


# ------------------------------------------------------------------------------ ended and continued


def interrupt(count: int) -> Callable[[int], None]:
    """What presses Ctrl-C so many times after the first chunk."""

    def after(done: int) -> None:
        for _ in range(count if done == 1 else 0):
            os.kill(os.getpid(), signal.SIGINT)

    return after


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(place: Path, of_command: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="out has what it did"):
        run(
            STUDY, out="out", memory=memory_of_a_seed(), engine=Engine(interrupt(1)), progress=False
        )
    with pytest.raises(
        StudyError, match=r"^out is not complete: 1 of 2 chunks are done, 50% of the work"
    ):
        load("out")
    engine = Engine()
    found = run(STUDY, out="out", engine=engine, progress=False)
    assert engine.ran == [1]
    assert_same(found, load("out"))
    for name in ("value_distance", "attention"):
        np.testing.assert_allclose(found[name], load(of_command)[name], rtol=1e-4, atol=1e-7)
    again = Engine()
    assert_same(run(STUDY, out=place / "out", engine=again, progress=False), found)
    assert again.ran == []
    run(STUDY, out="out", engine=again, force=True, progress=False)
    assert again.ran
    assert (place / "out.old-1").is_dir()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_nothing_behind(place: Path, times: int) -> None:
    """Once: after the segment. Twice: at once, as without a run."""
    # A process that was started in the background ignores SIGINT from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    engine = Engine(interrupt(times))
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(STUDY, memory=memory_of_a_seed(), engine=engine, progress=False)
    assert engine.ran == [0]
    assert str(stopped.value).startswith("the run was stopped; nothing is kept") == (times == 1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert names_in(place) == BEFORE
    signal.signal(signal.SIGINT, before)


def test_an_error_leaves_nothing_behind(place: Path) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("an engine that fails")

    with pytest.raises(RuntimeError, match="an engine that fails"):
        run(STUDY, engine=Engine(fail), progress=False)
    assert names_in(place) == BEFORE


@pytest.mark.slow
def test_ctrl_c_in_a_process_leaves_nothing_behind(place: Path) -> None:
    code = "import scbjax\nscbjax.sweep.run('tiny', set={'steps': 10**8}, axes={'seed': [0]})\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(place / "temporary")},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "steps/s" in line:
            break
    assert any((place / "temporary").iterdir())
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode in {1, -signal.SIGINT}
    assert "KeyboardInterrupt: the run was stopped; nothing is kept" in told


# -------------------------------------------------------------------------------- what is shown


@pytest.mark.usefixtures("compiled_once")
def test_progress_is_shown_or_not(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(STUDY, set={"sparsity": [1, 2]}, progress=False)
    assert capsys.readouterr() == ("", "")
    run(STUDY, set={"sparsity": [1, 2]})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "scbjax: the setting 'sparsity=[1, 2]' is taken for axes.sparsity=[1, 2]" in shown.err
    assert "100%  4/4 trajectories" in shown.err
    assert place.is_dir()


# -------------------------------------------------------------------------------- what is wrong

BAD_INPUT: dict[str, tuple[dict[str, Any], str]] = {
    "no study": ({"study": 3}, "study must be a dictionary, a path or the name of a study, got 3"),
    "unknown study": ({"study": "tyni"}, "no study is called 'tyni'; did you mean 'tiny'?"),
    "unknown table": (
        {"study": {"tsk": {}}},
        "study: unknown table 'tsk'; did you mean 'task'?",
    ),
    "unknown field": (
        {"set": {"stps": 3}},
        "the setting 'stps=3': unknown field 'stps'; did you mean 'steps'?",
    ),
    "value of a field": (
        {"set": {"optimizer": "proximl"}},
        """the setting 'optimizer="proximl"': train.optimizer must be""",
    ),
    "unknown axis": ({"axes": {"sed": [1]}}, "the setting 'axes.sed=[1]': unknown field 'sed'"),
    "axis of one value": ({"axes": {"l1": 3}}, "axis train.l1 must be a list"),
    "axis of nothing": ({"axes": {"l1": ()}}, "axis train.l1 is empty"),
    "axis twice": ({"axes": {"l1": [0]}, "set": {"train.l1": 1}}, "l1 is in set and in axes"),
    "matrix": ({"axes": {"l1": np.eye(2)}}, "l1 must be an array of numbers or texts with one"),
    "set of Python": ({"axes": {"l1": {1}}}, "l1 must be a number, a text, true or false, a list"),
    "none": ({"set": {"l1": None}}, "l1 is None; leave it out, or give it a value"),
    "none in a table": ({"study": {"task": {"sparsity": None}}}, "task.sparsity is None; leave it"),
    "list of axes": ({"axes": [1]}, "axes must be a dictionary such as {'l1': [0, 1e-4]}, got [1]"),
    "number for a name": ({"set": {3: 1}}, "set must name fields, got 3"),
    "too many": ({"axes": {"seed": range(10**9)}}, "seed has 1000000000 points; at most 1000000"),
    "relation": ({"set": {"sparsity": 7}}, "tiny.toml with 'sparsity=7': task.sparsity = 7 is"),
    "name": ({"name": "a/b"}, "a study's name becomes a file name and must consist of"),
    "engine": ({"engine": "dsk"}, "no engine is called 'dsk'; did you mean 'dask'?"),
    "scheduler": ({"scheduler": "tcp://x"}, "scheduler 'tcp://x' is only for engine 'dask'"),
    "devices": ({"cpu_devices": 0}, "cpu_devices must be auto or an integer from 1 to"),
    "memory": ({"memory": "2XB"}, "memory must be a size such as 2GiB or 500MB, got '2XB'"),
    "number of bytes": ({"memory": -1}, "memory must be a number of bytes above 0 or a size"),
    "little memory": ({"memory": 1}, "memory"),
    "out": ({"out": ""}, "a path must not be empty or hold a null character, got ''"),
    "out is a file": ({"out": "sweeps/tiny.toml"}, "sweeps/tiny.toml can't be written"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence(place: Path, case: str) -> None:
    asked, sentence = BAD_INPUT[case]
    with pytest.raises(StudyError) as told:
        run(**{"study": "tiny", "progress": False, **asked})
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)
    assert "--" not in str(told.value)
    assert names_in(place) == BEFORE


@pytest.mark.usefixtures("compiled_once")
def test_other_results_are_left_alone(place: Path) -> None:
    first = run(STUDY, out="out", progress=False)
    with pytest.raises(StudyError, match="choose another directory with out, or move it aside"):
        run(STUDY, set={"steps": 4}, out="out", progress=False)
    assert_same(load("out"), first)
    assert place.is_dir()


def test_what_cant_be_loaded(place: Path, of_command: Path) -> None:
    dataset = of_command / "tiny.nc"
    assert_same(load(dataset), load(str(of_command)))
    (place / "results" / "tiny").mkdir(parents=True)
    (place / "results" / "tiny" / "manifest.json").write_text("{}")
    for path, sentence in {
        "results/tyni": "no folder or dataset 'results/tyni'; did you mean 'results/tiny'?",
        "sweeps": "sweeps holds no results: there is no manifest.json in it, and no dataset",
        "sweeps/tiny.toml": "sweeps/tiny.toml can't be read as a dataset",
        "results/tiny": "results/tiny/manifest.json is damaged",
    }.items():
        with pytest.raises(StudyError) as told:
            load(path)
        assert sentence in str(told.value)
    (place / "copy.nc").write_bytes(dataset.read_bytes())
    assert_same(load("copy.nc"), load(dataset))  # without its checksum beside it
    checksum_path(place / "copy.nc").write_text("0  copy.nc\n")
    with pytest.raises(StudyError, match=r"^copy.nc is damaged: its checksum does not hold"):
        load("copy.nc")


def test_the_names_are_where_they_are_looked_for() -> None:
    code = (
        "import sys, scbjax\n"
        "assert scbjax.sweep.run.__module__ == 'scbjax.sweep.python'\n"
        "assert issubclass(scbjax.sweep.StudyError, ValueError)\n"
        "assert {'run', 'load', 'StudyError'} <= set(dir(scbjax.sweep))\n"
        "try:\n    scbjax.sweep.rn\nexcept AttributeError as error:\n    print(error)\n"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "module 'scbjax.sweep' has no attribute 'rn'",
        "False",
    ]
    assert scbjax.sweep.run is run
