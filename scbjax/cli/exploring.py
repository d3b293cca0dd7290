"""``scbjax explore``: a page in which the snapshots of a study are watched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from scbjax.cli.options import ExperimentFile, Results, left_out
from scbjax.cli.printing import note
from scbjax.exploring import BUDGET
from scbjax.sweep.engine.places import RESULTS


@dataclass(frozen=True)
class Explore:
    """Write an HTML file in which A and V are watched step by step, beside Q and P."""

    path: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="PATH",
            help="A dataset with snapshots: a file, its folder, also of a run that is not "
            "complete, or a study.",
        ),
    ]
    results: Results = RESULTS
    out: Annotated[
        str | None, left_out(metavar="FILE", help="The file, if not beside the dataset.")
    ] = None
    budget: Annotated[
        str, tyro.conf.arg(metavar="SIZE", help="Size of the file; what exceeds it is left out.")
    ] = BUDGET
    force: Annotated[
        bool, tyro.conf.arg(help="Write over a file that this command did not write.")
    ] = False
    experiment: ExperimentFile = None

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        from scbjax.exploring.explorer import write_page

        path = write_page(
            self.path,
            self.out,
            budget=self.budget,
            force=self.force,
            experiment=self.experiment,
            results=self.results,
            say=note,
        )
        print(path)
        return 0
