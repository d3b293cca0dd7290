"""``scbjax status``: how far a run is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from scbjax.cli.options import ExperimentFile, experiments_of
from scbjax.cli.printing import aligned, as_text, shortened
from scbjax.sweep.engine.places import existing
from scbjax.sweep.engine.progress import counted

if TYPE_CHECKING:
    from scbjax.sweep.results import store


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
        gone = advance(found, experiments_of(self.experiment))
        share = "not known" if gone is None else f"{math.floor(100 * gone.fraction + 1e-6)}%"
        rows = [
            ("study", found.manifest.name),
            ("fingerprint", found.manifest.fingerprint),
            ("progress", share),
            ("chunks", f"{found.chunks_done} of {found.manifest.num_chunks} done"),
            ("under way", as_text(tuple(_under_way(found, gone))) or "none with a checkpoint"),
            ("dataset", str(found.dataset or "not written yet; run the study again to continue")),
        ]
        print("\n".join(aligned(rows)))
        return 0


def _under_way(found: store.Status, gone: store.Advance | None) -> list[str]:
    """The chunks with a checkpoint, each with its records."""
    if gone is None:
        return [f"{found.checkpoints} with a checkpoint"] if found.checkpoints else []
    told = [
        f"chunk {each.chunk} with {each.records} of {counted(each.num_records, 'record')}"
        for each in gone.under_way
    ]
    return list(shortened(told, "..."))
