"""The house rules that a reader cannot see at a glance: floors, light imports, pins that agree."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scbjax

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scbjax"

# A module may import from its own floor and from those below it.
FLOORS = {
    "values": 0,
    "costs": 0,
    "base": 0,
    "footprint": 0,
    "lazily": 0,
    "parameters": 0,
    "recorded": 1,
    "sharding": 0,
    "task": 0,
    "blocks": 0,
    "once": 0,
    "singly": 0,
    "chances": 0,
    "tuples": 0,
    "tables": 0,
    "arguments": 0,
    "keys": 0,
    "parts": 0,
    "words": 0,
    "assumptions": 0,
    "patterns": 0,
    "alias": 0,
    "inversion": 0,
    "sampling": 1,
    "model": 1,
    "theory": 1,
    "losses": 2,
    "stages": 2,
    "noise": 2,
    "sources": 2,
    "transfer": 3,
    "models": 3,
    "observables": 3,
    "settings": 4,
    "trajectories": 1,
    "moves": 1,
    "columns": 1,
    "staging": 4,
    "composition": 4,
    "algorithm": 5,
    "paper": 6,
    "starts": 6,
    "training": 6,
    "tagged": 6,
    "simulation": 7,
    "saving": 7,
    "experiments": 8,
    "exploring": 8,
    "plot": 8,
    "sweep": 8,
    "fitting": 8,
    "parallel": 9,
    "cli": 9,
    "__main__": 10,
}
ALONE = {"optim"}
CORE = {name for name, floor in FLOORS.items() if floor < FLOORS["sweep"]} | ALONE
# The engine runs any experiment: of the rest of the library it may know these alone.
ENGINE_MAY_IMPORT = {"base", "values", "costs", "tables", "keys", "once", "sharding", "sweep"}
DRAWS = {"scbjax.sweep.scripts.figures": {"plot"}}  # the default figure of a dataset
CORE_DEPENDENCIES = {"jax", "optax", "chex", "numpy"}
NO_JAX = [
    *("scbjax.exploring.explorer", "scbjax.sweep.results.partial"),
    *("scbjax", "scbjax.cli", "scbjax.parts", "scbjax.plot", "scbjax.experiments.of_parts"),
    *("scbjax.sweep", "scbjax.sweep.python", "scbjax.sweep.engine.places"),
    *("scbjax.sweep.study.files", "scbjax.sweep.plan.plans", "scbjax.sweep.results.store"),
    *(
        f"scbjax.experiments.{path.stem}"
        for path in sorted((PACKAGE / "experiments").glob("*.py"))
        if "EXPERIMENT = " in path.read_text(encoding="utf-8")
    ),
]


def imported_modules(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found.update(
                f"{module}.{alias.name}" if is_module(f"{module}.{alias.name}") else module
                for alias in node.names
            )
    return found


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(dotted: str) -> str | None:
    """The part of scbjax a module belongs to: `sweep` for `scbjax.sweep.search`, or None."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "scbjax" and len(parts) > 1 else None


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_run_downwards(path: Path) -> None:
    own = room(module_name(path))
    rooms = {room(name) for name in imported_modules(path)} - {None, own}
    if own in ALONE:
        assert rooms <= {"parameters"}  # the choices that it has
        return
    assert own in FLOORS, f"{own} has no floor yet: give it one here and in CONTRIBUTING.md"
    upwards = {other for other in rooms - ALONE if FLOORS[str(other)] > FLOORS[own]}
    assert not upwards


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "sweep").rglob("*.py")), ids=lambda path: path.stem
)
def test_the_engine_knows_nothing_of_what_it_runs(path: Path) -> None:
    rooms = {room(name) for name in imported_modules(path)} - {None}
    assert rooms <= ENGINE_MAY_IMPORT | DRAWS.get(module_name(path), set())
    words = re.findall(r"[\"'](?:task|model|transfer)\.[a-z_]+", path.read_text(encoding="utf-8"))
    assert not words


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_no_batch_of_lapack_calls_can_wait_for_ever(path: Path) -> None:
    """See scbjax.task.solve: what calls LAPACK is solve, or is mapped by a loop (one_by_one)."""
    if path == PACKAGE / "task.py":
        return
    called = re.findall(
        r"^(?!.*>>>).*(?:jnp|jax\.scipy|lax)\.linalg\.(?!norm)\w+\(",
        path.read_text(encoding="utf-8"), flags=re.MULTILINE,
    )  # fmt: skip
    assert not called


