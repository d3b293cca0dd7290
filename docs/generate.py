"""Writes docs/api.md and docs/fields.md from the code, so that they cannot drift from it.

`make docs` runs it; a test fails when one of the files is out of date. With `--results DIR` it
renews docs/numbers.md instead, from the datasets of the studies that were run at full size.
"""

import argparse
import ast
import re
from importlib import import_module
from pathlib import Path

import scbjax
from scbjax.base import StudyError
from scbjax.experiments.scb import EXPERIMENT
from scbjax.experiments.simulated import EXPERIMENT as SIMULATED
from scbjax.parameters import DEFAULTS
from scbjax.recorded import OBSERVABLES
from scbjax.sweep.scripts.figures import dataset_of, find_figures, numbers_of
from scbjax.sweep.study.fields import field_table, fields_of

DOCS = Path(__file__).resolve().parent

MODULES = (
    "scbjax.base",
    "scbjax.values",
    "scbjax.costs",
    "scbjax.task",
    "scbjax.assumptions",
    "scbjax.keys",
    "scbjax.tables",
    "scbjax.sampling",
    "scbjax.model",
    "scbjax.theory",
    "scbjax.losses",
    "scbjax.stages",
    "scbjax.noise",
    "scbjax.chances",
    "scbjax.transfer",
    "scbjax.recorded",
    "scbjax.observables",
    "scbjax.parts",
    "scbjax.sources",
    "scbjax.models",
    "scbjax.moves",
    "scbjax.staging",
    "scbjax.trajectories",
    "scbjax.composition",
    "scbjax.settings",
    "scbjax.algorithm",
    "scbjax.paper",
    "scbjax.starts",
    "scbjax.training",
    "scbjax.saving",
    "scbjax.tagged",
    "scbjax.simulation",
    "scbjax.optim",
    "scbjax.columns",
    "scbjax.sharding",
    "scbjax.parallel",
    "scbjax.experiments.of_parts",
    "scbjax.experiments.maps",
    "scbjax.experiments.fewshot",
    "scbjax.experiments.hops",
    "scbjax.experiments.hops_model",
    "scbjax.experiments.hops_theory",
    "scbjax.experiments.modalities",
    "scbjax.experiments.modalities_theory",
    "scbjax.experiments.multihead",
    "scbjax.experiments.multihead_model",
    "scbjax.experiments.adaptive",
    "scbjax.experiments.adaptive_learner",
    "scbjax.experiments.adaptive_noise",
    "scbjax.experiments.embeddings",
    "scbjax.experiments.embeddings_modes",
    "scbjax.experiments.finite",
    "scbjax.experiments.hierarchy",
    "scbjax.experiments.hierarchy_theory",
    "scbjax.experiments.sequences",
    "scbjax.experiments.sequences_task",
    "scbjax.experiments.sequences_moments",
    "scbjax.experiments.sequences_theory",
    "scbjax.experiments.cheaper",
    "scbjax.experiments.cheaper_theory",
    "scbjax.experiments.cheaper_estimators",
    "scbjax.experiments.lags",
    "scbjax.experiments.texts",
    "scbjax.fitting.reading",
    "scbjax.fitting.series",
    "scbjax.fitting.mixtures",
    "scbjax.fitting.em",
    "scbjax.fitting.moments",
    "scbjax.fitting.descent",
    "scbjax.fitting.selection",
    "scbjax.fitting.baselines",
    "scbjax.fitting.bootstrap",
    "scbjax.fitting.fitted",
    "scbjax.fitting.fits",
    "scbjax.fitting.saving",
    "scbjax.fitting.picture",
    "scbjax.exploring.opening",
    "scbjax.exploring.choosing",
    "scbjax.exploring.thinning",
    "scbjax.exploring.gathering",
    "scbjax.exploring.words",
    "scbjax.exploring.page",
    "scbjax.exploring.explorer",
    "scbjax.lazily",
    "scbjax.sweep.python",
    "scbjax.sweep.study.own",
    "scbjax.sweep.study.experiments",
    "scbjax.sweep.study.fields",
    "scbjax.sweep.study.axes",
    "scbjax.sweep.study.definition",
    "scbjax.sweep.study.locating",
    "scbjax.sweep.study.files",
    "scbjax.sweep.plan.programs",
    "scbjax.sweep.plan.plans",
    "scbjax.sweep.plan.measured",
    "scbjax.sweep.engine.inputs",
    "scbjax.sweep.engine.mapped",
    "scbjax.sweep.engine.memory",
    "scbjax.sweep.engine.chunks",
    "scbjax.sweep.engine.engines",
    "scbjax.sweep.engine.cluster",
    "scbjax.sweep.engine.remote",
    "scbjax.sweep.engine.local_workers",
    "scbjax.sweep.engine.here",
    "scbjax.sweep.engine.session",
    "scbjax.sweep.engine.execute",
    "scbjax.sweep.engine.places",
    "scbjax.sweep.results.lock",
    "scbjax.sweep.results.arrays",
    "scbjax.sweep.results.store",
    "scbjax.sweep.results.dataset",
    "scbjax.sweep.results.partial",
    "scbjax.sweep.engine.divergence",
    "scbjax.sweep.results.verify",
    "scbjax.sweep.scripts.figures",
    "scbjax.plot",
    "scbjax.sweep.scripts.benchmarks",
)

