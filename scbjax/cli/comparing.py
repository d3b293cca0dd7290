"""``scbjax verify`` and ``scbjax rerun``: results that are computed again and compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scbjax.base import StudyError
from scbjax.cli.exits import EXIT_DIFFERENT, Stopped
from scbjax.cli.options import (
    CompilationCache,
    CpuDevices,
    ExperimentFile,
    Memory,
    experiments_of,
    left_out,
    read_integer,
)
from scbjax.cli.printing import aligned, note
from scbjax.cli.starting import prepare_jax
from scbjax.sweep.engine.places import RESULTS, check_out, checked_path, existing, read_bytes
from scbjax.sweep.engine.progress import counted, create_progress
from scbjax.sweep.study.cells import is_search
from scbjax.sweep.study.files import Study

if TYPE_CHECKING:
    from scbjax.sweep.results.verify import Comparison


RERUNS = "rerun"


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
        count, seed = read_integer("--count", self.count, 1), read_integer("--seed", self.seed, 0)
        from scbjax.sweep.results.store import status

        status(out)  # which fails with a sentence, before JAX is loaded
        prepare_jax(self.cpu_devices, self.compilation_cache)
        from scbjax.sweep.results.verify import verify

        experiments = experiments_of(self.experiment)
        found = verify(out, count=count, seed=seed, experiments=experiments)
        rows = [
            ("study", found.name),
            ("drawn", f"{found.sampled} of {counted(found.total, 'trajectory')}"),
            ("computed again", f"{counted(found.recomputed, 'trajectory')}, in whole blocks"),
        ]
        print("\n".join(aligned([*rows, *_comparison_rows(found.comparison)])))
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
        str | None, left_out(metavar="DIR", help="Where results go, if not results/rerun/STUDY.")
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
        study = study_of(stored, self.dataset, experiments_of(self.experiment))
        if fingerprint(study) != stored.attrs.get("fingerprint"):
            note(f"the study in {source} has another fingerprint now")
        out = self._directory(study, source)
        check_out(out)
        prepare_jax(self.cpu_devices, self.compilation_cache)
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
        print("\n".join(aligned(_comparison_rows(found))))
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
