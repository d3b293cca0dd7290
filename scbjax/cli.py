"""The ``scbjax`` command: run studies, look at them, draw their figures.

Each command is a small dataclass that tyro fills from the command line and that is then called.
What only one command needs is imported when it is called, so that help and error messages come
without waiting for JAX.
"""

from __future__ import annotations

import contextlib
import io
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, TypeAlias, TypeVar, get_args

import tyro

import scbjax
from scbjax.base import INT32_MAX, STEPS, Experiment, Parameter, StudyError
from scbjax.experiments.scb import EXPERIMENT
from scbjax.sweep.engine.places import (
    RESULTS,
    SMALL,
    check_out,
    check_writable,
    checked_path,
    dask_place,
    existing,
    read_bytes,
    run_into,
    start_jax,
)
from scbjax.sweep.engine.progress import counted, create_progress, readable_count, readable_seconds
from scbjax.sweep.engine.streams import steady_streams
from scbjax.sweep.search import first_studies
from scbjax.sweep.study.cells import cells_of, is_search
from scbjax.sweep.study.experiments import load_experiments
from scbjax.sweep.study.fields import fields_of, read_value, shown
from scbjax.sweep.study.files import Study, find_studies, load_study, outside_checkout
from scbjax.tables import nearest

if TYPE_CHECKING:
    from scbjax.sweep.engine.execute import Place
    from scbjax.sweep.plan.programs import Measure, Plan
    from scbjax.sweep.results import store
    from scbjax.sweep.results.verify import Comparison

EXIT_DIFFERENT = 1
"""Results are not those that their study gives."""
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
"""What a shell reports of a process that SIGINT ended: 128 + 2."""

RERUNS = "rerun"
PICTURES = "figures/out"
DESCRIPTION = (
    "Sweeps of linear transformers that learn sparse contextual bigrams. "
    "`scbjax --version` prints the version; `scbjax --tyro-print-completion bash` (or zsh) "
    "prints what completes its words in that shell."
)

_COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")
_MAX_DIGITS = 9
_MOST_POINTS, _MOST_ROWS = 24, 100
"""Of an axis and of a table, that are all shown; of more, the first and the last."""
_FIRST_SHOWN, _LAST_SHOWN = 8, 2

_Entry = TypeVar("_Entry")

# What tyro says of an option that may be left out, "(default: None)", tells nothing.
_left_out = partial(tyro.conf.arg, help_behavior_hint="")

StudyName: TypeAlias = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(metavar="STUDY", help="Name of a study in sweeps/, or path of a study file."),
]
Overrides: TypeAlias = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(
        name="set",
        metavar="FIELD=VALUE",
        help="Set a field (train.steps=2000), an axis (axes.l1=[1e-4, 1e-3]) or the lines of a zip "
        "(zip.arm=[0, 2]).",
    ),
]
Precision: TypeAlias = Annotated[
    str | None,
    _left_out(
        metavar="highest|high|default",
        help="Of the matrix products of a step, if not the study's own: train.precision.",
    ),
]
Small: TypeAlias = Annotated[
    bool, tyro.conf.arg(help="The study's own small size, which takes seconds.")
]
Memory: TypeAlias = Annotated[
    str | None,
    _left_out(
        metavar="SIZE", help="Memory budget, such as 2GiB, if not a share of what the device has."
    ),
]
CpuDevices: TypeAlias = Annotated[
    str,
    tyro.conf.arg(
        metavar="N", help="Devices that JAX makes of the CPU; auto for one for each usable core."
    ),
]
CompilationCache: TypeAlias = Annotated[
    str | None,
    _left_out(
        metavar="DIR",
        help="Where compiled programs are kept, if not in the user's cache; off for nowhere.",
    ),
]
ExperimentFile: TypeAlias = Annotated[
    str | None,
    _left_out(metavar="FILE", help="A Python file with an experiment of your own, which is run."),
]
Results: TypeAlias = Annotated[
    str, tyro.conf.arg(metavar="DIR", help="The directory that holds the studies' results.")
]


class Stopped(Exception):  # noqa: N818 - not an error
    """The user asked a run to stop, and what it had is saved in the directory `out`."""

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self.out = out


class Command(Protocol):
    """A command with its arguments."""

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""