API_HEADER = """# Public names

Written by `make docs` from the code; `help(name)` shows the rest of a docstring: shapes, dtypes,
errors and an example. Names in **bold** can also be imported from `scbjax` itself.
"""

FIELDS_HEADER = """# Fields and observables

Written by `make docs` from the code.

## Fields of a study file

The last component of a path is the field's short name, which is unique and is the name of its
dimension in a dataset. The column *sweep* says what an axis over the field costs: each value of a
`static` field is compiled by itself, `traced` and `data` fields share one program, and `no` marks
what a study sets once. These are the fields of the paper's learner, the experiment `scb`.

"""

SIMULATED_HEADER = """
## Fields of a simulation

A study with `experiment = "simulated"` has these fields otherwise, lacks those named below the
table, and has all others as above. It records the usual variables.

"""

OBSERVABLES_HEADER = """
## Observables

What `[record] variables` may name; each is a variable of the dataset. The usual ones are recorded
if a study names none; the others take longer or serve a comparison.

| name | symbol | units | dtype | usual | meaning |
|---|---|---|---|---|---|
"""

NUMBERS_HEADER = """# Numbers behind the figures

Written by `make numbers` from the datasets of the studies at full size: `scbjax figure NAME
--numbers` prints a section. The captions in [figures.md](figures.md) and the rows of
[REPRODUCTION.md](../REPRODUCTION.md) quote them. A dash is for what there is none of, `inf` for
what did not come, and an interval from -inf to inf is that of values too few to bound it.

"""


Definition = ast.FunctionDef | ast.ClassDef | ast.AnnAssign


def definitions(module: str) -> dict[str, Definition]:
    """What a module defines for others to use, by name.

    That is what its `__all__` or that of `scbjax` lists, and without an `__all__` of its own every
    function and class whose name has no leading underscore.
    """
    tree = ast.parse(_source(module).read_text(encoding="utf-8"))
    found = {_name(node): node for node in tree.body if isinstance(node, Definition)}
    listed = {name for name, home in scbjax._MODULE_OF.items() if f"scbjax.{home}" == module}
    own = getattr(import_module(module), "__all__", None)
    if own is None:
        own = [name for name, node in found.items() if not isinstance(node, ast.AnnAssign)]
    return {
        name: node
        for name, node in found.items()
        if name in listed or (name in own and not name.startswith("_"))
    }


def _source(module: str) -> Path:
    path = DOCS.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _name(node: Definition) -> str:
    return ast.unparse(node.target) if isinstance(node, ast.AnnAssign) else node.name


def _describe(node: Definition, *, exported: bool) -> str:
    if isinstance(node, ast.AnnAssign):
        call, meaning = _name(node), f"a `{ast.unparse(node.annotation)}`"
    else:
        call = f"{node.name}{_parameters(node)}"
        meaning = _plain((ast.get_docstring(node) or "").partition("\n")[0])
    return f"- **`{call}`**: {meaning}" if exported else f"- `{call}`: {meaning}"


