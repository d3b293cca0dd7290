"""What is built and installed: contents, metadata, and the command away from any checkout.

`make dist` runs these tests on the files that it has built (SCBJAX_DIST); alone they build some.
"""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import scbjax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = f"scbjax-{scbjax.__version__}"
PYTHONS = ["3.11", "3.12", "3.13"]
WRITTEN = ("results", "figures/out", "build", "dist")
"""Folders of what runs and tools write, from the checkout's root."""
BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, f"build_{sys.argv[1]}")(sys.argv[2])
"""


class Dist(NamedTuple):
    sdist: Path
    wheel: Path


class Installed(NamedTuple):
    """An environment with the wheel, and a folder outside of any checkout to work in."""

    python: Path
    folder: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.python.with_name("scbjax")), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment(), capture_output=True, text=True, check=False
        )

    def output(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def environment() -> dict[str, str]:
    """This process's, without what leads Python to other places."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def build(kind: str, source: Path, out: Path) -> None:
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def copied(out: Path) -> Path:
    """The checkout as it is, without what is written there."""
    tools = shutil.ignore_patterns(
        ".git", ".venv*", ".*_cache", ".hypothesis", "*.egg-info", "__pycache__"
    )

    def skip(folder: str, names: list[str]) -> set[str]:
        written = {name for name in names if is_written(Path(folder, name).relative_to(ROOT))}
        return written | tools(folder, names)

    return Path(shutil.copytree(ROOT, out, ignore=skip))


def is_written(path: Path) -> bool:
    """Whether a file or folder of the checkout is written by runs and tools."""
    return path.as_posix().startswith(WRITTEN) or "__pycache__" in path.parts


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Dist:
    """A source distribution of the checkout, and the wheel that is built of it."""
    if given := os.environ.get("SCBJAX_DIST"):
        out = Path(given)
    else:
        out = tmp_path_factory.mktemp("dist")
        build("sdist", copied(out / "checkout"), out)
        with tarfile.open(out / f"{NAME}.tar.gz") as archive:
            archive.extractall(out / "unpacked", filter="data")
        build("wheel", out / "unpacked" / NAME, out)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Dist(sdist, wheel)


