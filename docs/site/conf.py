"""Sphinx's configuration of the site; `make site` builds it from what assemble.py puts together."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]

from docstrings import prepare  # noqa: E402
from generate import with_defaults  # noqa: E402 - docs/generate.py

import scbjax  # noqa: E402 - of this checkout

project = "scbjax"
author = "The scbjax developers"
copyright = "the scbjax developers, Apache-2.0"  # noqa: A001 - Sphinx's name
version = release = scbjax.__version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
]

# Every cross-reference has to lead somewhere: see `resolve` for those that lead out of the project.
nitpicky = True
highlight_language = "none"  # what is shown without a language is no code
pygments_style = "default"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# ---------------------------------------------------------------------------------- Markdown

myst_enable_extensions = [
    "dollarmath",
    "amsmath",
    "colon_fence",
    "attrs_block",
    "attrs_inline",
    "deflist",
]
myst_heading_anchors = 4
myst_dmath_double_inline = True

# --------------------------------------------------------------------------------- notebooks


def fingerprint() -> str:
    """Of the library's text: with another one the notebooks are executed again."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "scbjax").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "site" / "executed" / fingerprint())
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
nb_merge_streams = True

# --------------------------------------------------------------------------------------- API

autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
default_role = "py:obj"
maximum_signature_line_length = 72
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
napoleon_preprocess_types = False

# ------------------------------------------------------------------------------------- pages

html_theme = "pydata_sphinx_theme"
html_title = "scbjax"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_sidebars: dict[str, list[str]] = {"index": []}
html_theme_options: dict[str, Any] = {
    "logo": {"text": "scbjax"},
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "show_nav_level": 1,
    "secondary_sidebar_items": {"**": ["page-toc"], "index": []},
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "back_to_top_button": False,
}

html_context = {"default_mode": "auto"}

# Formulas are set in the browser, by files that are part of the site: nothing is fetched.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {
    "chtml": {"matchFontHeight": False},
    "options": {"enableMenu": False},
}
MATHJAX = ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions")


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copies of MathJax what the pages need: 2 MB of the 24 that the package has."""
    spec = find_spec("sphinx-mathjax-offline")
    if error is not None or app.builder.format != "html" or spec is None:
        return
    from sphinx.util.fileutil import copy_asset

    assert spec.origin is not None
    home = Path(spec.origin).parent / "static" / "mathjax"
    for name in MATHJAX:
        to = (Path(app.outdir) / "_static" / "mathjax" / name).parent
        to = to / Path(name).name if (home / name).is_dir() else to
        copy_asset(home / name, to)


def prepare_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Makes reStructuredText of a docstring; before Napoleon, which reads the sections."""
    del app, what, name, obj, options
    lines[:] = prepare(lines)


def skip_member(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Leaves out the fields of tuples, which the text of their class explains."""
    del app, what, name, skip, options
    text = getattr(obj, "__doc__", None) or ""
    return True if text.startswith("Alias for field number") else None


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Element | None:
    """References that Sphinx can't resolve: to names of `scbjax` itself, and to what has no page.

    What a docstring calls by a role has to exist, if it is of this project; names of others, and
    types in signatures, stay as they are.
    """
    name: str = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    first, _, last = name.rpartition(".")
    home = scbjax._MODULE_OF.get(last) if first in ("scbjax", "") else None
    if home is not None:
        target = f"scbjax.{home}.{last}"
        domain = env.get_domain("py")
        found = domain.resolve_any_xref(env, node["refdoc"], app.builder, target, node, contnode)
        return found[0][1] if found else None
    return contnode if not name.startswith("scbjax.") or exists(name) else None


def qualify(app: Sphinx, doctree: nodes.document) -> None:
    """Names in signatures get their module: several modules have a class `Moments`."""
    from sphinx.addnodes import pending_xref

    del app
    for node in doctree.findall(pending_xref):
        name, module = node.get("reftarget", ""), node.get("py:module")
        if node.get("refdomain") == "py" and name.isidentifier() and module:
            node["reftarget"] = imported(module).get(name, name)


@cache
def imported(module: str) -> dict[str, str]:
    """Names that a module has from others of the library, also for type checkers alone."""
    found = find_spec(module)
    assert found is not None
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scbjax")
        for alias in node.names
    }


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    module, _, rest = name.rpartition(".")
    try:
        importlib.import_module(name)
    except ImportError:
        return bool(module) and exists_in(module, rest)
    return True


def exists_in(module: str, name: str) -> bool:
    """Whether a module, or a class in one, has something of a name."""
    try:
        found: object = importlib.import_module(module)
    except ImportError:
        outer, _, inner = module.rpartition(".")
        try:
            found = getattr(importlib.import_module(outer), inner, None)
        except (ImportError, ValueError):
            return False
    return hasattr(found, name) or name in getattr(found, "__annotations__", {})


def rules() -> str:
    """What makes reStructuredText of docstrings: with another text the pages are written anew."""
    return "".join((HERE / name).read_text("utf-8") for name in ("docstrings.py", "maths.py"))


def plain_signature(*given: Any) -> tuple[str, str] | None:  # noqa: ANN401 - of autodoc
    """Shows defaults that are declared elsewhere as what they are."""
    signature, returned = given[-2:]
    return (with_defaults(signature), returned) if signature else None


def setup(app: Sphinx) -> None:
    """Connects the functions above."""
    app.add_config_value("site_rules", rules(), "env")
    app.connect("autodoc-process-docstring", prepare_docstring, priority=400)
    app.connect("autodoc-process-signature", plain_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("doctree-read", qualify)
    app.connect("missing-reference", resolve)
    app.connect("build-finished", copy_mathjax)
