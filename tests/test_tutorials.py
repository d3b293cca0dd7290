"""The tutorials run, and what they say of their results is so: hidden cells assert it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS = re.compile(r"\A(?::[\w-]+:.*\n)+")
SHOWN = "import matplotlib; matplotlib.use('agg')"


def script_of(text: str) -> str:
    """The cells of a tutorial, each on its own lines, so that a traceback names them."""
    lines = [SHOWN]
    for match in CELL.finditer(text):
        start = text.count("\n", 0, match.start(1))
        options = OPTIONS.match(match.group(1))
        code = match.group(1)[options.end() :] if options else match.group(1)
        start += options.group().count("\n") if options else 0
        lines += [""] * (start - len(lines)) + code.splitlines()
    return "\n".join(lines) + "\n"


def tutorials() -> list[Path]:
    return sorted(TUTORIALS.glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("path", tutorials(), ids=lambda path: path.stem)
def test_a_tutorial_runs(path: Path, tmp_path: Path) -> None:
    script = tmp_path / f"{path.stem}.py"
    script.write_text(script_of(path.read_text(encoding="utf-8")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_three_and_each_asserts_what_it_says() -> None:
    assert len(tutorials()) >= 3
    for path in tutorials():
        text = path.read_text(encoding="utf-8")
        assert len(CELL.findall(text)) == text.count("{code-cell}")
        hidden = [cell for cell in CELL.findall(text) if ":tags: [remove-cell]" in cell]
        assert sum(cell.count("assert ") for cell in hidden) >= 3, path.stem


def test_cells_keep_their_lines() -> None:
    cells = "```{code-cell} python\n:tags: [x]\n\na = 1\n```", "```{code-cell} python\nb\n```"
    text = "\n\n".join(["# Title", *cells]) + "\n"
    lines = script_of(text).splitlines()
    assert lines[5] == "a = 1"
    assert lines[9] == "b"
