"""The documents keep what they say: generated pages are current, and examples run."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import scbjax
from scbjax.sweep.study import parse_study

ROOT = Path(__file__).resolve().parents[1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load(ROOT / "docs" / "generate.py")


@pytest.mark.parametrize("page", ["api", "fields"])
def test_generated_pages_are_current(page: str) -> None:
    written = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert written == getattr(generate, page)(), "run `make docs`"


def test_every_exported_name_is_documented() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^- \*\*`(\w+)", text, flags=re.MULTILINE)) == sorted(
        scbjax._MODULE_OF
    )


def test_every_entry_says_something() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert not re.findall(r"^- .*: *$", text, flags=re.MULTILINE)


def blocks(document: str, language: str) -> list[tuple[int, str]]:
    """The examples of a document in a language, with the lines that they begin at."""
    text = (ROOT / document).read_text(encoding="utf-8")
    fenced = re.compile(rf"^```{language}\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
    return [
        (text.count("\n", 0, match.start(1)) + 1, match.group(1)) for match in fenced.finditer(text)
    ]


def write_files(document: str, folder: Path) -> None:
    """Writes the examples that begin with the name of a file: `# figures/weights.py`."""
    for language in ("toml", "python"):
        for _, code in blocks(document, language):
            name = re.match(r"# (\S+/\S+)\n", code)
            if name:
                path = folder / name.group(1)
                path.parent.mkdir(exist_ok=True)
                path.write_text(code, encoding="utf-8")


def run(*arguments: str | Path, cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def run_examples(document: str, folder: Path) -> None:
    """Runs the other Python examples in order, in one namespace, as a reader would type them."""
    lines: list[str] = []
    for start, code in blocks(document, "python"):
        if not re.match(r"# \S+/\S+\n", code):
            # Padded, so that a traceback names the document's own line.
            lines += [""] * (start - 1 - len(lines)) + code.splitlines()
    assert lines
    script = folder / f"{Path(document).stem}.py"
    script.write_text("\n".join(lines), encoding="utf-8")
    run(script, cwd=folder)


def test_readme_examples_run(tmp_path: Path) -> None:
    ((_, study),) = blocks("README.md", "toml")
    (tmp_path / "my_study.toml").write_text(study, encoding="utf-8")
    run("-m", "scbjax", "run", "my_study.toml", cwd=tmp_path)
    run_examples("README.md", tmp_path)


@pytest.mark.slow
def test_contributing_examples_run(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for helper in ("_shared.py", "scbjax.mplstyle"):
        shutil.copy(ROOT / "figures" / helper, tmp_path / "figures")
    write_files("CONTRIBUTING.md", tmp_path)
    run("-m", "scbjax", "run", "weights", cwd=tmp_path)
    assert (tmp_path / "figures" / "out" / "weights.png").stat().st_size > 0
    run_examples("CONTRIBUTING.md", tmp_path)


def test_example_study_is_valid() -> None:
    """The fragments of docs/studies.md, one after the other, make a study."""
    text = "".join(code for _, code in blocks("docs/studies.md", "toml"))
    search = "record.variables=['rounded_attention_distance', 'samples', 'stage']"
    study = parse_study(text, "example", [search])
    assert [axis.name for axis in study.axes] == ["seed", "batch_size", "l1", "arm"]
    assert study.num_trajectories == 16 * 2 * 5 * 3


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        *(f"docs/{page}.md" for page in ("studies", "figures", "performance", "trust", "clusters")),
    ],
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_readme_names_the_pinned_versions(python: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| {re.escape(python)} \|(.*)\|(.*)\|$", text, flags=re.MULTILINE)
    for cell, pins in zip(row, ("oldest", f"py{python.replace('.', '')}"), strict=True):
        exact = (ROOT / "requirements" / f"{pins}.txt").read_text(encoding="utf-8")
        for package, version in re.findall(r"(\w+) ([\d.]+\d)", cell):
            assert re.search(rf"^{package.lower()}=={re.escape(version)}$", exact, re.MULTILINE)
        assert "JAX" in cell