@pytest.fixture(scope="module")
def installed(dist: Dist, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a new environment, which has everything else from the running one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run(
        [*pip, "--disable-pip-version-check", "--no-deps", "--no-index", str(dist.wheel)],
        check=True, env=environment(),
    )  # fmt: skip
    (packages,) = folder.glob("venv/lib/python*/site-packages")
    # Behind the environment's own, and .pth files in it are not read: not those of this checkout.
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    (folder / "work").mkdir()
    return Installed(python, folder / "work")


# -------------------------------------------------------------------------------- contents


def below(*folders: str) -> set[str]:
    """Files of the checkout in these folders, without those that are written there."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not is_written(path.relative_to(ROOT))
    }


def test_the_wheel_holds_the_library_and_all_that_it_ships(dist: Dist) -> None:
    names = zipfile.ZipFile(dist.wheel).namelist()
    assert len(names) == len(set(names))
    held = {name for name in names if not name.startswith(f"{NAME}.dist-info/")}
    kept_here = {name for name in below("sweeps") if name.startswith("sweeps/claims/")}
    kept_here.add("sweeps/benchmarks/_report.py")
    shipped = {f"scbjax/_shipped/{name}" for name in below("sweeps", "figures") - kept_here}
    assert held == below("scbjax") | shipped
    assert {"scbjax/py.typed", "scbjax/_shipped/sweeps/fig1.toml"} <= held
    assert "scbjax/_shipped/figures/scbjax.mplstyle" in held


def test_the_source_distribution_holds_the_checkout(dist: Dist) -> None:
    with tarfile.open(dist.sdist) as archive:
        held = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    folders = (".ci", ".github", "docs", "figures", "requirements", "scbjax", "sweeps", "tests")
    files = {
        *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile"),
        *("README.md", "REPRODUCTION.md", "pyproject.toml", "setup.py"),
    }
    assert below(*folders) | files <= held
    assert not {name for name in held if is_written(Path(name)) or name.endswith(".pyc")}


def test_an_editable_installation_copies_nothing(tmp_path: Path) -> None:
    source = copied(tmp_path / "checkout")
    build("editable", source, tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert not {name for name in zipfile.ZipFile(wheel).namelist() if "_shipped" in name}
    assert not list(source.rglob("_shipped"))


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))


def test_the_metadata(dist: Dist) -> None:
    said = metadata(dist.wheel)
    assert said["Version"] == scbjax.__version__
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Requires-Python"] == f">={PYTHONS[0]}"
    assert said.get_all("Project-URL")
    classifiers = said.get_all("Classifier") or []
    minor = "Programming Language :: Python :: 3."
    assert [name[-4:] for name in classifiers if name.startswith(minor)] == PYTHONS
    assert "Typing :: Typed" in classifiers
    assert str(said.get_payload()).startswith("# scbjax")


# ------------------------------------------------------------------------------- installed


def test_what_is_installed_is_the_wheel(installed: Installed) -> None:
    code = "import scbjax; print(scbjax.__file__, scbjax.__version__)"
    done = subprocess.run(
        [str(installed.python), "-c", code], cwd=installed.folder, env=environment(),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    path, version = done.stdout.split()
    assert Path(path).is_relative_to(installed.python.parents[1])
    assert version == scbjax.__version__


def test_studies_figures_and_benchmarks_are_there_without_a_checkout(installed: Installed) -> None:
    studies = {path.stem for path in (ROOT / "sweeps").glob("*.toml")}
    listed = {line.split()[0] for line in installed.output("list").splitlines()[1:]}
    assert studies <= listed
    assert "quickstart: Proximal steps" in installed.output("show", "quickstart")
    benchmarks = {path.stem for path in (ROOT / "sweeps" / "benchmarks").glob("[!_]*.py")}
    listed = {line.split()[0] for line in installed.output("bench").splitlines()[1:]}
    assert listed == benchmarks
    missing = installed.run("figure", "fig3")
    assert missing.returncode == 2
    assert missing.stderr.splitlines() == [
        "scbjax: results/fig1/fig1.nc is missing; `scbjax run fig1` makes it"
    ]
    assert not list(installed.folder.iterdir())


def test_a_study_of_the_working_folder_comes_first(installed: Installed, tmp_path: Path) -> None:
    own = tmp_path / "sweeps" / "fig1.toml"
    own.parent.mkdir()
    text = (ROOT / "sweeps" / "quickstart.toml").read_text(encoding="utf-8")
    own.write_text(text.replace('title = "', 'title = "Mine: ', 1), encoding="utf-8")
    here = installed._replace(folder=tmp_path)
    (row,) = (line for line in here.output("list").splitlines() if line.startswith("fig1 "))
    assert "Mine: " in row


@pytest.mark.slow
def test_runs_figures_and_fits_without_a_checkout(installed: Installed, tmp_path: Path) -> None:
    here = installed._replace(folder=tmp_path)
    said = here.output("run", "quickstart", "--small")
    dataset = tmp_path / "results" / "small" / "quickstart" / "quickstart.nc"
    assert dataset.is_file()
    assert dataset.with_suffix(".png").is_file()
    assert "quickstart.png" in said
    drawn = here.output("figure", "quickstart", "--results", "results/small").split()
    assert {"figures/out/quickstart.png", "figures/out/quickstart.pdf"} <= set(drawn)
    assert all((tmp_path / name).is_file() for name in drawn)
    assert "| " in here.output("figure", "quickstart", "--results", "results/small", "--numbers")
    here.output("verify", "results/small/quickstart")

    (tmp_path / "text.txt").write_text("the cat sat on the mat and that was that. " * 200)
    few = ("--context", "4", "--model", "mtd", "--resamples", "0", "--most-lags", "2")
    here.output("fit", "text.txt", *few)
    assert (tmp_path / "results" / "fit" / "text.nc").is_file()
    assert here.output("predict", "results/fit/text.nc", "the c")


@pytest.mark.slow
def test_benchmarks_write_to_the_working_folder(installed: Installed, tmp_path: Path) -> None:
    packages = set(installed.python.parents[1].rglob("*.json"))
    here = installed._replace(folder=tmp_path)
    here.output("bench", "sampler", "--quick")
    (stored,) = tmp_path.rglob("sampler.json")
    assert stored.parent.parent == tmp_path / "results" / "benchmarks" / "quick"
    assert stored.with_suffix(".png").is_file()
    assert set(installed.python.parents[1].rglob("*.json")) == packages


# ---------------------------------------------------------------------- beside the package


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", scbjax.__version__)
    assert citation()["version"] == scbjax.__version__  # the format wants it there too


def citation() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return read


def test_the_citation_has_what_its_format_asks_for() -> None:
    """The required fields of the Citation File Format 1.2.0, and the kinds of the others used."""
    said = citation()
    assert said["cff-version"] == "1.2.0"
    assert said["type"] == "software"
    assert said["license"] == PROJECT["license"]
    assert {"message", "title", "authors"} <= said.keys()
    assert set(said) <= {
        *("cff-version", "message", "title", "type", "version", "license", "authors"),
        *("keywords", "references", "url", "repository-code", "date-released", "abstract"),
    }
    for reference in said["references"]:
        assert {"authors", "title", "type"} <= reference.keys()
    people = [*said["authors"], *(one for r in said["references"] for one in r["authors"])]
    entity, person = {"name"}, {"family-names", "given-names"}
    assert all(one.keys() in (entity, person) for one in people)


def test_the_changelog_keeps_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    dated = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}", one) for one in headings[1:]]
    assert all(dated), headings
    # What is released last is what the package says it is, or the package is not released yet.
    versions = [match.group(1) for match in dated if match]
    assert scbjax.__version__ in [*versions[:1], *re.findall(r"will be (\S+),", text)]
    kinds = set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_workflow_runs_what_has_to_pass_with_every_python() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["check"]["strategy"]["matrix"]["python"] == PYTHONS
    runs = {name: [step.get("run") for step in job["steps"]] for name, job in jobs.items()}
    assert "bash .ci/run" in runs["check"]
    assert "make dist" in runs["dist"]
    pins = {path.stem for path in (ROOT / "requirements").glob("py3*.txt")}
    assert pins == {f"py{version.replace('.', '')}" for version in PYTHONS}