@dataclass(frozen=True)
class Run:
    """Run a study, or continue it, and draw its figures."""

    study: StudyName
    overrides: Overrides = ()
    out: Annotated[
        str | None, _left_out(metavar="DIR", help="Where results go, if not results/STUDY.")
    ] = None
    memory: Memory = None
    precision: Precision = None
    small: Small = False
    experiment: ExperimentFile = None
    force: Annotated[bool, tyro.conf.arg(help="Start anew, whatever the directory holds.")] = False
    no_figure: Annotated[bool, tyro.conf.arg(help="Don't draw the study's figures.")] = False
    cpu_devices: CpuDevices = "auto"
    compilation_cache: CompilationCache = None
    engine: Annotated[
        Literal["local", "dask"],
        tyro.conf.arg(help="Where chunks run: in this process, or in the workers of Dask."),
    ] = "local"
    scheduler: Annotated[
        str | None,
        _left_out(
            metavar="ADDRESS",
            help="Of a Dask scheduler, for --engine dask; left out, workers start on this machine.",
        ),
    ] = None

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        study, memory_bytes = self._study(), read_bytes(self.memory)
        out = self._directory(study)
        check_out(out)
        if self.out is None and out.name != study.name:
            _note(f"{out.with_name(study.name)} holds other settings; these go to {out}")
        with self._place() as place:
            report = run_into(
                study,
                out,
                place,
                create_progress=create_progress,
                memory_bytes=memory_bytes,
                force=self.force,
            )
        if report.dataset is None:
            raise Stopped(out)
        if report.already_complete:
            print("this study is already complete; --force runs it again")
        print(f"dataset: {report.dataset}")
        _tell_figures(study.name, report.dataset, draw=not self.no_figure)
        return 0

    def _place(self) -> AbstractContextManager[Place]:
        """Where the study is to run."""
        if self.engine == "dask":
            return _dask_place(self.scheduler, self.cpu_devices, self.compilation_cache)
        if self.scheduler is not None:
            raise StudyError(f"--scheduler {shown(self.scheduler)} is only for --engine dask")
        _start_jax(self.cpu_devices, self.compilation_cache)
        from scbjax.sweep.engine.execute import here

        return contextlib.nullcontext(here())

    def _study(self) -> Study:
        overrides = _with_precision(self.overrides, self.precision)
        return _load(self.study, overrides, self.experiment, small=self.small)

    def _directory(self, study: Study) -> Path:
        from scbjax.sweep.results.store import default_out

        if self.out is not None:
            return Path(checked_path(self.out))
        results = Path(RESULTS) / SMALL if self.small else Path(RESULTS)
        # Without --force, other settings than those of results/STUDY get a directory of their own.
        return results / study.name if self.force else default_out(study, results)


@dataclass(frozen=True)
class List:
    """List the studies with their size and estimated cost."""

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        paths = find_studies()
        if not paths:
            raise StudyError(f"there are no studies to list: {outside_checkout('sweeps')}")
        rows: list[tuple[str, ...]] = [("study", "runs", "tokens", "time", "title")]
        failures = []
        for path in paths:
            try:
                rows.append(_list_row(load_study(str(path), ())))
            except StudyError as error:
                failures.append(str(error))
        print("\n".join(_aligned(rows)))
        if failures:
            raise StudyError("; ".join(failures))
        return 0


@dataclass(frozen=True)
class Show:
    """Show a study's resolved settings and how it would be run."""

    study: StudyName
    overrides: Overrides = ()
    memory: Memory = None
    cpu_devices: CpuDevices = "auto"
    precision: Precision = None
    small: Small = False
    experiment: ExperimentFile = None

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        overrides = _with_precision(self.overrides, self.precision)
        study = _load(self.study, overrides, self.experiment, small=self.small)
        memory_bytes = read_bytes(self.memory)
        from scbjax.sweep.engine.backend import read_cpu_devices, usable_cores
        from scbjax.sweep.plan.programs import make_plan

        count = read_cpu_devices(self.cpu_devices) or usable_cores()

        if is_search(study):
            print("\n".join([*_describe_study(study), "", *_describe_search(study)]))
            return 0
        measure = _measurer(study, self.cpu_devices)
        plan = make_plan(study, memory_bytes=memory_bytes, device_count=count, measure=measure)
        print("\n".join([*_describe_study(study), "", *_describe_plan(plan)]))
        return 0


