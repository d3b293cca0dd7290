"""Puts together the sources of the site: pages, gallery, API, and the files that pages link to.

``make site`` runs it, and Sphinx after it. The pages of ``docs/``, the README, REPRODUCTION.md and
others are taken as they are: links in them, which lead to files of the checkout so that they work
where the code is read, are made to lead to pages of the site. What stands nowhere else is in
``docs/site/pages``. Nothing here needs Sphinx.

    python docs/site/assemble.py OUT
"""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from writing import write

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = Path(__file__).resolve().parent / "pages"

# What pages link to, from the root of the checkout, and the page of the site that it is.
NAMED = {
    "README.md": "index",
    "REPRODUCTION.md": "reproduction",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "docs/examples": "how-to/index",
    "docs/api.md": "api/index",
}
GENERATED = ("api.md",)  # pages of docs/ that the site has in another form
FIGURES, NUMBERS = "docs/figures.md", "docs/numbers.md"
PICTURES = (".png", ".gif", ".svg")
LANGUAGES = {".py": "python", ".toml": "toml", ".md": "markdown", ".sh": "sh", ".cff": "yaml"}
INCLUDE = re.compile(r"^<!-- include (\S+?)(?:: (.+))? -->$", re.MULTILINE)
REST = "<!-- the rest -->"
CONTENTS = re.compile(r"^```\{toctree\}\n(?::[^\n]*\n)*\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1`*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\])\(([^()\s]+)\)")


class SiteError(ValueError):
    """A page that links to, or includes, what is not there."""


@dataclass
class Site:
    """The sources of the site, by their paths.

    Attributes:
        texts: pages, as text.
        copies: pictures and other files, and where they are copied from.
        thumbnails: small pictures, and what they are made of.
    """

    texts: dict[str, str] = field(default_factory=dict)
    copies: dict[str, Path] = field(default_factory=dict)
    thumbnails: dict[str, Path] = field(default_factory=dict)

    def add(self, page: str, text: str, source: str) -> None:
        """Adds a page made of a file of the checkout, with its links."""
        self.texts[f"{page}.md"] = relinked(self, included(self, text), source)

    def picture(self, path: str) -> str:
        """The path of a picture of the checkout on the site."""
        self.copies[f"pictures/{path}"] = ROOT / path
        return f"/pictures/{path}"


def read(path: str) -> str:
    """The text of a file of the checkout."""
    return (ROOT / path).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------ pages and links


def pages() -> dict[str, str]:
    """The pages that are files of the checkout, and these files: ``{"trust": "docs/trust.md"}``."""
    found = {path.stem: f"docs/{path.name}" for path in sorted(DOCS.glob("*.md"))}
    found = {name: path for name, path in found.items() if Path(path).name not in GENERATED}
    for path in sorted((DOCS / "tutorials").glob("*.md")):
        found[f"tutorials/{path.stem}"] = f"docs/tutorials/{path.name}"
    for path in sorted(PAGES.rglob("*.md")):
        found[str(path.relative_to(PAGES).with_suffix(""))] = str(path.relative_to(ROOT))
    for name, page in NAMED.items():
        if name.endswith(".md") and page not in found and (ROOT / name).is_file():
            found[page] = name
    return found


@cache
def page_of() -> Mapping[str, str]:
    """The page that a file of the checkout is on."""
    return {path: page for page, path in pages().items()} | NAMED


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """A text with everything changed that is not code."""
    parts, end = [], 0
    for match in FENCE.finditer(text):
        parts += [change(text[end : match.start()]), match.group()]
        end = match.end()
    return "".join([*parts, change(text[end:])])


def relinked(site: Site, text: str, source: str) -> str:
    """A text of the file ``source`` with links to pages of the site."""

    def change(match: re.Match[str]) -> str:
        before = match.string[: match.start()]
        is_picture = before[before.rfind("[") - 1 :].startswith("!")
        return f"({target(site, match.group(1), source, is_picture=is_picture)})"

    return outside_code(text, lambda part: LINK.sub(change, part))