def _parameters(node: ast.FunctionDef | ast.ClassDef) -> str:
    """What a function or a class is called with, without annotations: `(a, *, b=1)`."""
    if isinstance(node, ast.ClassDef):
        lines = [line for line in node.body if isinstance(line, ast.AnnAssign)]
        names = [ast.unparse(line.target) for line in lines]
        names = [name for name in names if not name.startswith("_")]
        return f"({', '.join(names)})" if names else ""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    for argument in every:
        argument.annotation = None
    return with_defaults(f"({ast.unparse(node.args)})")


def with_defaults(signature: str) -> str:
    """A signature with the defaults that are declared elsewhere as what they are."""
    return re.sub(r"DEFAULTS\[['\"](\w+)['\"]\]", lambda found: repr(DEFAULTS[found[1]]), signature)


def _plain(docstring: str) -> str:
    """A docstring's markup as Markdown: one backtick for code, no roles."""
    return re.sub(r":\w+:`([^`]*)`", r"`\1`", docstring.replace("``", "`"))


def summary(module: str) -> str:
    """The first sentence of a module's text, as Markdown."""
    return _plain((import_module(module).__doc__ or "").partition("\n")[0])


def entries(module: str) -> dict[str, str]:
    """What a module defines for others, by name: ``function``, ``class`` or ``data``."""
    kinds = {ast.FunctionDef: "function", ast.ClassDef: "class", ast.AnnAssign: "data"}
    return {name: kinds[type(node)] for name, node in definitions(module).items()}


def exported() -> dict[str, tuple[str, str]]:
    """The names of `scbjax` itself: the module that each is from, and what it is."""
    found = {}
    for name, module in scbjax._MODULE_OF.items():
        node = definitions(f"scbjax.{module}")[name]
        found[name] = module, _describe(node, exported=False).partition("`: ")[2]
    return found


def api() -> str:
    """The text of docs/api.md."""
    parts = [API_HEADER]
    for module in MODULES:
        listed = [
            _describe(node, exported=scbjax._MODULE_OF.get(name) == module.removeprefix("scbjax."))
            for name, node in definitions(module).items()
        ]
        parts.append("\n".join([f"## `{module}`\n", f"{summary(module)}\n", *listed]) + "\n")
    return "\n".join(parts)


def fields() -> str:
    """The text of docs/fields.md."""
    rows = [
        f"| `{name}` | {entry.symbol} | {entry.units} | {entry.dtype} "
        f"| {'yes' if entry.default else 'no'} | {entry.long_name} |"
        for name, entry in OBSERVABLES.items()
    ]
    return (
        FIELDS_HEADER
        + field_table(fields_of(EXPERIMENT))
        + SIMULATED_HEADER
        + _simulated_fields()
        + OBSERVABLES_HEADER
        + "\n".join(rows)
        + "\n"
    )


def _simulated_fields() -> str:
    """The fields that simulations have otherwise, and the names of those that they have not."""
    head, rule, *rows = field_table(fields_of(SIMULATED)).splitlines()
    known = field_table(fields_of(EXPERIMENT)).splitlines()
    own = [parameter.path for parameter in SIMULATED.parameters]
    other = [row for row in rows if row not in known and row.split("`")[1] in own]
    missing = [f"`{p.path}`" for p in EXPERIMENT.parameters if p.path not in own]
    return "\n".join([head, rule, *other, "", f"It lacks {', '.join(missing)}."]) + "\n"


def sections(text: str) -> dict[str, str]:
    """The sections of a page by their headings, without what stands before the first one."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return {name: body.strip("\n") for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def numbers(results: Path, written: str) -> str:
    """The text of docs/numbers.md: as it was, but for the figures whose datasets are there."""
    found = sections(written)
    for name, script in find_figures().items():
        try:
            dataset_of(script, results)
        except StudyError:
            continue
        found[name] = numbers_of(script, results)
    return NUMBERS_HEADER + "\n".join(f"## {name}\n\n{found[name]}\n" for name in sorted(found))


def main() -> None:
    """Write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, help="renew docs/numbers.md from the studies there")
    results = parser.parse_args().results
    if results is None:
        (DOCS / "api.md").write_text(api(), encoding="utf-8")
        (DOCS / "fields.md").write_text(fields(), encoding="utf-8")
        return
    page = DOCS / "numbers.md"
    written = page.read_text(encoding="utf-8") if page.exists() else ""
    page.write_text(numbers(results, written), encoding="utf-8")


if __name__ == "__main__":
    main()