@dataclass(frozen=True)
class Status:
    """Show how far the run in a results directory is."""

    out: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT", help="A results directory.")
    ]
    experiment: ExperimentFile = None

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        from scbjax.sweep.results.store import advance, status

        found = status(existing(self.out))
        gone = advance(found, _experiments(self.experiment))
        share = "not known" if gone is None else f"{math.floor(100 * gone.fraction + 1e-6)}%"
        rows = [
            ("study", found.manifest.name),
            ("fingerprint", found.manifest.fingerprint),
            ("progress", share),
            ("chunks", f"{found.chunks_done} of {found.manifest.num_chunks} done"),
            ("under way", _text(tuple(_under_way(found, gone))) or "none with a checkpoint"),
            ("dataset", str(found.dataset or "not written yet; run the study again to continue")),
        ]
        print("\n".join(_aligned(rows)))
        return 0


@dataclass(frozen=True)
class Verify:
    """Compute a sample of stored trajectories again, and compare bit for bit."""

    out: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT", help="A results directory.")
    ]
    count: Annotated[
        str, tyro.conf.arg(metavar="N", help="Trajectories to draw; whole blocks are compared.")
    ] = "8"
    seed: Annotated[str, tyro.conf.arg(metavar="N", help="Of the draw.")] = "0"
    experiment: ExperimentFile = None
    cpu_devices: CpuDevices = "auto"
    compilation_cache: CompilationCache = None

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        out = existing(self.out)
        count, seed = _integer("--count", self.count, 1), _integer("--seed", self.seed, 0)
        from scbjax.sweep.results.store import status

        status(out)  # which fails with a sentence, before JAX is loaded
        _start_jax(self.cpu_devices, self.compilation_cache)
        from scbjax.sweep.results.verify import verify

        experiments = _experiments(self.experiment)
        found = verify(out, count=count, seed=seed, experiments=experiments)
        rows = [
            ("study", found.name),
            ("drawn", f"{found.sampled} of {counted(found.total, 'trajectory')}"),
            ("computed again", f"{counted(found.recomputed, 'trajectory')}, in whole blocks"),
        ]
        print("\n".join(_aligned([*rows, *_comparison_rows(found.comparison)])))
        if found.changed:
            print(f"since the run began, these have changed: {', '.join(found.changed)}")
        if found.damaged:
            print("the checksum of the dataset does not hold")
        print(_verdict(found.comparison, holds=found.holds))
        return 0 if found.holds else EXIT_DIFFERENT


@dataclass(frozen=True)
class Rerun:
    """Run the study of a dataset again, and compare the results."""

    dataset: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET", help="A netCDF file of scbjax.")
    ]
    out: Annotated[
        str | None, _left_out(metavar="DIR", help="Where results go, if not results/rerun/STUDY.")
    ] = None
    memory: Memory = None
    experiment: ExperimentFile = None
    force: Annotated[bool, tyro.conf.arg(help="Start anew, whatever the directory holds.")] = False
    cpu_devices: CpuDevices = "auto"
    compilation_cache: CompilationCache = None

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        source, memory_bytes = Path(checked_path(self.dataset)), read_bytes(self.memory)
        from scbjax.sweep.results.dataset import read_dataset, study_of
        from scbjax.sweep.study.definition import fingerprint

        stored = read_dataset(source)
        study = study_of(stored, self.dataset, _experiments(self.experiment))
        if fingerprint(study) != stored.attrs.get("fingerprint"):
            _note(f"the study in {source} has another fingerprint now")
        out = self._directory(study, source)
        check_out(out)
        _start_jax(self.cpu_devices, self.compilation_cache)
        from scbjax.sweep.engine.execute import run_search, run_study
        from scbjax.sweep.results.verify import compare_datasets, gives_the_same_bits, plan_of

        if is_search(study):
            report = run_search(
                study,
                out,
                create_progress=create_progress,
                memory_bytes=memory_bytes,
                force=self.force,
            )
        else:
            plan = plan_of(study, stored.attrs, self.dataset, memory_bytes=memory_bytes)
            report = run_study(plan, out, progress=create_progress(), force=self.force)
        if report.dataset is None:
            raise Stopped(out)
        print(f"dataset: {report.dataset}")
        again = read_dataset(report.dataset)
        found = compare_datasets(study, stored, again)
        holds = found.identical if gives_the_same_bits(stored, again) else found.close
        print("\n".join(_aligned(_comparison_rows(found))))
        print(_verdict(found, holds=holds))
        return 0 if holds else EXIT_DIFFERENT

    def _directory(self, study: Study, source: Path) -> Path:
        from scbjax.sweep.results.store import default_out

        out = default_out(study, Path(RESULTS) / RERUNS)
        if self.out is not None:
            out = Path(checked_path(self.out))
        if out.resolve() == source.parent.resolve():
            raise StudyError(f"{out} holds the dataset itself; choose another directory with --out")
        return out