def target(site: Site, link: str, source: str, *, is_picture: bool) -> str:
    """Where a link of a file leads on the site."""
    if "://" in link or link.startswith(("#", "/", "mailto:")):
        return link
    path, mark, anchor = link.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / path).exists():
        raise SiteError(f"{source} links to {link}, which is not there")
    if is_picture:
        return site.picture(path)
    figure = re.fullmatch(r"docs/(\w+)\.png", path)
    if figure and figure.group(1) in captions():
        return f"/gallery/{figure.group(1)}.md"
    page = page_of().get(path) or file_page(site, path)
    return f"/{page}.md{mark}{anchor}"


def included(site: Site, text: str) -> str:
    """A text with parts of other files in it: ``<!-- include README.md: Versions -->``."""

    def part(match: re.Match[str]) -> str:
        path, heading = match.groups()
        whole = read(path)
        if heading is None:
            language = LANGUAGES.get(Path(path).suffix, "text")
            return f"````{language}\n{whole.rstrip()}\n````"
        return relinked(site, section(whole, heading, path), path)

    return INCLUDE.sub(part, text)


def section(text: str, heading: str, path: str) -> str:
    """What stands under a heading of the second level."""
    found = sections(text)
    if heading not in found:
        raise SiteError(f"{path} has no section {heading!r}; it has {', '.join(found)}")
    return found[heading]


def sections(text: str) -> dict[str, str]:
    """The sections of a text by their headings of the second level."""
    heads = [
        match
        for match in re.finditer(r"^#{1,2} (.*)$", text, re.MULTILINE)
        if not any(fence.start() < match.start() < fence.end() for fence in FENCE.finditer(text))
    ]
    ends = [*(match.start() for match in heads[1:]), len(text)]
    return {
        match.group(1): text[match.end() : end].strip("\n")
        for match, end in zip(heads, ends, strict=True)
        if match.group().startswith("##")
    }


def file_page(site: Site, path: str) -> str:
    """The page that shows a file, or lists a folder, that pages link to."""
    page = f"files/{path}"
    if f"{page}.md" in site.texts:
        return page
    head = f"---\norphan: true\nnosearch: true\n---\n\n# `{path}`\n\n"
    if (ROOT / path).is_dir():
        site.texts[f"{page}.md"] = ""  # a folder may be linked to by a file in it
        names = sorted(item.name for item in (ROOT / path).iterdir() if item.name[0] not in "._")
        lines = [f"- [`{name}`](/{_shown(site, f'{path}/{name}')}.md)" for name in names]
        site.texts[f"{page}.md"] = head + "\n".join(lines) + "\n"
    else:
        language = LANGUAGES.get(Path(path).suffix, "text")
        site.texts[f"{page}.md"] = f"{head}`````{language}\n{read(path).rstrip()}\n`````\n"
    return page


def _shown(site: Site, path: str) -> str:
    if Path(path).suffix in PICTURES:
        page = f"files/{path}"
        site.texts[f"{page}.md"] = (
            f"---\norphan: true\nnosearch: true\n---\n\n# `{path}`\n\n![]({site.picture(path)})\n"
        )
        return page
    return page_of().get(path) or file_page(site, path)


# ------------------------------------------------------------------------------------- gallery


@dataclass(frozen=True)
class Caption:
    """A figure as docs/figures.md has it.

    Attributes:
        name: of the figure, as in ``docs/NAME.png``.
        title: the heading of its section.
        text: the section.
    """

    name: str
    title: str
    text: str

    @property
    def script(self) -> str:
        """The script that draws it."""
        return f"figures/{self.name}.py"

    @property
    def study(self) -> str:
        """The study whose dataset it is drawn from."""
        match = re.search(r'^STUDY: Final = "(\w+)"$', read(self.script), re.MULTILINE)
        if match is None:
            raise SiteError(f"{self.script} names no STUDY")
        return match.group(1)


@cache
def captions() -> Mapping[str, Caption]:
    """The captions of docs/figures.md by the names of their figures, in its order."""
    found = {}
    for title, text in sections(read(FIGURES)).items():
        for name in re.findall(r"!\[[^\]]*\]\((\w+)\.png\)", text):
            found[name] = Caption(name, title, text)
    return found


