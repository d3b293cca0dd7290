"""From arguments to the command that they ask for, its help, or a sentence of what is wrong."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, Protocol, Union

import tyro

from scbjax.base import StudyError
from scbjax.sweep.study.fields import shown
from scbjax.tables import nearest

DESCRIPTION = (
    "Sweeps of linear transformers that learn sparse contextual bigrams. "
    "`scbjax --version` prints the version; `scbjax --tyro-print-completion bash` (or zsh) "
    "prints what completes its words in that shell."
)

_COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


class Command(Protocol):
    """A command with its arguments."""

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""


# Only the module of the command that is asked for is imported, so that none waits for the others.
_CLASSES: Mapping[str, str] = {
    "run": "run.Run",
    "list": "studies.List",
    "show": "studies.Show",
    "status": "status.Status",
    "verify": "comparing.Verify",
    "rerun": "comparing.Rerun",
    "figure": "drawing.Figure",
    "explore": "exploring.Explore",
    "fit": "fitting.Fit",
    "predict": "fitting.Predict",
    "sample": "fitting.Sample",
    "score": "fitting.Score",
    "devices": "machine.Devices",
    "bench": "machine.Bench",
}
NAMES = tuple(_CLASSES)
EXAMPLES: Mapping[str, Sequence[str]] = {
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
    "explore": (
        "scbjax explore results/fig2",
        "scbjax explore my_study.nc --out attention.html --budget 5MB",
    ),
    "fit": (
        "scbjax fit english",
        "scbjax fit novel.txt --as letters --model mtdg --context 16",
        "scbjax fit temperatures.csv --column temp --classes 8 --context 48",
        "scbjax fit genes.fasta --model scb --lags bic",
    ),
    "predict": ("scbjax predict results/fit/english.nc 'to the questio'",),
    "sample": ("scbjax sample results/fit/english.nc --length 500 --seed 1",),
    "score": ("scbjax score results/fit/novel.nc another.txt",),
    "devices": ("scbjax devices",),
    "bench": ("scbjax bench", "scbjax bench step --quick", "scbjax bench --all --out benchmarks"),
}


def _class_of(name: str) -> type[Command]:
    module, _, own = _CLASSES[name].partition(".")
    found: type[Command] = getattr(import_module(f"scbjax.cli.{module}"), own)
    return found


def _all_commands() -> object:
    """What tyro makes one parser of, with the commands below it."""
    return Union[tuple(Annotated[_class_of(n), tyro.conf.subcommand(n)] for n in NAMES)]  # noqa: UP007


def parse(arguments: Sequence[str]) -> Command:
    """The command that arguments ask for; its help where there are none."""
    if not arguments:
        arguments = ["--help"]
    first = arguments[0]
    if first not in NAMES and not first.startswith("-"):
        known = f" (commands: {', '.join(NAMES)})"
        raise StudyError(f"no command is called {shown(first)}{nearest(first, NAMES) or known}")
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
    # One command's own parser where it is known: what is misspelt is looked for among its options.
    name = arguments[0] if arguments[0] in NAMES else None
    program = "scbjax" if name is None else f"scbjax {name}"
    described: Any = _all_commands() if name is None else _class_of(name)
    try:
        with contextlib.redirect_stderr(message):
            asked: Command = tyro.cli(
                described,
                prog=program,
                description=DESCRIPTION if name is None else None,
                args=arguments if name is None else arguments[1:],
                config=(tyro.conf.FlagCreatePairsOff,),
            )
            return asked
    except SystemExit as stop:
        if not stop.code:
            _print_examples(arguments)
            raise
        raise StudyError(_condensed(message.getvalue(), program)) from None


def _print_examples(arguments: Sequence[str]) -> None:
    """Ends the help of a command, or of all of them, with what can be typed."""
    if any(word in {"-h", "--help"} for word in arguments):
        examples = EXAMPLES[arguments[0] if arguments[0] in EXAMPLES else ""]
        print("\n".join(["", "examples:", *(f"  {line}" for line in examples)]))


def _condensed(box: str, command: str) -> str:
    r"""Returns tyro's boxed error message of a command as one sentence.

    >>> box = "╭─ Oops ──╮\n│ Bad: x │\n│ ────── │\n│ For full helptext, run a │\n╰────╯"
    >>> _condensed(box, "scbjax run")
    'Bad: x (see scbjax run --help)'
    """
    lines = [line.strip(" │╭╮╰╯") for line in box.splitlines()]
    sections = [[line for line in section if line] for section in _split_at_rules(lines)]
    kept = [
        # Below a heading stand the name of an argument and then its whole help text.
        " ".join(section[:2] if section[0].endswith(":") else section)
        for section in sections
        if section and not section[0].startswith("For full helptext")
    ]
    return f"{'; '.join(kept).rstrip('.')} (see {command} --help)"


def _split_at_rules(lines: Sequence[str]) -> list[list[str]]:
    sections: list[list[str]] = [[]]
    for line in lines:
        if line.startswith(("─", "--")) and line.endswith(("─", "--")):
            sections.append([])
        else:
            sections[-1].append(line)
    return sections