@dataclass(frozen=True)
class Figure:
    """Draw the figure of a study or a dataset, or all whose results are there."""

    name: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="NAME", help="A figure's name, all, or a dataset: a file, its folder, a study."
        ),
    ]
    results: Results = RESULTS
    out: Annotated[str, tyro.conf.arg(metavar="DIR", help="Where the pictures go.")] = PICTURES
    numbers: Annotated[
        bool, tyro.conf.arg(help="Print the numbers behind it as tables, and draw nothing.")
    ] = False

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        from scbjax.sweep.scripts.figures import find_dataset, find_figure, find_figures

        results, out = Path(checked_path(self.results)), Path(checked_path(self.out))
        show = _print_numbers if self.numbers else partial(_draw, out=out)
        if self.name == "all":
            return _show_all(results, show)
        dataset = None if self.name in find_figures() else find_dataset(self.name, results)
        if dataset is None:
            show(find_figure(self.name), results)
        elif self.numbers:
            raise StudyError(
                f"--numbers needs the name of a figure with a script, got {shown(self.name)}"
            )
        else:
            _draw_any(dataset, out)
        return 0


@dataclass(frozen=True)
class Devices:
    """Show the devices that JAX runs on."""

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        from scbjax.keys import THREEFRY
        from scbjax.sweep.engine.backend import find_devices
        from scbjax.sweep.plan.cost import readable_bytes

        rows = [("device", "platform", "kind", "memory")]
        for device in find_devices():
            limit = (device.memory_stats() or {}).get("bytes_limit")
            memory = "of the host" if limit is None else readable_bytes(limit)
            rows.append((str(device.id), device.platform, device.device_kind, memory))
        print("\n".join(_aligned(rows)))
        print(f"random numbers: {THREEFRY}")
        return 0


@dataclass(frozen=True)
class Bench:
    """Measure speed, start-up and memory; without a name, list the benchmarks."""

    name: Annotated[
        tyro.conf.Positional[str | None],
        _left_out(metavar="[NAME]", help="A benchmark's name; left out, they are listed."),
    ] = None
    all: Annotated[bool, tyro.conf.arg(help="Run all of them, one after the other.")] = False
    out: Annotated[
        str | None, _left_out(metavar="DIR", help="Where files go, if not docs/benchmarks/DEVICE.")
    ] = None
    quick: Annotated[bool, tyro.conf.arg(help="Small and few: shows that it runs.")] = False

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        from scbjax.sweep.engine.backend import probe_devices
        from scbjax.sweep.scripts.benchmarks import (
            FOLDER,
            find_benchmark,
            find_benchmarks,
            run_benchmark,
            summary_of,
        )

        if self.name is not None and self.all:
            raise StudyError(f"bench takes a name or --all, not both: got {shown(self.name)}")
        if self.name is None and not self.all:
            rows = [(name, summary_of(script)) for name, script in find_benchmarks().items()]
            if not rows:
                raise StudyError(f"there are no benchmarks: {outside_checkout(FOLDER)}")
            print("\n".join(_aligned([("benchmark", "what it measures"), *rows])))
            return 0
        every = list(find_benchmarks().values())
        scripts = every if self.name is None else [find_benchmark(self.name)]
        arguments = ["--quick"] if self.quick else []
        if self.out is not None:
            check_writable(out := Path(checked_path(self.out)))
            arguments += ["--out", str(out)]
        probe_devices()  # which fails with a sentence if there are none
        for script in scripts:
            run_benchmark(script, arguments)
        return 0


