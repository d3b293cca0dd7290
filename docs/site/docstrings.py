"""Docstrings of the library as reStructuredText, for the pages of the API.

They are written to be read as they are: formulas stand in a line of their own, indented, and bars
and stars are those of formulas. Here formulas become maths, examples of code become code, and what
reStructuredText would take for markup is escaped. Sections (Args, Returns ...) are left to
Napoleon.
"""

import ast
import re
import textwrap
import tomllib

from maths import NotMathsError, looks_like_maths, tex

SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Warns|Examples?|Notes?|References):$")
ITEM = re.compile(r"\s*(?:[-*]|\d+\.) ")
EQUATION = re.compile(r"^[^=`]{1,30} (?:=|\+=|-=|<-) ")
LABELLED = re.compile(r"((?:[A-Za-z'^()]+ ?){1,4}:(?=\s{2}))?\s*(.*)")
# Symbols in a sentence: alpha_V, K_P, mu; not what a section explains, such as `mu: ...`.
SYMBOL = re.compile(
    r"(?<![\w`./\"'=\[(-])(?:(?:alpha|eta|Delta|K|h)_(?:VP|AQ|[APQV])|mu)'?(?![\w(=:^`\"']|-orth)"
)
# What has a meaning already: literals, roles and names in backticks, strong and emphasised text.
MARKUP = re.compile(
    r"(``.+?``|:[a-z:]+:`[^`]+`|`[^`]+`_{0,2}|\*\*\S[^*]*\*\*|(?<![\w*])\*[^\s*][^*]*\*(?![\w*]))",
    re.DOTALL,
)


def prepare(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText, with Google's sections as they were."""
    written: list[str] = []
    indent = 0
    for chunk in _joined(_chunks(lines)):
        if not chunk[0].strip() or chunk[0].lstrip().startswith(">>>"):
            written += chunk
        elif _is_block(chunk, indent):
            written += _block(chunk)
        elif _is_equations(chunk):
            written += _maths(chunk)
        else:
            written += _prose(chunk)
            indent = _text_indent(chunk)
    return written


def _chunks(lines: list[str]) -> list[list[str]]:
    """Lines between blank ones, and these, one by one."""
    chunks: list[list[str]] = []
    for line in lines:
        if not line.strip() or not chunks or not chunks[-1][0].strip():
            chunks.append([line])
        else:
            chunks[-1].append(line)
    return chunks


def _joined(chunks: list[list[str]]) -> list[list[str]]:
    """Neighbouring chunks of code as one: a file that is shown has empty lines."""
    joined: list[list[str]] = []
    for chunk in chunks:
        before = joined[-2] if len(joined) > 1 else [""]
        both = [*before, "", *chunk]
        if (
            _indent(chunk[0]) >= 4
            and _indent(before[0]) == _indent(chunk[0])
            and not joined[-1][0].strip()
            and language_of(textwrap.dedent("\n".join(both))) in ("python", "toml")
        ):
            joined[-2:] = [both]
        else:
            joined.append(chunk)
    return joined


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _text_indent(chunk: list[str]) -> int:
    """Where the text begins of what follows a chunk."""
    if SECTION.match(chunk[0].strip()):
        return _indent(chunk[0]) + 4
    items = [line for line in chunk if ITEM.match(line)]
    if items:
        match = ITEM.match(items[-1])
        assert match is not None
        return match.end()
    return _indent(chunk[0])


def _is_block(chunk: list[str], indent: int) -> bool:
    return _indent(chunk[0]) >= indent + 4 and not ITEM.match(chunk[0])


def _is_equations(chunk: list[str]) -> bool:
    """Whether all lines are equations: some docstrings have them without an indentation."""
    try:
        return all(EQUATION.match(line) and bool(tex(line.strip().rstrip("."))) for line in chunk)
    except NotMathsError:
        return False


def language_of(code: str) -> str | None:
    """The language of an indented block: Python, TOML, other text; None for formulas."""
    if not re.search(r'"|\bimport\b|\w\.[a-z_]+\(', code):
        return "text" if re.search(r"\w/\w+\.\w", code) else None
    try:
        tomllib.loads(code)
    except tomllib.TOMLDecodeError:
        return "python" if _is_python(code) else "text"
    return "toml"


def _is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def _block(chunk: list[str]) -> list[str]:
    language = language_of(textwrap.dedent("\n".join(chunk)))
    if language is None:
        return _maths(chunk)
    lead = " " * _indent(chunk[0])
    outer = lead[4:]
    return [f"{outer}.. code-block:: {language}", "", *chunk, ""]


def _maths(chunk: list[str]) -> list[str]:
    first = _indent(chunk[0])
    outer = " " * max(first - 4, 0)
    rows = []
    for line in chunk:
        match = LABELLED.fullmatch(line.strip())
        assert match is not None
        label, rest = match.groups()
        more = r"\qquad " if _indent(line) > first else ""
        name = rf"{tex(label[:-1], words=True)}\text{{:}}\quad " if label else ""
        rows.append(f"{more}{name}{tex(rest, words=True)}")
    if len(rows) > 1:  # which Sphinx sets in an environment that aligns them
        rows = [f"& {row}" for row in rows]
    last = len(rows) - 1
    lines = [
        f"{outer}   {row}" + (r" \\" if number < last else "") for number, row in enumerate(rows)
    ]
    return [f"{outer}.. math::", "", *lines, ""]


def _prose(chunk: list[str]) -> list[str]:
    parts = MARKUP.split("\n".join(chunk))
    return "".join(
        _marked(part) if number % 2 else _escaped(part) for number, part in enumerate(parts)
    ).split("\n")


def _marked(part: str) -> str:
    if part.startswith("``"):
        inside = " ".join(part[2:-2].split())
        return f":math:`{tex(inside)}`" if looks_like_maths(inside) else part
    return part


def _escaped(text: str) -> str:
    """What would be a substitution, emphasis or a link, and is none."""
    text = re.sub(r"(?<!\\)\|", r"\\|", text)
    lines = [re.sub(r"(?<=\S)\*|\*(?=\S)", r"\\*", line) for line in text.split("\n")]
    text = re.sub(r"(?<=\w)_(?=[\s,.;:)'?!]|$)", r"\\_", "\n".join(lines))
    return SYMBOL.sub(lambda match: f":math:`{tex(match.group())}`", text)
