"""The site: every page and every figure is on it, links lead on, and formulas are set right."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xarray as xr
from PIL import Image, ImageSequence

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "docs" / "site"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


maths = load("maths")
writing = load("writing")
assemble = load("assemble")
docstrings = load("docstrings")
animate = load("animate")


@pytest.fixture(scope="module")
def site() -> object:
    return assemble.assemble()


# ------------------------------------------------------------------------------------- sources


def test_every_page_of_the_docs_is_on_the_site(site: object) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"api"}
    tutorials = {f"tutorials/{path.stem}" for path in (ROOT / "docs" / "tutorials").glob("*.md")}
    assert {f"{page}.md" for page in pages | tutorials} <= set(site.texts)  # type: ignore[attr-defined]
    assert {"index.md", "reproduction.md", "contributing.md"} <= set(site.texts)  # type: ignore[attr-defined]


def test_every_page_stands_in_a_table_of_contents(site: object) -> None:
    listed = assemble.listed(site)
    orphans = {path for path, text in site.texts.items() if "\norphan: true\n" in text}  # type: ignore[attr-defined]
    pages = {path.rpartition(".")[0] for path in set(site.texts) - orphans}  # type: ignore[attr-defined]
    assert pages - {"index"} == listed


def test_a_new_page_is_added_to_the_last_table() -> None:
    contents = "```{toctree}\n:hidden:\n\n/trust\n<!-- the rest -->\n```\n"
    site = assemble.Site(
        texts={"more/index.md": contents, "a/index.md": contents.replace("/trust", "x <b>")}
    )
    assert assemble.listed(site) >= {"trust", "a/b"}
    assemble.list_the_rest(site)
    assert {"trust", "figures", "start/install"} <= assemble.listed(site)
    assert assemble.REST not in site.texts["more/index.md"]


def test_every_picture_of_the_docs_is_in_the_gallery(site: object) -> None:
    gallery = site.texts["gallery/index.md"]  # type: ignore[attr-defined]
    for path in (ROOT / "docs").glob("*.png"):
        assert f"/pictures/thumbnails/{path.name}" in gallery, path.name
        assert f"pictures/thumbnails/{path.name}" in site.thumbnails  # type: ignore[attr-defined]


def test_a_figure_has_its_caption_its_command_and_its_numbers(site: object) -> None:
    page = site.texts["gallery/transfer.md"]  # type: ignore[attr-defined]
    assert "![" in page
    assert "(/pictures/docs/transfer.png)" in page
    assert "scbjax run transfer " in page
    assert "[task]" in page
    assert len(re.findall(r"^## The numbers behind it", page, re.MULTILINE)) == 2
    # Two figures of one study.
    assert "scbjax run fig1 " in site.texts["gallery/fig3.md"]  # type: ignore[attr-defined]


def test_links_of_pages_lead_to_pages(site: object) -> None:
    known = {f"/{path}" for path in (*site.texts, *site.copies)}  # type: ignore[attr-defined]
    found = []
    for path, text in site.texts.items():  # type: ignore[attr-defined]
        bare = assemble.FENCE.sub("", text)
        for link in assemble.LINK.findall(bare):
            local = link.partition("#")[0]
            if local.startswith("/"):
                found.append(local)
                assert local in known, f"{path}: {link}"
            else:
                assert "://" in link or not local, f"{path}: {link}"
    assert len(found) > 200


@pytest.mark.parametrize(
    ("link", "source", "expected"),
    [
        ("../REPRODUCTION.md", "docs/numbers.md", "/reproduction.md"),
        ("trust.md#numerics", "docs/studies.md", "/trust.md#numerics"),
        ("docs/fig1.png", "REPRODUCTION.md", "/gallery/fig1.md"),
        ("docs/examples", "README.md", "/how-to/index.md"),
        ("LICENSE", "README.md", "/files/LICENSE.md"),
        ("#axes", "docs/studies.md", "#axes"),
        ("https://arxiv.org/abs/2410.23438", "README.md", "https://arxiv.org/abs/2410.23438"),
    ],
)
def test_a_link_of_the_checkout_leads_to_its_page(link: str, source: str, expected: str) -> None:
    assert assemble.target(assemble.Site(), link, source, is_picture=False) == expected


def test_a_broken_link_is_an_error() -> None:
    with pytest.raises(assemble.SiteError, match=r"docs/trust\.md links to no\.md"):
        assemble.target(assemble.Site(), "no.md", "docs/trust.md", is_picture=False)
    with pytest.raises(assemble.SiteError, match="no section 'Nowhere'"):
        assemble.included(assemble.Site(), "<!-- include README.md: Nowhere -->")


def test_links_in_code_stay() -> None:
    site = assemble.Site()
    text = "[a](trust.md)\n\n```md\n[a](trust.md)\n```\n"
    assert assemble.relinked(site, text, "docs/fit.md") == text.replace("trust", "/trust", 1)


def test_what_is_as_it_was_is_not_written_again(tmp_path: Path) -> None:
    site = assemble.Site(texts={"a.md": "text", "b/c.md": "more"})
    writing.write(tmp_path, site.texts, site.copies, site.thumbnails)
    before = (tmp_path / "a.md").stat().st_mtime_ns
    (tmp_path / "old.md").write_text("of a page that is no more")
    site.texts["b/c.md"] = "other"
    writing.write(tmp_path, site.texts, site.copies, site.thumbnails)
    assert (tmp_path / "a.md").stat().st_mtime_ns == before
    assert (tmp_path / "b" / "c.md").read_text() == "other"
    assert not (tmp_path / "old.md").exists()


# ------------------------------------------------------------------------------------- formulas


def frames_of(picture: Image.Image) -> int:
    return sum(1 for _ in ImageSequence.Iterator(picture))


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("alpha_V = K_VP / K_P", r"\alpha_{V} = K_{VP} / K_{P}"),
        ("V = mu 1^T", r"V = \mu \mathbf{1}^{\top}"),
        ("A = 1 1^T / T", r"A = \mathbf{1} \mathbf{1}^{\top} / T"),
        ("|A - Q|_mu^2", r"|A - Q|_{\mu}^{2}"),
        ("<P_hat, P>_mu - |mu|^2", r"\langle \hat{P}, P \rangle_{\mu} - |\mu|^{2}"),
        ("q^(k) - 1/T", r"q^{(k)} - 1/T"),
        ("T^(-1/2)", r"T^{-1/2}"),
        ("1/2 |e_{x_o} - V X a^(k)|^2", r"\tfrac{1}{2} |e_{x_{o}} - V X a^{(k)}|^{2}"),
        ("sqrt(eta_V eta_A)", r"\sqrt{\eta_{V} \eta_{A}}"),
        ("V u_i (x) A", r"V u_{i} \otimes A"),
        ("P~[y, x]", r"\tilde{P}[y, x]"),
        ("alpha += eta_A v", r"\alpha \mathrel{+}= \eta_{A} v"),
        ("w_h ~ h^-beta", r"w_{h} \sim h^{-\beta}"),
        ("E[h h^T | k]", r"\mathbb{E}\,[h h^{\top} \mid k]"),
        ("V E X a", "V E X a"),
    ],
)
def test_formulas_are_set(typed: str, expected: str) -> None:
    assert squeezed(maths.tex(typed)) == squeezed(expected)


@pytest.mark.parametrize(
    "code", ["value_snapshots", "settings.steps", '"mu"', "l1", "(key, task)", "1e-4", "2 * level"]
)
def test_code_stays_code(code: str) -> None:
    assert not maths.looks_like_maths(code)


def test_words_in_formulas_are_text() -> None:
    assert "\\text{ over samples of a query }" in maths.tex(
        "r   over samples of a query", words=True
    )
    with pytest.raises(maths.NotMathsError):
        maths.tex("over samples")


def test_a_docstring_becomes_restructured_text() -> None:
    lines = docstrings.prepare(
        [
            "The size ``|A|_mu^2`` of A, |A| for short, with a_ and ``code_name``.",
            "",
            "    V = alpha_V P,",
            "    A = alpha_A Q",
            "",
            "Args:",
            "    mu: mu [N]; K_P is ``keys``.",
            "",
            "Example:",
            "    >>> 2 * 3 * 4",
            "    24",
        ]
    )
    assert lines[0] == (
        r"The size :math:`|A |_{\mu}^{2}` of A, \|A\| for short, with a\_ and ``code_name``."
    )
    assert lines[2:6] == [".. math::", "", lines[4], lines[5]]
    assert lines[4].startswith("   & V")
    assert lines[4].endswith(r"\\")
    assert r"    mu: :math:`\mu` [N]; :math:`K_{P}` is ``keys``." in lines
    assert "    >>> 2 * 3 * 4" in lines


def test_code_of_docstrings_is_code() -> None:
    text = ["Text:", "", "    [task]", "    num_tokens = 3", "", "    [train]", '    name = "a"']
    assert ".. code-block:: toml" in docstrings.prepare(text)
    assert docstrings.language_of("import jax\nx = jax.jit(f)") == "python"
    assert docstrings.language_of("V = alpha_V P") is None


# ------------------------------------------------------------------------------------ animation


def snapshots(length: int = 12, tokens: int = 3) -> xr.Dataset:
    """A made dataset: A goes from even to Q in five snapshots, with the noise of SGD."""
    rng = np.random.default_rng(0)
    steps = np.arange(0, 50, 10)
    pattern = np.zeros((1, length, tokens))
    pattern[0, 2], pattern[0, 7] = 0.75, 0.25
    transition = rng.dirichlet(np.ones(tokens), tokens).T[None]
    share = np.linspace(0, 1, len(steps))[None, None, :, None, None]
    attention = share * pattern[:, None, None] + (1 - share) / length
    noise = np.array([0.0, 0.05])[None, :, None, None, None]
    attention = attention + noise * rng.normal(size=(1, 2, len(steps), length, tokens))
    value = share * transition[:, None, None] + (1 - share) / tokens + 0 * noise
    dims, by_step = ("seed", "optimizer", "snapshot"), ("seed", "optimizer", "step")
    return xr.Dataset(
        {
            "attention_snapshots": ((*dims, "position", "query"), attention),
            "value_snapshots": ((*dims, "token_out", "token_in"), value),
            "pattern": (("seed", "position", "query"), pattern),
            "transition": (("seed", "token_out", "token_in"), transition),
            "attention_distance": (by_step, (1 - share + 0 * noise)[..., 0, 0]),
            "stage": (by_step, np.array([[[1, 1, 2, 2, 3], [1, 1, 2, 2, 2]]])),
        },
        coords={
            "seed": [4], "optimizer": ["proximal", "sgd"], "snapshot": steps, "step": steps,
        },
    )  # fmt: skip


def test_the_animation_is_drawn_from_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "made.nc"
    snapshots().to_netcdf(path, engine="h5netcdf")
    assert animate.main([str(path), "--seed", "4", "--out", str(tmp_path)]) == 0
    with (
        Image.open(tmp_path / "sparse.gif") as moving,
        Image.open(tmp_path / "sparse.png") as still,
    ):
        assert frames_of(moving) == 5
        assert moving.size == still.size
        moving.seek(0)
        first = np.asarray(moving.convert("RGB")).copy()
        moving.seek(4)
        last = np.asarray(moving.convert("RGB"))
        assert (first != last).any(axis=-1).mean() > 0.005
        assert (last == np.asarray(still.convert("RGB"))).mean() > 0.99


def test_bars_have_the_heights_of_the_dataset() -> None:
    runs = animate.runs_of(snapshots(), 4)
    picture = animate.Picture(runs, 0)
    picture.frame(40)
    for bars, run in zip(picture.bars, runs.values(), strict=True):
        expected = run["attention_snapshots"].sel(snapshot=40).isel(query=0).to_numpy()
        assert [bar.get_height() for bar in bars] == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda data: data.drop_vars("pattern"), [], "lacks pattern; a study keeps them with"),
        (lambda data: data, ["--seed", "3"], "seed is 3; the dataset has 4"),
        (lambda data: data, ["--seed", "4", "--query", "9"], "query is 9; it must be from 0 to 2"),
    ],
)
def test_what_can_not_be_drawn_is_said(
    change: object, arguments: list[str], message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "made.nc"
    change(snapshots()).to_netcdf(path, engine="h5netcdf")  # type: ignore[operator]
    assert animate.main([str(path), "--out", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sparse.gif").exists()


def test_the_picture_of_the_first_page_is_small() -> None:
    assert 10_000 < (HERE / "sparse.gif").stat().st_size < 400_000
    with Image.open(HERE / "sparse.gif") as moving:
        assert frames_of(moving) > 30


def test_the_study_of_the_picture_is_valid() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scbjax", "show", str(HERE / "sparse.toml")],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_pins_cover_the_tools_of_the_site() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = (ROOT / "requirements" / "site.txt").read_text(encoding="utf-8").lower()
    for requirement in project["optional-dependencies"]["site"]:
        name = requirement.partition(">=")[0].replace("-", "[-_]")
        assert re.search(rf"^{name}==", pins, re.MULTILINE), name
