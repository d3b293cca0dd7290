"""The command from end to end: what it prints, its exit status, and one line for what is wrong."""

import dataclasses
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray

import scbjax
from scbjax import cli
from scbjax.base import StudyError
from scbjax.cli import options, parsing
from scbjax.cli.exits import EXIT_INTERRUPTED
from scbjax.cli.run import Run
from scbjax.experiments.scb_cost import COST
from scbjax.sweep.engine import execute
from scbjax.sweep.engine.execute import RunReport
from scbjax.sweep.engine.here import provenance
from scbjax.sweep.engine.places import read_bytes
from scbjax.sweep.plan.plans import Plan, make_plan, plan_with_layout
from scbjax.sweep.results.dataset import is_whole
from scbjax.sweep.results.store import Manifest, Store
from scbjax.sweep.scripts import figures
from scbjax.sweep.study.files import load_study, parse_study
from scbjax.sweep.study.locating import find_studies

WAIT_SECONDS = 120.0
"""Far more than a process needs on a busy machine."""
SECONDS_INTO_A_RUN = 10.0
"""Longer than it takes to begin, much shorter than the run."""

REFERENCE = Path(__file__).parent / "sweep" / "reference.nc"

TINY = """
title = "A tiny study"
question = "Does it run?"
[task]
num_tokens = 2
context_length = 6
[train]
batch_size = 4
steps = 4
record_every = 2
refit_samples = 16
[record]
variables = ["value_distance", "stage"]
[axes]
seed = [5, 3]
sparsity = [1, 2]
"""