def gallery(site: Site) -> None:
    """Adds the gallery, and a page for each figure: its caption, its command and its numbers."""
    head = (PAGES / "gallery" / "index.md").read_text(encoding="utf-8")
    paper, beyond = read(FIGURES).split("\n# Beyond the paper\n")
    groups = {"The paper's claims": paper, "Beyond the paper": beyond}
    parts = [head]
    for title, text in groups.items():
        cards = [_card(site, it) for it in captions().values() if f"]({it.name}.png)" in text]
        parts.append(f"## {title}\n\n:::::{{grid}} 1 2 3 3\n:gutter: 3\n\n" + "\n".join(cards))
        parts.append(":::::\n")
    others = [_other_card(site, path) for path in other_pictures()]
    parts.append(
        "## Sequences of your own\n\n:::::{grid} 1 2 3 3\n:gutter: 3\n\n" + "\n".join(others)
    )
    parts.append(":::::\n")
    names = "\n".join(captions())
    parts.append(f"```{{toctree}}\n:hidden:\n\n{names}\n```\n")
    site.texts["gallery/index.md"] = "\n".join(parts)
    for caption in captions().values():
        site.add(f"gallery/{caption.name}", figure_page(caption), FIGURES)


def _card(site: Site, caption: Caption) -> str:
    small = f"pictures/thumbnails/{caption.name}.png"
    site.thumbnails[small] = DOCS / f"{caption.name}.png"
    return (
        f"::::{{grid-item-card}} {caption.title}\n:link: {caption.name}\n:link-type: doc\n"
        f":img-top: /{small}\n:img-alt: {caption.title}\n:class-item: figure-card\n\n"
        f"{_question(caption.study)}\n::::\n"
    )


def other_pictures() -> list[Path]:
    """The pictures of docs/ that are no figure of a study."""
    return [path for path in sorted(DOCS.glob("*.png")) if path.stem not in captions()]


def _other_card(site: Site, path: Path) -> str:
    """A card that leads to the page of docs/ with the name of the picture."""
    if path.stem not in pages():
        raise SiteError(f"docs/{path.name} has no caption in {FIGURES}, and no page of its own")
    text = read(pages()[path.stem])
    title = text.partition("\n")[0].removeprefix("# ")
    small = f"pictures/thumbnails/{path.name}"
    site.thumbnails[small] = path
    first = " ".join(text.split("\n\n")[1].split())
    return (
        f"::::{{grid-item-card}} {title}\n:link: /{path.stem}\n:link-type: doc\n"
        f":img-top: /{small}\n:img-alt: {title}\n:class-item: figure-card\n\n{first}\n::::\n"
    )


def _question(study: str) -> str:
    match = re.search(r'^question = "(.*)"$', read(f"sweeps/{study}.toml"), re.MULTILINE)
    if match is None:
        raise SiteError(f"sweeps/{study}.toml asks no question")
    return match.group(1)


def figure_page(caption: Caption) -> str:
    """The page of a figure, as a text with links as in docs/figures.md."""
    lead = re.compile(r"^`figures/[^\n]*\n(?:[^\n]+\n)*\n", re.MULTILINE)
    text = lead.sub("", caption.text + "\n", count=1)
    return f"""# {caption.title}

*{_question(caption.study)}*

{text}
Lines, bands and stars are explained [in front of the captions](figures.md#how-to-read-them).

## How it is made

```sh
scbjax run {caption.study}        # --small for a small size
scbjax figure {caption.name}
scbjax figure {caption.name} --numbers
```

It is drawn by [`{caption.script}`](../{caption.script}) from the dataset of the study
[`sweeps/{caption.study}.toml`](../sweeps/{caption.study}.toml):

:::{{dropdown}} The study

```toml
{read(f"sweeps/{caption.study}.toml").rstrip()}
```
:::
{_numbers(caption.name)}"""


def _numbers(name: str) -> str:
    found = {
        title: text
        for title, text in sections(read(NUMBERS)).items()
        if title.partition(",")[0] == name
    }
    parts = [
        f"\n## The numbers behind it{title[len(name) :]}\n\n{text}\n"
        for title, text in found.items()
    ]
    return "".join(parts)


# ----------------------------------------------------------------------------------------- API

