"""The command from end to end: what it prints, its exit status, and one line for what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import scbjax
from scbjax import cli
from scbjax.sweep import figures
from scbjax.sweep.fields import StudyError

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
    monkeypatch.chdir(tmp_path)
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
        ["--help"],
        ["run", "--help"],
        ["--version"],
        ["nonsense"],
        ["show", "tiny"],
        ["show", "tiny", "--set", "stps=3"],
        ["run", "tiny", "--set", "sparsity=7"],
        ["run", "none"],
        ["run", "tiny", "--out", "sweeps/tiny.toml"],
        ["figure", "tiny"],
        ["figure", "none"],
        ["status", "sweeps"],
        ["list"],
    ],
    ids=" ".join,
)
def test_what_needs_no_jax_does_not_load_it(checkout: Path, arguments: list[str]) -> None:
    code = (
        "import sys\nfrom scbjax.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print('loaded', sorted({'jax', 'xarray', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "loaded []"
    assert checkout.is_dir()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for command in ("run", "list", "show", "status", "figure", "devices"):
        assert f"• {command} " in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"scbjax {scbjax.__version__}\n"


# ---------------------------------------------------------------------------- what is wrong

BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    "no command": ([], ["Expected one of {run, list, show, status, figure, devices}"]),
    "unknown command": (["rnu"], ["rnu", "Available subcommands: run, list"]),
    "missing study": (["run"], ["Missing from scbjax run: STUDY"]),
    "missing name": (["figure"], ["Missing from scbjax figure: NAME"]),
    "missing value": (["run", "tiny", "--out"], ["--out"]),
    "unknown option": (["show", "tiny", "--st", "x"], ["--st", "--set FIELD=VALUE"]),
    "too many arguments": (["show", "tiny", "x"], ["Unrecognized options: x"]),
    "unknown study": (["run", "tyni"], ["no study is called 'tyni'", "did you mean 'tiny'?"]),
    "missing file": (["run", "none.toml"], ["none.toml does not exist"]),
    "directory": (["run", "sweeps"], ["sweeps is a directory, not a study file"]),
    "broken file": (["show", "broken.toml"], ["broken.toml, line 2", "not valid TOML"]),
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
    "too little memory": (["show", "tiny", "--memory", "10B"], ["one trajectory", "10 B"]),
    "status of nothing": (["status", "sweeps"], ["sweeps holds no results"]),
    "status of no path": (["status", "none"], ["none holds no results"]),
    "unknown figure": (["figure", "tyni"], ["no figure is called 'tyni'", "'tiny'"]),
    "figure that is a path": (["figure", "../x"], ["no figure is called '../x'"]),
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_without_permission(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "locked").mkdir(mode=0o500)
    assert cli.main(["run", "tiny", "--out", "locked/x"]) == 2
    assert "locked" in capsys.readouterr().err


def test_list_goes_on_after_a_broken_study(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "sweeps" / "broken.toml").write_text("title = ")
    assert cli.main(["list"]) == 2
    printed = capsys.readouterr()
    assert "A tiny study" in printed.out
    assert "broken.toml, line 1: not valid TOML" in printed.err


def test_list_without_studies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scbjax, "__file__", str(tmp_path / "scbjax" / "__init__.py"))
    assert cli.main(["list"]) == 2
    assert "there are no studies" in capsys.readouterr().err


def test_a_closed_pipe_is_no_error(checkout: Path) -> None:
    command = [sys.executable, "-m", "scbjax", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert checkout.is_dir()


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
    assert cli.read_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "1XB", "1e9", "nan", "1" * 400, "0", "0.1B"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(StudyError, match="--memory must be a size"):
        cli.read_bytes(text)


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
    assert ["trajectories", "8"] in lines
    assert ["programs", "1"] in lines
    assert checkout.is_dir()


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


def test_all_figures_but_those_without_results(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results_of(checkout)
    (checkout / "figures" / "other.py").write_text(FIGURE.replace("tiny", "other"))
    (checkout / "figures" / "_shared.py").write_text("raise RuntimeError")
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


def test_a_figure_that_cant_be_written(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results_of(checkout)
    assert cli.main(["figure", "tiny", "--out", "sweeps/tiny.toml"]) == 2
    assert "sweeps/tiny.toml" in capsys.readouterr().err


def test_figures_of_this_checkout_name_their_study() -> None:
    found = figures.find_figures()
    assert {name: figures.study_of(path) for name, path in found.items()} == {
        name: name for name in found
    }
    assert {"quickstart", "fig1", "fig3"} <= set(found)