_Commands: TypeAlias = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Rerun, tyro.conf.subcommand("rerun")]
    | Annotated[Figure, tyro.conf.subcommand("figure")]
    | Annotated[Devices, tyro.conf.subcommand("devices")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)
_EXAMPLES: Mapping[str, Sequence[str]] = {
    "": (
        "scbjax run quickstart",
        "scbjax show my_study.toml",
        "scbjax run my_study.toml --set train.steps=2000",
        "scbjax run --help",
    ),
    "run": (
        "scbjax run quickstart",
        "scbjax run fig1 --small",
        "scbjax run fig1 --set train.steps=2000 --set 'axes.seed={range=[0, 4]}' --out shorter",
        "scbjax run my_study.toml --memory 4GiB --no-figure",
        "scbjax run fig6 --engine dask",
    ),
    "list": ("scbjax list",),
    "show": ("scbjax show fig1", "scbjax show my_study.toml --set 'axes.l1=[1e-4, 1e-3]'"),
    "status": ("scbjax status results/fig1",),
    "verify": ("scbjax verify results/fig1", "scbjax verify results/fig1 --count 100 --seed 1"),
    "rerun": ("scbjax rerun results/fig1/fig1.nc", "scbjax rerun fig1.nc --out again"),
    "figure": (
        "scbjax figure quickstart",
        "scbjax figure all --out pictures",
        "scbjax figure fig1 --numbers",
        "scbjax figure fig1 --results results/small",
    ),
    "devices": ("scbjax devices",),
    "bench": ("scbjax bench", "scbjax bench step --quick", "scbjax bench --all --out benchmarks"),
}
_NAMES = tuple(command.__metadata__[0].name for command in get_args(_Commands))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments; those of the process if left out.

    Returns:
        The exit status: 0, 2 for input that is wrong, 130 after Ctrl-C.

    >>> main(["--version"])
    scbjax ...
    0
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    with steady_streams() as (output, _):
        status = _run(arguments)
        output.flush()
        # The reader of a pipe such as `scbjax list | head` may go away when it has read enough.
        if isinstance(output.failure, OSError) and not isinstance(output.failure, BrokenPipeError):
            _note(f"standard output can't be written: {output.failure.strerror}")
            return status or EXIT_BAD_INPUT
    return status


