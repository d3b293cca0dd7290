"""The documents keep what they say: generated pages are current, and examples run."""

import importlib.util
import re
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


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_examples_run(document: str, tmp_path: Path) -> None:
    """All examples of a document, in order and in one namespace, as a reader would type them."""
    examples = blocks(document, "python")
    assert examples
    lines: list[str] = []
    for start, code in examples:  # padded, so that a traceback names the document's own line
        lines += [""] * (start - 1 - len(lines)) + code.splitlines()
    script = tmp_path / f"{Path(document).stem}.py"
    script.write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_example_study_is_valid() -> None:
    """The fragments of docs/studies.md, one after the other, make a study."""
    text = "".join(code for _, code in blocks("docs/studies.md", "toml"))
    study = parse_study(text, "example")
    assert [axis.name for axis in study.axes] == ["seed", "batch_size", "l1", "arm"]
    assert study.num_trajectories == 16 * 2 * 5 * 3


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/studies.md"])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (path.parent / target).exists()] == []
