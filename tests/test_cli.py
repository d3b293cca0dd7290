"""The command from end to end: what it prints, its exit status, and one line for what is wrong."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray

import scbjax
from scbjax import cli
from scbjax.sweep import cost, execute, figures
from scbjax.sweep.execute import RunReport, provenance
from scbjax.sweep.fields import StudyError
from scbjax.sweep.plan import Plan, make_plan
from scbjax.sweep.store import Manifest, Store
from scbjax.sweep.study import load_study, parse_study

WAIT_SECONDS = 120.0
"""Far more than a process needs on a busy machine."""
SECONDS_INTO_A_RUN = 10.0
"""Longer than it takes to begin, much shorter than the run."""

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
        ["--help"],
        ["run", "--help"],
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
    for command in (
        *("run", "list", "show", "status", "verify", "rerun", "figure", "devices", "bench"),
    ):
        assert f"• {command} " in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"scbjax {scbjax.__version__}\n"


# ---------------------------------------------------------------------------- what is wrong

BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    "no command": (
        [],
        ["Expected one of {run, list, show, status, verify, rerun, figure, devices, bench}"],
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
    "status of no path": (["status", "none"], ["none holds no results"]),
    "verify of nothing": (["verify", "sweeps"], ["sweeps holds no results"]),
    "nothing to verify": (["verify", "x", "--count", "0"], ["--count must be", "1, got '0'"]),
    "seed of the draw": (["verify", "x", "--seed", "-1"], ["--seed must be", "0, got '-1'"]),
    "missing dataset": (["rerun", "none.nc"], ["none.nc is missing"]),
    "unknown figure": (["figure", "tyni"], ["no figure is called 'tyni'", "'tiny'"]),
    "figure that is a path": (["figure", "../x"], ["no figure is called '../x'"]),
    "unknown benchmark": (["bench", "tyni"], ["no benchmark is called 'tyni'", "'tiny'"]),
    "benchmark without a name": (["bench", ""], ["no benchmark is called ''"]),
    "benchmark and all": (["bench", "tiny", "--all"], ["not both", "'tiny'"]),
    "benchmark out is a file": (["bench", "tiny", "--out", "broken.toml"], ["broken.toml"]),
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
        "draw it with: scbjax figure tiny",
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
        self, plan: Plan, out: Path, *, progress: object, force: bool, engine: object, facts: object
    ) -> RunReport:
        assert None not in {progress, engine}
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
    assert cli.main(["run", "tiny", "--set", "l1=0"]) == 0
    other = next(path for path in (checkout / "results").iterdir() if path.name != "tiny")
    assert capsys.readouterr().out.splitlines() == [
        "dataset: results/tiny/tiny.nc",
        "draw it with: scbjax figure tiny",
        f"dataset: results/{other.name}/tiny.nc",
        f"results/{other.name}/tiny.png",
    ]
    assert cli.main(["run", "tiny", "--set", "l1=0", "--force"]) == 0
    assert [(out, force) for _, out, force in fake_runs.calls] == [
        (Path("results/tiny"), False),
        (Path("results") / other.name, False),
        (Path("results/tiny"), True),
    ]


def test_what_a_run_is_asked_for(checkout: Path, fake_runs: FakeRuns) -> None:
    whole = make_plan(load_study("tiny", ["steps=8"]))
    needed = cost.chunk_bytes(whole.programs[0].fixed, (1, 2), 1)
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
        "draw it with: scbjax figure tiny --results 'a b'",
    ]
    assert fake_runs.calls[0][1] == Path("a b/tiny")
    assert cli.main(["figure", "tiny", "--results", "a b"]) == 0
    assert checkout.is_dir()


def test_a_study_without_a_script_ends_with_the_default_figure(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "figures" / "tiny.py").write_text('STUDY = "other"')
    assert cli.main(["run", "tiny"]) == 0
    pictures = ["figures/out/tiny.png", "figures/out/tiny.pdf"]
    dataset, hint = "results/tiny/tiny.nc", "draw it with: scbjax figure results/tiny/tiny.nc"
    assert capsys.readouterr().out.splitlines() == [f"dataset: {dataset}", *pictures, hint]
    assert (checkout / pictures[0]).read_bytes().startswith(b"\x89PNG")
    assert (checkout / pictures[1]).read_bytes().startswith(b"%PDF")
    assert cli.main(["run", "tiny", "--no-figure"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [f"dataset: {dataset}", hint]
    (checkout / "figures" / "tiny.py").unlink()
    for name in (dataset, "results/tiny", "tiny"):
        assert cli.main(["figure", name, "--out", "p"]) == 0
        assert capsys.readouterr().out.splitlines() == ["p/tiny.png", "p/tiny.pdf"]
    assert cli.main(["figure", "tiny", "--numbers"]) == 2
    assert "--numbers needs the name of a figure with a script" in capsys.readouterr().err


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


def test_an_interrupted_run_says_how_to_continue(
    checkout: Path, capsys: pytest.CaptureFixture[str], fake_runs: FakeRuns
) -> None:
    fake_runs.interrupted = True
    options = "--out 'a b' --precision high"
    given = ["--set", "steps=8", "--set", "axes.l1=[0, 1]", *shlex.split(options)]
    assert cli.main(["run", "tiny", "--force", *given]) == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().out.splitlines() == [
        "stopped, with all that was done saved in a b",
        "continue with: scbjax run tiny --set steps=8 --set 'axes.l1=[0, 1]' " + options,
    ]
    assert checkout.is_dir()


def test_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["devices"]) == 0
    assert "cpu" in capsys.readouterr().out


def test_a_platform_that_jax_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    ran = run("devices")
    assert ran.returncode == 2
    assert ran.stderr.startswith("scbjax: JAX finds no device to run on: ")
    assert ran.stderr.count("\n") == 1


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
    assert process.returncode == cli.EXIT_INTERRUPTED
    assert "Traceback" not in err
    assert f"continue with: scbjax run tiny {' '.join(longer)}" in out
    assert cli.main(["status", "results/tiny"]) == 0
    assert "0 of 1 done" in capsys.readouterr().out


def test_interrupted_before_there_is_anything_to_save(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_study", interrupt)
    assert cli.main(["run", "tiny"]) == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "\nscbjax: interrupted\n"
    assert checkout.is_dir()