def test_imports_have_no_circle() -> None:
    graph = {
        module_name(path): {name for name in imported_modules(path) if room(name)}
        for path in sources()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


MOST_LINES = 500
FOLDERS = ("scbjax", "sweeps", "figures", "docs")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_short_and_hides_no_other(path: Path) -> None:
    """Python finds what stands in a script's own folder before its own modules."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, "split it by concern"
    assert path.is_relative_to(PACKAGE) or path.stem not in sys.stdlib_module_names


@pytest.mark.parametrize("name", sorted(CORE))
def test_core_imports_only_its_dependencies(name: str) -> None:
    tops = {module.split(".")[0] for module in imported_modules(PACKAGE / f"{name}.py")}
    assert tops <= CORE_DEPENDENCIES | {"scbjax"} | sys.stdlib_module_names


@pytest.mark.parametrize(
    "path", sorted((ROOT / "figures").glob("*.py")), ids=lambda path: path.stem
)
def test_figures_import_nothing_of_scbjax(path: Path) -> None:
    assert not {name for name in imported_modules(path) if name.split(".")[0] in {"scbjax", "jax"}}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("module", NO_JAX)
def test_imports_without_jax(module: str) -> None:
    # None in sys.modules makes every import of the name fail.
    done = python(f"import sys; sys.modules['jax'] = None; import {module}")
    assert done.returncode == 0, done.stderr


def test_help_does_without_jax_and_numpy() -> None:
    done = python(
        "import sys; sys.modules.update(jax=None, numpy=None); sys.argv = ['scbjax', '--help']\n"
        "from scbjax.cli import main; sys.exit(main())"
    )
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout


def test_a_command_imports_no_other() -> None:
    """`show` does not wait for what `fit`, `explore` and the others are made of."""
    others = ["comparing", "drawing", "exploring", "fitting", "machine", "run", "status"]
    done = python(
        f"import sys; sys.modules.update({{'scbjax.cli.' + name: None for name in {others}}})\n"
        "sys.argv = ['scbjax', 'show', 'quickstart']\n"
        "from scbjax.cli import main; sys.exit(main())"
    )
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


POSIX_ONLY = ("fcntl", "grp", "pwd", "resource", "syslog", "termios")


def test_imports_on_systems_without_what_unix_has() -> None:
    """Everything can be imported on Windows; what needs such a module says so when it is used."""
    dask = {
        "scbjax.sweep.engine.cluster",
        "scbjax.sweep.engine.local_workers",
        "scbjax.sweep.engine.remote",
    }
    names = sorted({module_name(path) for path in sources()} - dask)  # Dask has its own ways
    done = python(
        f"import sys; sys.modules.update(dict.fromkeys({POSIX_ONLY}))\n"
        f"import importlib\nfor name in {names}: importlib.import_module(name)"
    )
    assert done.returncode == 0, done.stderr
    assert {"scbjax.task", "scbjax.sweep.results.lock", "scbjax.sweep.engine.execute"} <= set(names)


def test_lazy_names_are_the_real_ones() -> None:
    for name in scbjax.__all__:
        assert getattr(scbjax, name) is not None
        assert name in dir(scbjax)


def test_type_checkers_see_the_lazy_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names}
    modules = dict.fromkeys(scbjax._EXPORTS, "scbjax")
    names = {name: f"scbjax.{module}" for name, module in scbjax._MODULE_OF.items()}
    assert seen == modules | names


def test_no_name_is_hidden_by_a_module() -> None:
    """`import scbjax.x` sets the attribute x of scbjax to the module, whatever x was before."""
    assert not set(scbjax._MODULE_OF) & {path.stem for path in PACKAGE.iterdir()}


def test_unknown_names_raise() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        scbjax.no_such_name  # noqa: B018 - the look-up itself is what is tested


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins(name: str) -> dict[str, set[str]]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    found: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([\w-]+)==([\w.]+)", text, flags=re.MULTILINE):
        found.setdefault(package, set()).add(version)
    return found


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def bounds(requirements: list[str]) -> dict[str, str]:
    return dict(requirement.split(">=") for requirement in requirements if ">=" in requirement)


def test_oldest_pins_are_the_lower_bounds() -> None:
    oldest = pins("oldest")
    for package, bound in bounds(PROJECT["dependencies"]).items():
        lowest = min(map(number, oldest[package]))
        assert lowest[: len(number(bound))] == number(bound), package
        assert not any(lowest[len(number(bound)) :]), package


@pytest.mark.parametrize("name", ["py311", "py312", "py313"])
def test_exact_pins_cover_the_project_and_its_checks(name: str) -> None:
    exact = pins(name)
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    for package, bound in bounds(wanted).items():
        (version,) = exact[package]
        assert number(version) >= number(bound), package
    assert exact["jax"] == exact["jaxlib"]
    assert "torch" not in exact
