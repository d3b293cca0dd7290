"""``scbjax run``: a study is run, or continued, and drawn."""

from __future__ import annotations

import contextlib
import shlex
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scbjax.base import StudyError
from scbjax.cli.drawing import DRAWING, tell_figures
from scbjax.cli.exits import Stopped
from scbjax.cli.options import (
    CompilationCache,
    CpuDevices,
    ExperimentFile,
    Memory,
    Overrides,
    Precision,
    Small,
    StudyName,
    left_out,
    load_named,
    with_precision,
)
from scbjax.cli.printing import note
from scbjax.cli.starting import dask_workers, prepare_jax
from scbjax.sweep.engine.places import RESULTS, SMALL, check_out, checked_path, read_bytes, run_into
from scbjax.sweep.engine.progress import create_progress
from scbjax.sweep.study.fields import shown
from scbjax.sweep.study.files import Study

if TYPE_CHECKING:
    from scbjax.sweep.engine.here import Place


@dataclass(frozen=True)
class Run:
    """Run a study, or continue it, and draw its figures."""

    study: StudyName
    overrides: Overrides = ()
    out: Annotated[
        str | None, left_out(metavar="DIR", help="Where results go, if not results/STUDY.")
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
        left_out(
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
            note(f"{out.with_name(study.name)} holds other settings; these go to {out}")
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
        tell_figures(study.name, report.dataset, draw=not self.no_figure)
        _tell_explorer(study, report.dataset)
        return 0

    def _place(self) -> AbstractContextManager[Place]:
        """Where the study is to run."""
        if self.engine == "dask":
            return dask_workers(self.scheduler, self.cpu_devices, self.compilation_cache)
        if self.scheduler is not None:
            raise StudyError(f"--scheduler {shown(self.scheduler)} is only for --engine dask")
        prepare_jax(self.cpu_devices, self.compilation_cache)
        from scbjax.sweep.engine.here import here

        return contextlib.nullcontext(here(() if self.no_figure else DRAWING))

    def _study(self) -> Study:
        overrides = with_precision(self.overrides, self.precision)
        return load_named(self.study, overrides, self.experiment, small=self.small)

    def _directory(self, study: Study) -> Path:
        from scbjax.sweep.results.store import default_out

        if self.out is not None:
            return Path(checked_path(self.out))
        results = Path(RESULTS) / SMALL if self.small else Path(RESULTS)
        # Without --force, other settings than those of results/STUDY get a directory of their own.
        return results / study.name if self.force else default_out(study, results)


def _tell_explorer(study: Study, dataset: Path) -> None:
    """Says how snapshots are watched, where there are some."""
    from scbjax.exploring.choosing import MATRICES

    if study.snapshots and any(matrix.learned in study.experiment.kept for matrix in MATRICES):
        print("watch it with:", shlex.join(["scbjax", "explore", str(dataset.parent)]))