FIGURE = '''
"""A figure."""
STUDY = "tiny"
def draw(results, out):
    out.mkdir(parents=True, exist_ok=True)
    path = out / "tiny.png"
    path.write_text("picture")
    return [path]
'''


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one study and its figure; the current directory of the test."""
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "tiny.toml").write_text(TINY)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "tiny.py").write_text(FIGURE)
    (tmp_path / "sweeps" / "benchmarks").mkdir()
    (tmp_path / "sweeps" / "benchmarks" / "tiny.py").write_text('"""Fails."""\nraise SystemExit(3)')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(scbjax, "__file__", str(tmp_path / "scbjax" / "__init__.py"))
    return tmp_path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, in the current directory."""
    command = [sys.executable, "-m", "scbjax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ---------------------------------------------------------------------------- light and quick


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["run", "--help"],
        ["--tyro-print-completion", "bash"],
        ["--version"],
        ["nonsense"],
        ["show", "tiny"],
        ["show", "tiny", "--set", "stps=3"],
        ["run", "tiny", "--set", "sparsity=7"],
        ["run", "none"],
        ["run", "tiny", "--out", "sweeps/tiny.toml"],
        ["run", "tiny", "--cpu-devices", "two"],
        ["figure", "tiny"],
        ["figure", "none"],
        ["status", "sweeps"],
        ["verify", "sweeps"],
        ["list"],
        ["bench"],
        ["bench", "nonsense"],
    ],
    ids=" ".join,
)
def test_what_needs_no_jax_does_not_load_it(checkout: Path, arguments: list[str]) -> None:
    code = (
        "import sys\nfrom scbjax.cli import main\n"
        f"main({arguments!r})\n"
        "print('loaded', sorted({'jax', 'xarray', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "loaded []"
    assert checkout.is_dir()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in (
        *("run", "list", "show", "status", "verify", "rerun", "figure", "devices", "bench"),
    ):
        assert f"• {command} " in printed


COMMANDS = [*parsing.EXAMPLES]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_of_use(checkout: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    text, _, examples = printed.partition("\nexamples:\n")
    assert "None" not in text
    assert examples
    for line in examples.splitlines():
        words = shlex.split(line)
        assert words[0] == "scbjax"
        assert command in ("", words[1])
        if "--help" not in words:
            assert callable(parsing.parse(words[1:]))
    assert checkout.is_dir()


def test_every_command_has_examples() -> None:
    assert set(COMMANDS) == {"", *parsing.NAMES}


def test_a_benchmark_may_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: scbjax bench [-h] [NAME] ")


def test_without_arguments_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    asked = capsys.readouterr()
    assert cli.main([]) == 0
    assert capsys.readouterr() == asked


COMPLETE = """
source "$1"
COMP_WORDS=(scbjax ve) COMP_CWORD=1
_tyro_scbjax && echo "${COMPREPLY[@]}"
COMP_WORDS=(scbjax run --mem) COMP_CWORD=2
_tyro_scbjax && echo "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_what_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--tyro-print-completion", "bash"]) == 0
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    command = ["bash", "-c", COMPLETE, "bash", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["verify", "--memory"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"scbjax {scbjax.__version__}\n"


# ---------------------------------------------------------------------------- what is wrong

BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    "completion without a shell": (
        ["--tyro-print-completion"],
        ["--tyro-print-completion needs the name of a shell, bash or zsh, got nothing"],
    ),
    "completion for no shell": (
        ["--tyro-print-completion", "csh"],
        ["--tyro-print-completion needs the name of a shell, bash or zsh, got 'csh'"],
    ),
    "misspelt command": (["rnu", "tiny"], ["no command is called 'rnu'; did you mean 'run'?"]),
    "unknown command": (["xyz"], ["no command is called 'xyz' (commands: run, list, show"]),
    "empty command": ([""], ["no command is called ''"]),
    "missing study": (["run"], ["Missing from scbjax run: STUDY"]),
    "missing name": (["figure"], ["Missing from scbjax figure: NAME"]),
    "missing value": (["run", "tiny", "--out"], ["--out"]),
    "unknown option": (["show", "tiny", "--st", "x"], ["--st", "--set FIELD=VALUE"]),
    "too many arguments": (["show", "tiny", "x"], ["Unrecognized options: x"]),
    "unknown study": (["run", "tyni"], ["no study is called 'tyni'", "did you mean 'tiny'?"]),
    "study without its ending": (["run", "broken"], ["did you mean the file 'broken.toml'?"]),
    "missing file": (["run", "none.toml"], ["none.toml does not exist"]),
    "directory": (["run", "sweeps"], ["sweeps is a directory, not a study file"]),
    "broken file": (["show", "broken.toml"], ["broken.toml, line 2", "not valid TOML"]),
    "unknown precision": (
        ["run", "tiny", "--precision", "hgh"],
        ["--precision: train.precision must be one of 'highest', 'high'", "did you mean 'high'?"],
    ),
    "unknown field": (["run", "tiny", "--set", "foo.bar=1"], ["unknown field 'foo.bar'"]),
    "misspelt field": (["run", "tiny", "--set", "stps=1"], ["'stps'", "did you mean 'steps'?"]),
    "wrong type": (["run", "tiny", "--set", "steps=1.5"], ["train.steps", "integer", "got 1.5"]),
    "zero": (["run", "tiny", "--set", "batch_size=0"], ["train.batch_size", "from 1", "got 0"]),
    "negative": (["run", "tiny", "--set", "steps=-2"], ["train.steps", "from 1", "got -2"]),
    "sparsity": (
        ["run", "tiny", "--set", "context_length=1"],
        ["task.sparsity = 2 is larger than task.context_length = 1"],
    ),
    "empty axis": (["run", "tiny", "--set", "axes.l1=[]"], ["axis train.l1 is empty"]),
    "duplicate values": (["run", "tiny", "--set", "axes.l1=[1, 1]"], ["same point twice"]),
    "out is a file": (["run", "tiny", "--out", "broken.toml"], ["broken.toml", "not a directory"]),
    "out below a file": (["run", "tiny", "--out", "broken.toml/x"], ["broken.toml"]),
    "empty out": (["run", "tiny", "--out", ""], ["a path must not be empty"]),
    "memory": (["run", "tiny", "--memory", "2 apples"], ["--memory", "2GiB", "'2 apples'"]),
    "no memory": (["show", "tiny", "--memory", "0"], ["--memory", "got '0'"]),
    "CPU devices": (["run", "tiny", "--cpu-devices", "0"], ["--cpu-devices", "auto", "got '0'"]),
    "empty cache": (["run", "tiny", "--compilation-cache", ""], ["a path must not be empty"]),
    "too little memory": (["show", "tiny", "--memory", "10B"], ["one trajectory", "10 B"]),
    "status of nothing": (["status", "sweeps"], ["sweeps holds no results"]),
    "status of no path": (["status", "none"], ["there is no folder 'none'"]),
    "verify of no path": (["verify", "none/x"], ["there is no folder 'none/x'"]),
    "verify of nothing": (["verify", "sweeps"], ["sweeps holds no results"]),
    "nothing to verify": (["verify", "sweeps", "--count", "0"], ["--count must be", "1, got '0'"]),
    "seed of the draw": (["verify", "sweeps", "--seed", "-1"], ["--seed must be", "0, got '-1'"]),
    "missing dataset": (["rerun", "none.nc"], ["none.nc is missing"]),
    "unknown figure": (
        ["figure", "tyni"],
        [
            "no figure is called 'tyni'; did you mean 'tiny'? Any dataset",
            "figure DATASET.nc",
            "figures/NAME.py",
        ],
    ),
    "figure that is like none": (
        ["figure", "nope"],
        ["no figure is called 'nope' (figures: tiny); any dataset is drawn by", "figures/NAME.py"],
    ),
    "figure that is a path": (["figure", "../x"], ["there is no figure, folder or dataset '../x'"]),
    "figure of a folder without a dataset": (
        ["figure", "figures"],
        ["'figures' holds no dataset to draw"],
    ),
    "explore before a run": (
        ["explore", "tiny"],
        ["study 'tiny' has no results in results; `scbjax run tiny` makes them"],
    ),
    "unknown benchmark": (["bench", "tyni"], ["no benchmark is called 'tyni'", "'tiny'"]),
    "benchmark without a name": (["bench", ""], ["no benchmark is called ''"]),
    "benchmark and all": (["bench", "tiny", "--all"], ["not both", "'tiny'"]),
    "benchmark out is a file": (["bench", "tiny", "--out", "broken.toml"], ["broken.toml"]),
    "benchmark out can't be made": (
        ["bench", "tiny", "--out", "/proc/none"],
        ["/proc/none can't be written: No such file or directory"],
    ),
    "fit out can't be made": (
        ["fit", "letters.txt", "--out", "/proc/none/fit.nc"],
        ["/proc/none can't be written: No such file or directory"],
    ),
    "failing benchmark": (["bench", "tiny"], ["benchmark tiny failed with status 3"]),
    "missing results": (
        ["figure", "tiny"],
        ["results/tiny/tiny.nc is missing", "`scbjax run tiny` makes it"],
    ),
    "missing results elsewhere": (
        ["figure", "tiny", "--results", "r"],
        ["r/tiny/tiny.nc is missing", "`scbjax run tiny --out r/tiny` makes it"],
    ),
    "no results at all": (["figure", "all"], ["no figure could be drawn from results"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(checkout: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    (checkout / "broken.toml").write_text("title = 'x'\n[task\n")
    arguments, parts = BAD_INPUT[case]
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert printed.out == ""
    assert last.startswith("scbjax: ")
    assert case == "no results at all" or len(printed.err.splitlines()) == 1
    assert [part for part in parts if part not in last] == []
    assert not (checkout / "results").exists()


def test_bad_input_in_a_process(checkout: Path) -> None:
    ran = run("run", "tiny", "--set", "stps=3")
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "Traceback" not in ran.stderr
    assert not (checkout / "results").exists()


def test_out_without_permission(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "locked").mkdir(mode=0o500)
    # Root may write there all the same, and tests may run as root.
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != Path("locked"))
    assert cli.main(["run", "tiny", "--out", "locked/x/y"]) == 2
    said = "locked/x/y can't be written: no permission to write in locked"
    assert capsys.readouterr().err == f"scbjax: {said}\n"


def test_list_goes_on_after_a_broken_study(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "sweeps" / "broken.toml").write_text("title = ")
    assert cli.main(["list"]) == 2
    printed = capsys.readouterr()
    assert "A tiny study" in printed.out
    assert "broken.toml, line 1: not valid TOML" in printed.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("list", ["there are no studies to list", "'sweeps'"]),
        ("run quickstart", ["no study is called 'quickstart'", "'sweeps'", "my_study.toml"]),
        ("show quickstart", ["no study is called 'quickstart'", "'sweeps'", "my_study.toml"]),
        ("figure quickstart", ["no figure is called 'quickstart'", "'figures'"]),
        ("figure all", ["there are no figures", "'figures'"]),
        ("bench", ["there are no benchmarks", "'sweeps/benchmarks'"]),
        ("bench step", ["no benchmark is called 'step'", "'sweeps/benchmarks'"]),
    ],
)
def test_where_nothing_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    parts: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scbjax, "__file__", str(tmp_path / "scbjax" / "__init__.py"))
    assert cli.main(arguments.split()) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert [part for part in parts if part not in said] == []
    assert "the one that comes with scbjax is missing: install scbjax again" in said


def test_what_travels_in_the_package_is_found_and_the_working_folder_comes_first(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path_factory.mktemp("site-packages") / "scbjax"
    shipped = package / "_shipped" / "sweeps"
    shipped.mkdir(parents=True)
    (package.parent / "sweeps").mkdir()  # of another package
    (package.parent / "sweeps" / "foreign.toml").write_text(TINY)
    for name in ("tiny", "other"):
        (shipped / f"{name}.toml").write_text(TINY)
    monkeypatch.setattr(scbjax, "__file__", str(package / "__init__.py"))
    assert find_studies() == [shipped / "other.toml", checkout / "sweeps" / "tiny.toml"]


def test_a_closed_pipe_is_no_error(checkout: Path) -> None:
    command = [sys.executable, "-m", "scbjax", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert checkout.is_dir()


# ---------------------------------------------------------------------------- streams that fail


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of compiled programs that tests share which run the tiny study in processes."""
    return tmp_path_factory.mktemp("programs")


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of sh in which "$@" is the command."""
    return subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-m", "scbjax"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
        timeout=3 * WAIT_SECONDS,
    )


FULL = "scbjax: standard output can't be written: No space left on device\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "status", "out", "err"),
    [
        pytest.param("2>&-", 0, "figures/out/tiny.png", "", marks=pytest.mark.slow),
        pytest.param("2>/dev/full", 0, "figures/out/tiny.png", "", marks=pytest.mark.slow),
        pytest.param(">&-", 0, "", "100%  4/4 trajectories", marks=pytest.mark.slow),
        (">/dev/full", 2, "", FULL),
        pytest.param("<&- >&- 2>&-", 0, "", "", marks=pytest.mark.slow),
    ],
)
def test_streams_that_fail_cost_no_work(
    checkout: Path, programs: Path, streams: str, status: int, out: str, err: str
) -> None:
    ran = shell(f'"$@" run tiny {streams}', checkout, XDG_CACHE_HOME=str(programs))
    assert ran.returncode == status
    assert out in ran.stdout
    assert err in ran.stderr
    assert "Traceback" not in ran.stderr
    assert is_whole(checkout / "results" / "tiny" / "tiny.nc")
    assert (checkout / "figures" / "out" / "tiny.png").exists()
    assert not list((checkout / "results").rglob("lock"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stdout", pytest.param("stderr", marks=pytest.mark.slow)])
def test_a_reader_that_goes_away_in_mid_run_costs_no_work(
    checkout: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(programs))
    command = [sys.executable, "-m", "scbjax", "run", "tiny"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "0/4 trajectories" in process.stderr.readline()  # the run has begun
        getattr(process, name).close()
        left = process.stderr if name == "stdout" else process.stdout
        said = left.read()
    assert process.returncode == 0
    assert ("100%  4/4 trajectories" if name == "stdout" else "dataset: ") in said
    assert "Traceback" not in said
    assert is_whole(checkout / "results" / "tiny" / "tiny.nc")
    assert (checkout / "figures" / "out" / "tiny.png").exists()


@pytest.mark.parametrize("arguments", ["--version", "--help", "list", "show tiny", "run --help"])
def test_what_was_asked_for_and_cant_be_printed_is_an_error(checkout: Path, arguments: str) -> None:
    ran = shell(f'"$@" {arguments} >/dev/full', checkout)
    assert (ran.returncode, ran.stderr) == (2, FULL)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        pytest.param(
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, marks=pytest.mark.slow
        ),
        pytest.param({"PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.slow),
    ],
    ids=["ascii", "C", "latin-1"],
)
def test_what_an_encoding_lacks_is_no_error(
    checkout: Path, programs: Path, environment: dict[str, str]
) -> None:
    named = {**environment, "XDG_CACHE_HOME": str(programs)}
    study = checkout / "sweeps" / "tiny.toml"
    study.write_text(TINY.replace("A tiny study", "Tïny λ"), encoding="utf-8")
    escaped = {
        "run tiny --out 'dï λ'": "/tiny.nc",
        "status 'dï λ'": "/tiny.nc",
        "list": r"\u03bb",
        "show tiny": r"\u03bb",
    }
    for arguments, part in escaped.items():
        ran = shell(f'"$@" {arguments}', checkout, **named)
        assert (ran.returncode, "Traceback" in ran.stderr) == (0, False)
        assert part in ran.stdout


def test_no_file_takes_the_place_of_a_closed_stream(checkout: Path) -> None:
    code = (
        "import os; from scbjax.sweep.engine.streams import steady_streams\n"
        "with steady_streams(): print(os.open('x', os.O_CREAT | os.O_RDWR), file=open('y', 'w'))"
    )
    done = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    subprocess.run(done, check=True, cwd=checkout)
    assert int((checkout / "y").read_text()) > 2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("12B", 12),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("2GiB", 2 * 2**30),
        ("2 gib", 2 * 2**30),
        ("0.5MB", 500_000),
        ("1T", 10**12),
        (None, None),
    ],
)
def test_sizes(text: str | None, size: int | None) -> None:
    assert read_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1XB", "1e9", "nan", "1" * 400, "0", "0.1B"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(StudyError, match="--memory must be a size"):
        read_bytes(text)


# ---------------------------------------------------------------------------- what is shown


def test_list(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["study", "runs", "tokens", "time", "title"]
    # 4 trajectories of 4 steps of 4 samples of 6 tokens
    assert row.split()[:3] == ["tiny", "4", "384"]
    assert row.endswith("A tiny study")
    assert checkout.is_dir()


def test_show(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "tiny", "--set", "train.steps=8", "--set", "axes.l1=[1e-4, 0]"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("tiny: A tiny study\nDoes it run?\n")
    lines = [line.split() for line in printed.splitlines()]
    assert ["train.steps", "8"] in lines
    assert ["seed:", "2", "points"] in lines
    assert ["train.l1", "=", "0.0001,", "0.0"] in lines
    assert ["train.switch_step", "never"] in lines
    assert ["train.stop_step", "never"] in lines
    assert "2147483647" not in printed
    assert ["trajectories", "8"] in lines
    assert ["programs", "1"] in lines
    assert checkout.is_dir()


def test_show_says_never_of_axes_too(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["axes.stop_step=[3, 2147483647]", "axes.seed=[2147483647]"]
    assert cli.main(["show", "tiny", "--set", given[0], "--set", given[1]]) == 0
    printed = capsys.readouterr().out
    assert "    train.stop_step = 3, never\n" in printed
    assert "    seed = 2147483647\n" in printed  # which is a seed like any other
    assert checkout.is_dir()


def test_show_shortens_what_is_long(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["axes.seed={range=[0, 100000]}", "l1=[0, 1, 2, 3]"]
    assert cli.main(["show", "tiny", "--set", given[0], "--set", f"axes.{given[1]}"]) == 0
    printed = capsys.readouterr().out
    assert "    seed = 0, 1, 2, 3, 4, 5, 6, 7, ..., 99998, 99999\n" in printed
    assert "    train.l1 = 0.0, 1.0, 2.0, 3.0\n" in printed
    assert "  seed: 100000 points\n" in printed
    assert ["trajectories", "800000"] in [line.split() for line in printed.splitlines()]
    assert max(map(len, printed.splitlines())) < 100
    assert len(printed.splitlines()) < 80
    assert checkout.is_dir()


def test_show_shortens_a_long_table_of_programs(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", "tiny", "--set", "axes.batch_size={range=[1, 501]}"]) == 0
    printed = capsys.readouterr().out
    table = printed[printed.index("\nprograms\n") :].splitlines()
    assert [line.split()[0] for line in table[3:]] == [*"12345678", "...", "499", "500"]
    assert ["programs", "500"] in [line.split() for line in printed.splitlines()]
    assert cli.main(["show", "tiny", "--set", "axes.batch_size={range=[1, 101]}"]) == 0
    assert "..." not in capsys.readouterr().out.partition("\nprograms\n")[2]
    assert checkout.is_dir()


@pytest.mark.parametrize("command", ["status", "verify"])
@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("tiny", "results/tiny"),  # the name of the study in the place of the folder
        ("results/tyni", "results/tiny"),
        ("reslts/tiny", "results/tiny"),
        ("results/small/tniy", "results/small/tiny"),
        ("kept/her", "kept/here"),
        ("xyz", None),
    ],
)
def test_a_folder_that_is_not_there(
    checkout: Path, capsys: pytest.CaptureFixture[str], command: str, given: str, meant: str | None
) -> None:
    plan = make_plan(load_study("tiny"))
    folders = ["kept/here", "results/other"]
    folders.append("results/small/tiny" if meant == "results/small/tiny" else "results/tiny")
    for folder in folders:
        Store(checkout / folder).write_manifest(Manifest.of(plan, {}))
    assert cli.main([command, given]) == 2
    hint = "" if meant is None else f"; did you mean '{meant}'?"
    assert capsys.readouterr().err == f"scbjax: there is no folder '{given}'{hint}\n"


def test_status_counts_what_is_under_way(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four chunks of three records: one is done, one has two of them, one another run's."""
    plan = plan_with_layout(load_study("tiny"), [(1, 1, 1)])
    store = Store(checkout / "results" / "tiny")
    store.write_manifest(Manifest.of(plan, {}))

    def printed() -> dict[str, str]:
        assert cli.main(["status", "results/tiny"]) == 0
        rows = capsys.readouterr().out.splitlines()
        return {row[:11].strip(): row[11:].strip() for row in rows}

    assert printed()["progress"] == "0%"
    assert printed()["under way"] == "none with a checkpoint"
    array = {"carry": np.zeros(3)}
    store.save_chunk(plan, plan.chunks[0], array, {})
    store.save_checkpoint(plan, plan.chunks[2], array, {"records": 2})
    other = plan_with_layout(load_study("tiny", ["l1=0"]), [(1, 1, 1)])
    store.save_checkpoint(other, other.chunks[3], array, {"records": 1})
    assert printed()["chunks"] == "1 of 4 done"
    assert printed()["progress"] == "41%"  # (1 + 2/3) of 4
    assert printed()["under way"] == "chunk 2 with 2 of 3 records"
    for index in (1, 2, 3):
        store.save_chunk(plan, plan.chunks[index], array, {})
    assert printed()["progress"] == "100%"
    manifest = store.manifest_path.read_text(encoding="utf-8")
    store.manifest_path.write_text(manifest.replace("steps = 4", "stps = 4"), encoding="utf-8")
    assert printed()["progress"] == "not known"
    assert printed()["chunks"] == "4 of 4 done"


# ---------------------------------------------------------------------------- figures


def results_of(checkout: Path) -> Path:
    (checkout / "results" / "tiny").mkdir(parents=True)
    (checkout / "results" / "tiny" / "tiny.nc").touch()
    return checkout / "results"


@pytest.mark.parametrize("name", ["tiny", "all"])
def test_figure(checkout: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    results_of(checkout)
    assert cli.main(["figure", name, "--out", "pictures"]) == 0
    assert capsys.readouterr().out == "pictures/tiny.png\n"
    assert (checkout / "pictures" / "tiny.png").read_text() == "picture"


@pytest.mark.parametrize("name", ["tiny", "all"])
def test_newer_results_of_other_settings_are_pointed_out(
    checkout: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    results = results_of(checkout)
    drawn, other = results / "tiny" / "tiny.nc", results / "tiny-0123abcd" / "tiny.nc"
    for path in (other, results / "tiny-else" / "tiny.nc"):
        path.parent.mkdir()
        path.touch()
    for age, said in ((-9, ""), (9, f"scbjax: {Path('results') / 'tiny-0123abcd' / 'tiny.nc'} ")):
        os.utime(other, (drawn.stat().st_mtime + age,) * 2)
        assert cli.main(["figure", name, "--out", "pictures"]) == 0
        printed = capsys.readouterr()
        assert printed.out == "pictures/tiny.png\n"
        assert printed.err.startswith(said)
        assert printed.err.count("\n") == bool(said)


def test_all_figures_but_those_without_results(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results_of(checkout)
    (checkout / "figures" / "other.py").write_text(FIGURE.replace("tiny", "other"))
    (checkout / "figures" / "_render.py").write_text("raise RuntimeError")
    assert cli.main(["figure", "all"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "figures/out/tiny.png\n"
    assert "left out: results/other/other.nc is missing" in printed.err


@pytest.mark.parametrize(
    ("script", "part"),
    [
        ("x = 1\n", "has no constant STUDY"),
        ("STUDY = f()\n", "has no constant STUDY"),
        ("def\n", "can't be read"),
        ("STUDY: str = 'tiny'\ndef draw(r, o): raise ValueError('no seeds')\n", "no seeds"),
    ],
)
def test_figure_scripts_that_fail(
    checkout: Path, capsys: pytest.CaptureFixture[str], script: str, part: str
) -> None:
    results_of(checkout)
    (checkout / "figures" / "tiny.py").write_text(script)
    assert cli.main(["figure", "tiny"]) == 2
    assert part in capsys.readouterr().err


def test_a_figure_that_fails_does_not_keep_the_others(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results_of(checkout)
    bad = FIGURE.replace("out.mkdir", "raise ValueError('no seeds')\n    out.mkdir")
    (checkout / "figures" / "bad.py").write_text(bad)
    assert cli.main(["figure", "all"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "figures/out/tiny.png\n"
    assert printed.err == "scbjax: figure bad: no seeds\n"


@pytest.mark.parametrize("name", ["tiny", "all"])
def test_numbers_behind_a_figure(
    checkout: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    results = results_of(checkout)
    script = checkout / "figures" / "tiny.py"
    script.write_text(FIGURE + "def numbers(results): return f'**Table** of {results}'\n")
    assert cli.main(["figure", name, "--numbers", "--out", "pictures"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "## tiny\n\n**Table** of results\n\n"
    assert printed.err == ""
    assert not (checkout / "pictures").exists()
    newer = results / "tiny-0123abcd" / "tiny.nc"
    newer.parent.mkdir()
    newer.touch()
    os.utime(newer, (time.time() + 9,) * 2)
    assert cli.main(["figure", name, "--numbers"]) == 0
    assert "has other settings and is newer than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ("", "figure tiny gives no numbers: "),
        ("def numbers(results): raise ValueError('no seeds')\n", "figure tiny: no seeds"),
    ],
)
def test_numbers_that_cant_be_had(
    checkout: Path, capsys: pytest.CaptureFixture[str], more: str, part: str
) -> None:
    results_of(checkout)
    (checkout / "figures" / "tiny.py").write_text(FIGURE + more)
    assert cli.main(["figure", "tiny", "--numbers"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert part in sentence
    assert cli.main(["figure", "tiny", "--numbers", "--results", "nowhere"]) == 2
    assert "nowhere/tiny/tiny.nc is missing" in capsys.readouterr().err


def test_a_figure_that_cant_be_written(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results_of(checkout)
    assert cli.main(["figure", "tiny", "--out", "sweeps/tiny.toml"]) == 2
    assert "sweeps/tiny.toml" in capsys.readouterr().err


def test_figures_of_this_checkout_name_their_study() -> None:
    found = figures.find_figures()
    together = {"fig3": "fig1", "fig4": "fig1"}
    assert {name: figures.study_of(path) for name, path in found.items()} == {
        name: together.get(name, name) for name in found
    }
    assert {"quickstart", "fig1", "fig3", "fig4", "projector"} <= set(found)
    assert list(figures.figures_of("fig1")) == ["fig1", "fig3", "fig4"]


def test_a_script_that_names_no_study_does_not_stand_in_the_way(checkout: Path) -> None:
    (checkout / "figures" / "broken.py").write_text("def\n")
    assert list(figures.figures_of("tiny")) == ["tiny"]


# ---------------------------------------------------------------------------- runs


def test_a_run_from_end_to_end(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "tiny"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "dataset: results/tiny/tiny.nc",
        "figures/out/tiny.png",
        "draw it again with: scbjax figure tiny",
    ]
    path = checkout / "results" / "tiny" / "tiny.nc"
    with xarray.open_dataset(path) as dataset:
        assert dict(dataset.sizes) == {"seed": 2, "sparsity": 2, "step": 3}
        assert dataset["seed"].to_numpy().tolist() == [5, 3]
        assert dataset["step"].to_numpy().tolist() == [0, 2, 4]
        assert {"value_distance", "stage"} <= set(dataset.data_vars)
        assert parse_study(dataset.attrs["study"], "tiny") == load_study("tiny")
        assert json.loads(dataset.attrs["settings"])["train.precision"] == "highest"
    written = path.read_bytes()
    assert cli.main(["run", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("this study is already complete; --force")
    assert path.read_bytes() == written
    assert cli.main(["status", "results/tiny"]) == 0
    printed = capsys.readouterr().out
    assert "results/tiny/tiny.nc" in printed
    assert "1 of 1 done" in printed


class FakeRuns:
    """Stands in for `run_study`: keeps what it was asked for, and leaves an empty dataset."""

    def __init__(self) -> None:
        self.interrupted = False
        self.calls: list[tuple[Plan, Path, bool]] = []

    def __call__(
        self,
        plan: Plan,
        out: Path,
        *,
        progress: object,
        force: bool,
        engine: object,
        facts: object,
        owns_process: bool,
    ) -> RunReport:
        assert None not in {progress, engine}
        assert owns_process  # Ctrl-C twice ends the command
        assert facts == provenance()
        self.calls.append((plan, out, force))
        store = Store(out)
        store.write_manifest(Manifest.of(plan, {}))
        if self.interrupted:
            return RunReport(out, None, interrupted=True)
        path = store.dataset_path(plan.study.name)
        path.touch()
        return RunReport(out, path)


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    fake = FakeRuns()
    monkeypatch.setattr(execute, "run_study", fake)
    return fake


def test_changed_settings_get_a_directory_of_their_own(
    checkout: Path, capsys: pytest.CaptureFixture[str], fake_runs: FakeRuns
) -> None:
    assert cli.main(["run", "tiny", "--no-figure"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines() == [
        "dataset: results/tiny/tiny.nc",
        "draw it with: scbjax figure tiny",
    ]
    assert cli.main(["run", "tiny", "--set", "l1=0"]) == 0
    other = next(path for path in (checkout / "results").iterdir() if path.name != "tiny")
    printed = capsys.readouterr()
    assert printed.err == (
        f"scbjax: results/tiny holds other settings; these go to results/{other.name}\n"
    )
    assert printed.out.splitlines() == [
        f"dataset: results/{other.name}/tiny.nc",
        f"results/{other.name}/tiny.png",
    ]
    assert cli.main(["run", "tiny", "--set", "l1=0", "--force"]) == 0
    assert [(out, force) for _, out, force in fake_runs.calls] == [
        (Path("results/tiny"), False),
        (Path("results") / other.name, False),
        (Path("results/tiny"), True),
    ]


@pytest.mark.parametrize("command", ["show", "run"])
def test_a_list_for_an_axis_is_told(
    checkout: Path, capsys: pytest.CaptureFixture[str], fake_runs: FakeRuns, command: str
) -> None:
    assert cli.main([command, "tiny", "--set", "sparsity=[2]"]) == 0
    said = capsys.readouterr().err.splitlines()[0]
    assert said == (
        "scbjax: --set 'sparsity=[2]' is taken for axes.sparsity=[2], as that is an axis already"
    )
    assert [plan.shape for plan, *_ in fake_runs.calls] == ([(2, 1)] if command == "run" else [])
    assert checkout.is_dir()


def test_what_a_run_is_asked_for(checkout: Path, fake_runs: FakeRuns) -> None:
    whole = make_plan(load_study("tiny", ["steps=8"]))
    needed = COST.chunk_bytes(whole.programs[0].fixed, (1, 2), 1)
    assert cli.main(["run", "tiny", "--set", "steps=8", "--memory", f"{needed}B"]) == 0
    plan = fake_runs.calls[0][0]
    assert plan.study == load_study("tiny", ["steps=8"])
    assert plan.memory_bytes <= needed
    assert len(plan.chunks) == 2
    assert checkout.is_dir()


def test_run_elsewhere(
    checkout: Path, capsys: pytest.CaptureFixture[str], fake_runs: FakeRuns
) -> None:
    assert cli.main(["run", "tiny", "--out", "a b/tiny", "--set", "seed=1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "dataset: a b/tiny/tiny.nc",
        "a b/tiny/tiny.png",
        "draw it again with: scbjax figure tiny --results 'a b'",
    ]
    assert fake_runs.calls[0][1] == Path("a b/tiny")
    assert cli.main(["figure", "tiny", "--results", "a b"]) == 0
    assert checkout.is_dir()


@pytest.mark.slow
def test_a_study_without_a_script_ends_with_the_default_figure(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "figures" / "tiny.py").write_text('STUDY = "other"')
    assert cli.main(["run", "tiny"]) == 0
    pictures = ["figures/out/tiny.png", "figures/out/tiny.pdf"]
    dataset = "results/tiny/tiny.nc"
    hint = f"draw it again with: scbjax figure {dataset}"
    assert capsys.readouterr().out.splitlines() == [f"dataset: {dataset}", *pictures, hint]
    assert (checkout / pictures[0]).read_bytes().startswith(b"\x89PNG")
    assert (checkout / pictures[1]).read_bytes().startswith(b"%PDF")
    assert cli.main(["run", "tiny", "--no-figure"]) == 0
    first = hint.replace(" again", "")
    assert capsys.readouterr().out.splitlines()[1:] == [f"dataset: {dataset}", first]
    (checkout / "figures" / "tiny.py").unlink()
    for name in (dataset, "results/tiny", "tiny"):
        assert cli.main(["figure", name, "--out", "p"]) == 0
        assert capsys.readouterr().out.splitlines() == ["p/tiny.png", "p/tiny.pdf"]
    assert cli.main(["figure", "tiny", "--numbers"]) == 2
    assert "--numbers needs the name of a figure with a script" in capsys.readouterr().err


def test_variables_of_a_dataset_are_drawn_whatever_figures_there_are(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = checkout / "results" / "tiny"
    results.mkdir(parents=True)
    steps = np.arange(4)
    xarray.Dataset(
        {name: (("seed", "step"), np.ones((2, 4))) for name in ("value_distance", "stage")},
        {"step": steps, "seed": [0, 1]},
    ).to_netcdf(results / "tiny.nc", engine="h5netcdf")
    for name in ("tiny", "results/tiny", "results/tiny/tiny.nc"):
        assert cli.main(["figure", name, "--variables", "stage, value_distance"]) == 0
        stem = "figures/out/tiny-stage-value_distance"
        assert capsys.readouterr().out.splitlines() == [f"{stem}.png", f"{stem}.pdf"]
        assert (checkout / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    for arguments, said in (
        (["tiny", "--variables", "stag"], "does not hold 'stag'; did you mean 'stage'?"),
        (["nope", "--variables", "stage"], "'nope' is no dataset, nor a study with one in results"),
        (["all", "--variables", "stage"], "does not go with all"),
        (["tiny", "--numbers", "--variables", "stage"], "does not go with --numbers"),
    ):
        assert cli.main(["figure", *arguments]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("snapshots", "told"),
    [("[0, 4]", ["watch it with: scbjax explore 'a b/tiny'"]), ("[]", [])],
)
def test_a_run_with_snapshots_says_how_to_watch_it(
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
    fake_runs: FakeRuns,
    snapshots: str,
    told: list[str],
) -> None:
    setting = f"record.snapshots={snapshots}"
    assert cli.main(["run", "tiny", "--out", "a b/tiny", "--set", setting]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "watch" in line] == told
    assert fake_runs.calls
    assert checkout.is_dir()


def test_a_default_figure_that_fails_does_not_fail_the_run(
    checkout: Path, capsys: pytest.CaptureFixture[str], fake_runs: FakeRuns
) -> None:
    (checkout / "figures" / "tiny.py").unlink()
    assert cli.main(["run", "tiny"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "dataset: results/tiny/tiny.nc",
        "draw it with: scbjax figure results/tiny/tiny.nc",
    ]
    (sentence,) = printed.err.splitlines()
    assert sentence.startswith("scbjax: figure of tiny: results/tiny/tiny.nc can't be read")
    assert cli.main(["figure", "tiny"]) == 2
    assert len(fake_runs.calls) == 1


def test_a_dataset_whose_study_has_a_script_is_drawn_by_that(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkout / "elsewhere"
    folder.mkdir()
    (folder / "tiny.nc").touch()
    for name in ("elsewhere/tiny.nc", "elsewhere"):
        assert cli.main(["figure", name]) == 0
        assert capsys.readouterr().out == "figures/out/tiny.png\n"
    (folder / "other.nc").touch()
    assert cli.main(["figure", "elsewhere"]) == 2
    assert "elsewhere holds several datasets; name one of them" in capsys.readouterr().err
    assert cli.main(["figure", "none.nc"]) == 2
    assert "none.nc is missing, or is no file" in capsys.readouterr().err


def test_a_figure_that_fails_after_a_run(
    checkout: Path, capsys: pytest.CaptureFixture[str], fake_runs: FakeRuns
) -> None:
    script = 'STUDY = "tiny"\ndef draw(results, out): raise ValueError(f"{results}/tiny is odd")'
    (checkout / "figures" / "tiny.py").write_text(script)
    assert cli.main(["run", "tiny", "--out", "elsewhere"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "dataset: elsewhere/tiny.nc\n"
    assert printed.err == "scbjax: figure tiny: elsewhere is odd\n"
    assert len(fake_runs.calls) == 1


EVERY_OPTION_OF_RUN = [
    *("--set", "steps=8", "--set", "axes.l1=[0, 1]", "--out", "a b", "--precision", "high"),
    *("--memory", "1GiB", "--small", "--no-figure", "--cpu-devices", "1"),
    *("--compilation-cache", "kept here", "--engine", "local", "--experiment", "mine.py"),
]


def test_an_interrupted_run_says_how_to_continue(
    checkout: Path, capsys: pytest.CaptureFixture[str], fake_runs: FakeRuns
) -> None:
    with (checkout / "sweeps" / "tiny.toml").open("r+") as file:
        file.write('small = ["batch_size=2"]\n' + TINY)
    (checkout / "mine.py").write_text("from scbjax.experiments.scb import EXPERIMENT\n")
    fake_runs.interrupted = True
    given = ["run", "tiny", "--force", *EVERY_OPTION_OF_RUN]
    assert cli.main(given) == EXIT_INTERRUPTED
    stopped, continued = capsys.readouterr().out.splitlines()
    assert stopped == "stopped, with all that was done saved in a b"
    command = continued.removeprefix("continue with: scbjax ")
    assert shlex.split(command) == ["run", "tiny", *EVERY_OPTION_OF_RUN]
    # Typed again, it continues the same run in the same chunks.
    fake_runs.interrupted = False
    assert cli.main(shlex.split(command)) == 0
    (first, *_), (second, *_) = fake_runs.calls
    assert first.layout == second.layout
    assert first.fingerprint == second.fingerprint
    assert [(out, force) for _, out, force in fake_runs.calls] == [
        (Path("a b"), True),
        (Path("a b"), False),
    ]


def test_every_option_of_a_run_is_in_that_test() -> None:
    """But for --force, which is left out, and --scheduler, which needs one."""
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Run)}
    tested = {word for word in EVERY_OPTION_OF_RUN if word.startswith("--")}
    assert options - {"--study", "--overrides", "--force", "--scheduler"} <= tested
    assert "--set" in tested


def test_an_interrupted_rerun_says_how_to_continue(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object, out: Path, **__: object) -> RunReport:
        return RunReport(out, None, interrupted=True)

    monkeypatch.setattr(execute, "run_study", interrupted)
    options = ["--memory", "1GiB", "--cpu-devices", "1", "--compilation-cache", "off"]
    given = ["rerun", str(REFERENCE), *options]
    assert cli.main([*given, "--force"]) == EXIT_INTERRUPTED
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"continue with: scbjax {shlex.join(given)}"
    assert checkout.is_dir()


def test_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices"]) == 0
    assert "cpu" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["run", "tiny"], ["rerun", str(REFERENCE)]])
def test_a_system_without_locks(
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert cli.main(arguments) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("scbjax: studies can't be run on Windows, which has no flock")
    assert "they can on Linux, on macOS, and on Windows in WSL" in said
    assert not (checkout / "results").exists()


NO_DEVICE = "scbjax: JAX finds no device to run on: "


@pytest.mark.parametrize("name", ["abacus", pytest.param("cuda", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "arguments",
    [
        ["devices"],
        ["run", "tiny"],
        pytest.param(["run", "tiny", "--engine", "dask"], marks=pytest.mark.slow),
        pytest.param(["verify", "begun"], marks=pytest.mark.slow),
        pytest.param(["rerun", str(REFERENCE)], marks=pytest.mark.slow),
        pytest.param(["bench", "tiny"], marks=pytest.mark.slow),
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[2:]),
)
def test_platforms_that_are_not_there(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[str]
) -> None:
    if "dask" in arguments:
        pytest.importorskip("distributed")
    Store(checkout / "begun").write_manifest(Manifest.of(make_plan(load_study("tiny")), {}))
    monkeypatch.setenv("JAX_PLATFORMS", name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # also where there is a GPU
    ran = run(*arguments)
    assert ran.returncode == 2
    assert ran.stderr.startswith(NO_DEVICE)
    assert name in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert not list(checkout.rglob("manifest.json"))[1:]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_interrupted_and_continued(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer = [
        "--set",
        "steps=10000000",
        "--set",
        "record_every=1000",
        "--set",
        "context_length=200",
    ]
    command = [sys.executable, "-m", "scbjax", "run", "tiny", "--no-figure", *longer]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(checkout / "results" / "tiny" / "manifest.json", process)
        time.sleep(SECONDS_INTO_A_RUN)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == EXIT_INTERRUPTED
    assert "Traceback" not in err
    assert f"continue with: scbjax run tiny --no-figure {' '.join(longer)}" in out
    assert cli.main(["status", "results/tiny"]) == 0
    printed = capsys.readouterr().out
    assert "0 of 1 done" in printed
    assert re.search(r"chunk 0 with [1-9]\d* of 10001 records", printed)


def test_interrupted_before_there_is_anything_to_save(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(options, "load_study", interrupt)
    assert cli.main(["run", "tiny"]) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "\nscbjax: interrupted\n"
    assert checkout.is_dir()