ROOMS = {
    "The learner and its theory": "scbjax.",
    "Experiments": "scbjax.experiments.",
    "Fits of sequences": "scbjax.fitting.",
    "Studies and sweeps": "scbjax.sweep.",
}


def room_of(module: str) -> str:
    """The part of the API that a module belongs to."""
    return max((room for room in ROOMS if module.startswith(ROOMS[room])), key=lambda r: ROOMS[r])


def api(site: Site) -> None:
    """Adds a page for each module, written from its docstrings by Sphinx, and a list of them."""
    import generate  # docs/generate.py, which writes docs/api.md of the same modules

    head = (PAGES / "api" / "index.md").read_text(encoding="utf-8")
    parts = [head, _public_names(generate)]
    for room, prefix in ROOMS.items():
        modules = [module for module in generate.MODULES if room_of(module) == room]
        rows = [f"| {{py:mod}}`{it}` | {_cell(generate.summary(it))} |" for it in modules]
        parts.append(f"## {room}\n\n| module | |\n|---|---|\n" + "\n".join(rows) + "\n")
        names = "\n".join(f"{it.removeprefix(prefix)} <{it}>" for it in modules)
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {room}\n\n{names}\n```\n")
    site.texts["api/index.md"] = "\n".join(parts)
    for module in generate.MODULES:
        site.texts[f"api/{module}.rst"] = module_page(module, generate.entries(module))


def _public_names(generate: object) -> str:
    rows = [
        f"| {{py:obj}}`{name} <scbjax.{module}.{name}>` | {_cell(meaning)} |"
        for name, (module, meaning) in sorted(generate.exported().items())  # type: ignore[attr-defined]
    ]
    head = "## Names of `scbjax` itself\n\n| name | |\n|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    """A text in a table, where a bar would end the cell."""
    return text.replace("|", r"\|")


def module_page(module: str, entries: Mapping[str, str]) -> str:
    """The page of a module: its text, and all that it defines for others."""
    lines = [module, "=" * len(module), "", f".. automodule:: {module}", ""]
    for name, kind in entries.items():
        lines += [f".. auto{kind}:: {module}.{name}"]
        lines += {
            "class": ["   :members:", "   :member-order: bysource"],
            "data": ["   :no-value:"],
        }.get(kind, [])
        lines.append("")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------- files


def assemble() -> Site:
    """The sources of the site."""
    site = Site()
    for page, path in pages().items():
        if page not in ("gallery/index", "api/index"):
            site.add(page, text_of(path), path)
    gallery(site)
    api(site)
    list_the_rest(site)
    return site


def listed(site: Site) -> set[str]:
    """The pages that stand in a table of contents."""
    found = set()
    for path, text in site.texts.items():
        for body in CONTENTS.findall(text):
            for line in filter(None, map(str.strip, body.split("\n"))):
                name = line[line.find("<") + 1 :].rstrip(">")
                found.add(posixpath.normpath(posixpath.join("/", posixpath.dirname(path), name)))
    return {name.removeprefix("/") for name in found}


def list_the_rest(site: Site) -> None:
    """Adds to the last table of contents what no other one has: pages that are new in docs/."""
    rest = sorted(set(pages()) - listed(site) - {"index"})
    last = site.texts["more/index.md"]
    names = "\n".join(f"/{name}" for name in rest)
    site.texts["more/index.md"] = last.replace(REST, names)


def text_of(path: str) -> str:
    """The text of a page: long lists are kept out of the search, the rest is as it stands."""
    text = read(path)
    if path == FIGURES:  # one title a page
        text = text.replace("\n# Beyond the paper\n", "\n## Beyond the paper\n")
    if path in (FIGURES, NUMBERS):  # its parts are found on the pages of the gallery
        text = f"---\nnosearch: true\n---\n\n{text}"
    return text


def main() -> None:
    """Write the sources of the site to a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the folder; what else is in it is removed")
    site = assemble()
    write(parser.parse_args().out, site.texts, site.copies, site.thumbnails)


if os.fspath(DOCS) not in sys.path:
    sys.path.append(os.fspath(DOCS))

if __name__ == "__main__":
    main()
