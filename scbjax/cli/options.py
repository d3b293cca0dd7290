"""Options that several commands have, and what is read of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

from scbjax.base import Experiment, StudyError
from scbjax.cli.printing import note
from scbjax.experiments.scb import EXPERIMENT
from scbjax.sweep.engine.places import checked_path
from scbjax.sweep.study.experiments import load_experiments
from scbjax.sweep.study.fields import fields_of, read_value, shown
from scbjax.sweep.study.files import Study, load_study

_MAX_DIGITS = 9

# What tyro says of an option that may be left out, "(default: None)", tells nothing.
left_out = partial(tyro.conf.arg, help_behavior_hint="")

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
    left_out(
        metavar="highest|high|default",
        help="Of the matrix products of a step, if not the study's own: train.precision.",
    ),
]
Small: TypeAlias = Annotated[
    bool, tyro.conf.arg(help="The study's own small size: compiling takes most of the time.")
]
Memory: TypeAlias = Annotated[
    str | None,
    left_out(
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
    left_out(
        metavar="DIR",
        help="Where compiled programs are kept, if not in the user's cache; off for nowhere.",
    ),
]
ExperimentFile: TypeAlias = Annotated[
    str | None,
    left_out(metavar="FILE", help="A Python file with an experiment of your own, which is run."),
]
Results: TypeAlias = Annotated[
    str, tyro.conf.arg(metavar="DIR", help="The directory that holds the studies' results.")
]


def load_named(
    name: str, overrides: Sequence[str], experiment: str | None, *, small: bool
) -> Study:
    """The study of a name or a file, about an experiment of the user's own if a file is given."""
    experiments = experiments_of(experiment)
    return load_study(name, overrides, small=small, say=note, experiments=experiments)


def experiments_of(file: str | None) -> tuple[Experiment, ...]:
    """The experiments that a file of the user's defines."""
    return () if file is None else load_experiments(Path(checked_path(file)))


def with_precision(overrides: Sequence[str], precision: str | None) -> tuple[str, ...]:
    """The overrides with what --precision says after them, which is checked under its own name."""
    if precision is None:
        return tuple(overrides)
    try:
        read_value(fields_of(EXPERIMENT)["train.precision"], precision)
    except StudyError as error:
        raise StudyError(f"--precision: {error}") from None
    return (*overrides, f"train.precision={precision}")


def read_integer(option: str, text: str, least: int) -> int:
    """The integer that an option's text is, of at least some number."""
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) >= least):
        raise StudyError(f"{option} must be an integer of at least {least}, got {shown(text)}")
    return int(text)
