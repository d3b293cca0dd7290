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
from scbjax.sweep.scripts.figures import find_figure, study_of
from scbjax.sweep.study.files import parse_study

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


def run(*arguments: str | Path, cwd: Path) -> str:
    """What a process prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_examples(document: str, folder: Path) -> str:
    """Runs the other Python examples in order, in one namespace, as a reader would type them."""
    lines: list[str] = []
    for start, code in blocks(document, "python"):
        if not re.match(r"# \S+/\S+\n", code):
            # Padded, so that a traceback names the document's own line.
            lines += [""] * (start - 1 - len(lines)) + code.splitlines()
    assert lines
    script = folder / f"{Path(document).stem}.py"
    script.write_text("\n".join(lines), encoding="utf-8")
    return run(script, cwd=folder)


def assert_printed(printed: str, shown: str) -> None:
    """That what a document shows was printed: words as they are, numbers up to rounding."""
    number = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
    # Releases fill numbers up to one width, so that there may be a blank before a bracket.
    bare = [re.sub(r"\s+", " ", number.sub("#", text)).strip() for text in (printed, shown)]
    words = [re.sub(r"(?<=\[) | (?=\])", "", text) for text in bare]
    shown_numbers = [float(text) for text in number.findall(shown)]
    found = [float(text) for text in number.findall(printed)]
    places = [match.start() for match in re.finditer(f"(?={re.escape(words[1])})", words[0])]
    starts = [words[0][:place].count("#") for place in places]
    near = [
        found[start : start + len(shown_numbers)] == pytest.approx(shown_numbers, rel=1e-3)
        for start in starts
    ]
    assert any(near), f"not printed: {shown}"


def test_readme_examples_run(tmp_path: Path) -> None:
    ((_, study),) = blocks("README.md", "toml")
    (tmp_path / "my_study.toml").write_text(study, encoding="utf-8")
    run("-m", "scbjax", "run", "my_study.toml", cwd=tmp_path)
    printed = run_examples("README.md", tmp_path)
    shown = [text for _, text in blocks("README.md", "text")]
    assert len(shown) >= 3
    for text in shown:
        assert_printed(printed, text)


def test_the_example_of_a_fit_runs(tmp_path: Path) -> None:
    printed = run_examples("docs/fit.md", tmp_path)
    ((_, shown),) = blocks("docs/fit.md", "text")
    assert_printed(printed, shown)
    assert (tmp_path / "machine.png").stat().st_size > 0


def test_what_a_document_shows_must_have_been_printed() -> None:
    printed = "a = 1.0\n[0.25 0.5]\n"
    assert_printed(printed, "[0.25001 0.5]\n")
    for wrong in ("[0.26 0.5]", "[0.25 0.5 0.7]", "b = 1.0"):
        with pytest.raises(AssertionError):
            assert_printed(printed, wrong)


def test_contributing_examples_run(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for helper in [*(ROOT / "figures").glob("_*.py"), ROOT / "figures" / "scbjax.mplstyle"]:
        shutil.copy(helper, tmp_path / "figures")
    write_files("CONTRIBUTING.md", tmp_path)
    run("-m", "scbjax", "run", "weights", cwd=tmp_path)
    assert (tmp_path / "figures" / "out" / "weights.png").stat().st_size > 0
    run("-m", "scbjax", "figure", "weights", "--numbers", cwd=tmp_path)
    printed = run_examples("CONTRIBUTING.md", tmp_path)
    for _, shown in blocks("CONTRIBUTING.md", "text"):
        assert_printed(printed, shown)


@pytest.mark.slow
def test_example_sweep_runs(tmp_path: Path) -> None:
    run_examples("docs/studies.md", tmp_path)
    assert (tmp_path / "results" / "python" / "quickstart.nc").is_file()


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
        *(f"docs/{page}.md" for page in ("studies", "figures", "performance", "trust")),
        *(f"docs/{page}.md" for page in ("clusters", "explore")),
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


# ---------------------------------------------------------------------- numbers in the captions

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?")
WORDS_FOR = 4  # whole numbers up to it count things, and are not looked up
PERCENTILES = [10.0, 80.0, 90.0]  # of the bands, and of what counts as success


def test_renewing_the_numbers_keeps_those_without_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = (ROOT / "docs" / "numbers.md").read_text(encoding="utf-8")
    assert generate.numbers(tmp_path, written) == written
    (tmp_path / "fig2").mkdir()
    (tmp_path / "fig2" / "fig2.nc").touch()
    monkeypatch.setattr(generate, "numbers_of", lambda script, _: f"{script.stem} anew")
    before, after = (
        generate.sections(generate.numbers(*pair))
        for pair in ((tmp_path / "none", written), (tmp_path, written))
    )
    assert after == before | {"fig2": "fig2 anew"}


def numbers_in(text: str) -> list[str]:
    """The numbers of a text, without code, formulas, links and the numbers of figures."""
    bare = re.sub(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)", "", text)
    bare = re.sub(r"(Theorem|Lemma|arXiv:|eq\.|section|[Ff]ig(ures?|\.)) ?[\d.]+", "", bare)
    found = NUMBER.findall(bare)
    return [number for number in found if not number.isdigit() or int(number) > WORDS_FOR]


def agrees(number: str, values: list[float]) -> bool:
    """Whether one of the values, rounded to the digits of a number in a text, is that number."""
    digits = len(number.partition(".")[2])
    if not digits:  # 7400 may stand for 7388, but no more than two digits are rounded away
        digits = -min(len(number) - len(number.rstrip("0")), max(len(number) - 2, 0))
    half = 0.5 * 10.0**-digits
    return any(abs(abs(value) - float(number)) <= half * (1 + 1e-6) for value in values)


def values_behind(names: list[str], text: str) -> list[float]:
    """What a text on some figures may quote: their numbers and the settings of their studies.

    Shares may be quoted in per cent and samples in thousands, where the text has those words.
    """
    page = generate.sections((ROOT / "docs" / "numbers.md").read_text(encoding="utf-8"))
    tables = "".join(text for title, text in page.items() if title.partition(",")[0] in names)
    found = [float(number) for number in NUMBER.findall(tables)]
    if "thousand" in text:
        found += [value / 1000 for value in found if value >= 1000]
    if "%" in text:
        found += [100 * value for value in found if value <= 1]
    studies = {study_of(find_figure(name)) for name in names}
    studies |= {f"{study}_printed" for study in studies & {"stage1"}}
    texts = [(ROOT / "sweeps" / f"{study}.toml").read_text(encoding="utf-8") for study in studies]
    found += [float(number) for text in texts for number in NUMBER.findall(text)]
    # The last one of a range of seeds is one below its end.
    ends = re.findall(r"range = \[\d+, (\d+)\]", "".join([tables, *texts]))
    return found + PERCENTILES + [float(end) - 1 for end in ends]


def captions() -> dict[str, tuple[list[str], str]]:
    """The sections of docs/figures.md about figures: the names of these, and the text."""
    found = {}
    page = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    for title, text in generate.sections(page).items():
        names = re.findall(r"`figures/(\w+)\.py`", text)
        if title.startswith("The paper's main setting"):
            names = ["fig1", "fig3", "fig4"]
        if names:
            found[title] = names, text
    return found


@pytest.mark.parametrize("title", captions())
def test_captions_quote_the_numbers_of_their_datasets(title: str) -> None:
    names, text = captions()[title]
    values = values_behind(names, text)
    assert [number for number in numbers_in(text) if not agrees(number, values)] == []


def claims() -> list[tuple[list[str], str]]:
    """What REPRODUCTION.md and README.md say was found, with the figures that show it."""
    rows: list[tuple[list[str], str]] = []
    names: list[str] = []
    page = (ROOT / "REPRODUCTION.md").read_text(encoding="utf-8")
    for line in page.partition("| claim |")[2].partition("\n## ")[0].splitlines()[2:]:
        cells = re.split(r"(?<!\\)\|", line)
        if len(cells) > 1:
            names = re.findall(r"docs/(\w+)\.png", cells[-2]) or names
            rows.append((names, "|".join(cells[3:-2])))
    for line in page.partition("| prediction |")[2].partition("\n\n")[0].splitlines()[2:]:
        cells = re.split(r"(?<!\\)\|", line)
        names = re.findall(r"docs/(\w+)\.png", cells[-2]) or names
        rows.append((names, "|".join(cells[3:-2])))
    more = page.partition("## What the paper does not have")[2].partition("\n## ")[0]
    rows += [(re.findall(r"scbjax run (\w+)", it) or ["fig1"], it) for it in more.split("\n- ")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("## What it has shown so far")[2].partition("[REPRODUCTION.md]")[0]
    return [*rows, (["quickstart", "fig1", "factors", "projector_tasks"], shown)]


def test_claims_quote_the_numbers_of_their_datasets() -> None:
    assert len(claims()) > 10
    for names, text in claims():
        values = values_behind(names, text)
        assert [number for number in numbers_in(text) if not agrees(number, values)] == [], text


def test_a_changed_number_is_noticed() -> None:
    noticed = []
    for names, text in captions().values():
        values = values_behind(names, text)
        for number in numbers_in(text):
            digits = number.partition(".")[2]
            if len(digits) > 1 and "e" not in number:
                wrong = f"{float(number) + 0.37:.{len(digits)}f}"
                noticed.append(not agrees(wrong, values))
    assert len(noticed) > 50
    assert sum(noticed) > 0.8 * len(noticed)