def _run(arguments: Sequence[str]) -> int:
    if arguments == ["--version"]:
        print(f"scbjax {scbjax.__version__}")
        return 0
    try:
        return _parse(arguments)()
    except SystemExit as stop:  # help and completion were asked for and are printed
        return int(stop.code or 0)
    except Stopped as stopped:
        return _tell_stopped(stopped.out, arguments)
    except (StudyError, OSError) as error:
        _note(" ".join(str(error).split()))
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("\nscbjax: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


# ---------------------------------------------------------------------------- the command line


def _parse(arguments: Sequence[str]) -> Command:
    """The command that arguments ask for; its help where there are none."""
    if not arguments:
        arguments = ["--help"]
    first = arguments[0]
    if first not in _NAMES and not first.startswith("-"):
        known = f" (commands: {', '.join(_NAMES)})"
        raise StudyError(f"no command is called {shown(first)}{nearest(first, _NAMES) or known}")
    if first.replace("_", "-") not in _COMPLETION:
        return _ask_tyro(arguments)
    try:
        if len(arguments) > 1:
            return _ask_tyro(arguments)
    except (AssertionError, ImportError, ValueError):  # a shell that this tyro can't do
        pass
    shell = shown(arguments[1]) if len(arguments) > 1 else "nothing"
    raise StudyError(f"{first} needs the name of a shell, bash or zsh, got {shell}")


def _ask_tyro(arguments: Sequence[str]) -> Command:
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(
                _Commands,
                prog="scbjax",
                description=DESCRIPTION,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            _print_examples(arguments)
            raise
        raise StudyError(_condensed(message.getvalue())) from None


def _print_examples(arguments: Sequence[str]) -> None:
    """Ends the help of a command, or of all of them, with what can be typed."""
    if any(word in {"-h", "--help"} for word in arguments):
        examples = _EXAMPLES[arguments[0] if arguments[0] in _EXAMPLES else ""]
        print("\n".join(["", "examples:", *(f"  {line}" for line in examples)]))


def _condensed(box: str) -> str:
    r"""Returns tyro's boxed error message as one sentence.

    >>> _condensed("╭─ Oops ──╮\n│ Bad: x │\n│ ────── │\n│ For full helptext, run a │\n╰────╯")
    'Bad: x (see scbjax --help)'
    """
    lines = [line.strip(" │╭╮╰╯") for line in box.splitlines()]
    sections = [[line for line in section if line] for section in _split_at_rules(lines)]
    kept = [
        # Below a heading stand the name of an argument and then its whole help text.
        " ".join(section[:2] if section[0].endswith(":") else section)
        for section in sections
        if section and not section[0].startswith("For full helptext")
    ]
    return f"{'; '.join(kept).rstrip('.')} (see scbjax --help)"


def _split_at_rules(lines: Sequence[str]) -> list[list[str]]:
    sections: list[list[str]] = [[]]
    for line in lines:
        if line.startswith(("─", "--")) and line.endswith(("─", "--")):
            sections.append([])
        else:
            sections[-1].append(line)
    return sections


def _measurer(study: Study, cpu_devices: str) -> Measure:
    """What tells what trajectories take of which the experiment does not; with JAX if it must."""
    from scbjax.sweep.plan.programs import UNKNOWN

    if study.experiment.cost is not None:
        return lambda _: UNKNOWN
    _start_jax(cpu_devices, None)
    from scbjax.sweep.plan.measured import cost_of

    return cost_of


def _load(name: str, overrides: Sequence[str], experiment: str | None, *, small: bool) -> Study:
    """The study of a name or a file, about an experiment of the user's own if a file is given."""
    experiments = _experiments(experiment)
    return load_study(name, overrides, small=small, say=_note, experiments=experiments)


def _experiments(file: str | None) -> tuple[Experiment, ...]:
    """The experiments that a file of the user's defines."""
    return () if file is None else load_experiments(Path(checked_path(file)))


def _with_precision(overrides: Sequence[str], precision: str | None) -> tuple[str, ...]:
    """The overrides with what --precision says after them, which is checked under its own name."""
    if precision is None:
        return tuple(overrides)
    try:
        read_value(fields_of(EXPERIMENT)["train.precision"], precision)
    except StudyError as error:
        raise StudyError(f"--precision: {error}") from None
    return (*overrides, f"train.precision={precision}")


def _integer(option: str, text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) >= least):
        raise StudyError(f"{option} must be an integer of at least {least}, got {shown(text)}")
    return int(text)


def _start_jax(cpu_devices: str, compilation_cache: str | None) -> None:
    from scbjax.sweep.engine.backend import keep_programs, read_cpu_devices

    count = read_cpu_devices(cpu_devices)
    note = keep_programs(None if compilation_cache is None else checked_path(compilation_cache))
    if note is not None:
        _note(note)
    start_jax(count)


def _dask_place(
    scheduler: str | None, cpu_devices: str, compilation_cache: str | None
) -> AbstractContextManager[Place]:
    from scbjax.sweep.engine.backend import read_cpu_devices

    folder = None if compilation_cache is None else checked_path(compilation_cache)
    return dask_place(scheduler, read_cpu_devices(cpu_devices), folder, _note)


def _note(text: str) -> None:
    print(f"scbjax: {text}", file=sys.stderr)


# ---------------------------------------------------------------------------- what is printed


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _under_way(found: store.Status, gone: store.Advance | None) -> list[str]:
    """The chunks with a checkpoint, each with its records."""
    if gone is None:
        return [f"{found.checkpoints} with a checkpoint"] if found.checkpoints else []
    told = [
        f"chunk {each.chunk} with {each.records} of {counted(each.num_records, 'record')}"
        for each in gone.under_way
    ]
    return list(_shortened(told, "..."))


def _list_row(study: Study) -> tuple[str, ...]:
    from scbjax.sweep.plan.programs import make_plan

    parts, rounds = [study], 1
    if is_search(study):
        parts, rounds = first_studies(study), study.base["search.rounds"]
    plans = [make_plan(part) for part in parts]
    count = rounds * sum(plan.num_trajectories for plan in plans)
    tokens = readable_count(rounds * sum(plan.tokens for plan in plans))
    seconds = readable_seconds(rounds * sum(plan.seconds for plan in plans))
    return study.name, str(count), tokens, f"~{seconds}", study.title


def _describe_study(study: Study) -> list[str]:
    lines = [f"{study.name}: {study.title}", study.question, ""]
    values = {
        path: value
        for path, value in study.base.items()
        if value is not None and (is_search(study) or study.fields[path].table != "search")
    }
    lines += _aligned(
        [(path, _field_text(study.fields[path], value)) for path, value in values.items()]
    )
    lines += ["", "axes"]
    for axis in study.axes:
        lines.append(f"  {axis.name}: {counted(len(axis), 'point')}")
        for path, column in zip(axis.fields, zip(*axis.values, strict=True), strict=True):
            texts = [_field_text(study.fields[path], value) for value in _shortened(column, "...")]
            lines.append(f"    {path} = {', '.join(texts)}")
    return lines


def _field_text(field: Parameter, value: object) -> str:
    """A field's value; the number that no study comes to is never."""
    return "never" if field.default == value == INT32_MAX else _text(value)


def _shortened(
    entries: Sequence[_Entry], gap: _Entry, most: int = _MOST_POINTS
) -> tuple[_Entry, ...]:
    """The first and the last of a long sequence, with something that stands for the others.

    >>> _shortened(range(100), -1)
    (0, 1, 2, 3, 4, 5, 6, 7, -1, 98, 99)
    """
    if len(entries) <= most:
        return tuple(entries)
    return (*entries[:_FIRST_SHOWN], gap, *entries[-_LAST_SHOWN:])


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _describe_plan(plan: Plan) -> list[str]:
    from scbjax.sweep.plan.cost import readable_bytes

    total = [
        ("trajectories", str(plan.num_trajectories)),
        ("programs", str(len(plan.programs))),
        ("chunks", str(len(plan.chunks))),
        ("CPU devices", str(max(program.devices for program in plan.programs))),
        ("memory", f"~{readable_bytes(plan.memory_bytes)}"),
        *([("tokens", readable_count(plan.tokens))] if plan.tokens else []),
        ("time", f"~{readable_seconds(plan.seconds)} on two CPU cores, with compilation"),
    ]
    lines = ["plan", *(f"  {line}" for line in _aligned(total))]
    if len(plan.programs) > 1:
        lines += ["", "programs", *_table(_program_rows(plan))]
    return lines


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table with its header, the middle of a long one left out."""
    header, *body = rows
    gap = ("...", *([""] * (len(header) - 1)))
    return [f"  {line}" for line in _aligned([header, *_shortened(body, gap, _MOST_ROWS)])]


def _describe_search(study: Study) -> list[str]:
    """What each cell of a search costs, all rounds together."""
    from scbjax.sweep.plan.programs import make_plan

    rounds = study.base["search.rounds"]
    plans = [make_plan(part) for part in first_studies(study)]
    cells = list(cells_of(study))
    names = tuple(cells[0].values)
    rows: list[tuple[str, ...]] = [(*names, "steps", "trajectories", "tokens", "time")]
    for cell, plan in zip(cells, plans, strict=True):
        rows.append(
            (
                *(_text(cell.values[name]) for name in names),
                str(cell.study.base[STEPS.path]),
                str(rounds * plan.num_trajectories),
                readable_count(rounds * plan.tokens),
                f"~{readable_seconds(rounds * plan.seconds)}",
            )
        )
    total = readable_seconds(rounds * sum(plan.seconds for plan in plans))
    size = f"{counted(rounds, 'round')} in {counted(len(cells), 'cell')}"
    return [f"search: {size}, ~{total} on two CPU cores", *_table(rows)]


def _program_rows(plan: Plan) -> list[tuple[str, ...]]:
    """What tells the programs of a plan apart, and what each of them costs."""
    from scbjax.sweep.plan.cost import readable_bytes

    fields = plan.study.fields
    static = [
        path for path in fields if path not in plan.study.base and fields[path].kind == "static"
    ]
    rows: list[tuple[str, ...]] = [(*static, "trajectories", "chunks", "memory", "time")]
    for program in plan.programs:
        chunks = sum(chunk.program == program.index for chunk in plan.chunks)
        cost = (f"~{readable_bytes(program.memory_bytes)}", f"~{readable_seconds(program.seconds)}")
        values = (str(program.fixed[path]) for path in static)
        rows.append((*values, str(program.positions.size), str(chunks), *cost))
    return rows


def _comparison_rows(found: Comparison) -> list[tuple[str, str]]:
    same = f"{found.identical_variables} of {found.variables} bit-identical"
    where = f" in {found.largest_in}" if found.largest_in else ""
    return [
        ("variables", same),
        ("values", f"{found.identical_values} of {found.values} bit-identical"),
        ("largest difference", f"{found.largest_difference:.3g}{where}"),
    ]


def _verdict(found: Comparison, *, holds: bool) -> str:
    if not holds:
        return "not the same results"
    return "the same, bit for bit" if found.identical else "the same within rounding"


def _tell_stopped(out: Path, arguments: Sequence[str]) -> int:
    # As it was typed, since every option may be one that the rest depends on; but not anew.
    typed = [word for word in arguments if word != "--force"]
    print(f"stopped, with all that was done saved in {out}")
    print(f"continue with: {shlex.join(['scbjax', *typed])}")
    return EXIT_INTERRUPTED


def _print_paths(paths: Sequence[Path]) -> None:
    for path in paths:
        print(path)


def _tell_figures(study: str, dataset: Path, *, draw: bool) -> None:
    """Draws the figures of a study that is complete, and says how to draw them."""
    from scbjax.sweep.scripts.figures import figures_of

    usual = dataset.parent == Path(RESULTS) / study
    scripts = figures_of(study)
    if draw:
        try:
            _draw_any(dataset, Path(PICTURES) if usual else dataset.parent)
        except StudyError as error:
            if scripts:
                raise
            _note(str(error))  # the study is complete, whether a default figure fits it or not
            draw = False
    again = "draw it again with:" if draw else "draw it with:"
    for name in scripts if dataset.parent.name == study else []:
        elsewhere = [] if usual else ["--results", str(dataset.parent.parent)]
        print(again, shlex.join(["scbjax", "figure", name, *elsewhere]))
    if not scripts:
        print(again, shlex.join(["scbjax", "figure", str(dataset)]))


def _draw_any(dataset: Path, out: Path) -> None:
    """Draws the figures of a dataset's study or, if it has none, the default one."""
    from scbjax.sweep.scripts.figures import draw_dataset, draw_default, figures_of

    scripts = figures_of(dataset.stem)
    for script in scripts.values():
        _print_paths(draw_dataset(script, dataset, out))
    if not scripts:
        _print_paths(draw_default(dataset, out))


def _draw(script: Path, results: Path, out: Path) -> None:
    """Draws a figure, and says if there is a newer dataset that it is not drawn from."""
    from scbjax.sweep.scripts.figures import draw_figure

    _print_paths(draw_figure(script, results, out))
    _tell_newer(script, results)


def _print_numbers(script: Path, results: Path) -> None:
    """Prints the numbers behind a figure under its name, as Markdown."""
    from scbjax.sweep.scripts.figures import numbers_of

    print(f"## {script.stem}\n\n{numbers_of(script, results)}\n")
    _tell_newer(script, results)


def _tell_newer(script: Path, results: Path) -> None:
    """Says if there is a newer dataset than the one that a figure reads."""
    from scbjax.sweep.scripts.figures import dataset_of, newer_than

    dataset = dataset_of(script, results)
    if newer := newer_than(dataset):
        _note(f"{newer} has other settings and is newer than {dataset}, which was read")


def _show_all(results: Path, show: Callable[[Path, Path], None]) -> int:
    """Draws every figure whose dataset is there, or prints its numbers; says what is left out."""
    from scbjax.sweep.scripts.figures import FOLDER, dataset_of, find_figures

    left_out, failed = [], []
    scripts = find_figures()
    if not scripts:
        raise StudyError(f"there are no figures: {outside_checkout(FOLDER)}")
    for script in scripts.values():
        try:
            dataset_of(script, results)
        except StudyError as error:
            left_out.append(str(error))
            continue
        try:
            show(script, results)
        except StudyError as error:
            failed.append(str(error))
    for reason in left_out:
        _note(f"left out: {reason}")
    for reason in failed:
        _note(reason)
    if len(left_out) == len(scripts):
        raise StudyError(f"no figure could be drawn from {results}")
    return EXIT_BAD_INPUT if failed else 0
