"""``scbjax devices`` and ``scbjax bench``: the devices that JAX runs on, and how fast they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scbjax.base import StudyError
from scbjax.cli.options import left_out
from scbjax.cli.printing import aligned
from scbjax.sweep.engine.places import checked_path, writable_folder
from scbjax.sweep.study.fields import shown
from scbjax.sweep.study.locating import none_found


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
        print("\n".join(aligned(rows)))
        print(f"random numbers: {THREEFRY}")
        return 0


@dataclass(frozen=True)
class Bench:
    """Measure speed, start-up and memory; without a name, list the benchmarks."""

    name: Annotated[
        tyro.conf.Positional[str | None],
        left_out(metavar="[NAME]", help="A benchmark's name; left out, they are listed."),
    ] = None
    all: Annotated[bool, tyro.conf.arg(help="Run all of them, one after the other.")] = False
    out: Annotated[
        str | None,
        left_out(
            metavar="DIR",
            help="Where files go, if not results/benchmarks/DEVICE, or docs/benchmarks/DEVICE of a "
            "checkout.",
        ),
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
                raise StudyError(f"there are no benchmarks: {none_found(FOLDER)}")
            print("\n".join(aligned([("benchmark", "what it measures"), *rows])))
            return 0
        every = list(find_benchmarks().values())
        scripts = every if self.name is None else [find_benchmark(self.name)]
        arguments = ["--quick"] if self.quick else []
        if self.out is not None:
            arguments += ["--out", str(writable_folder(Path(checked_path(self.out))))]
        probe_devices()  # which fails with a sentence if there are none
        for script in scripts:
            run_benchmark(script, arguments)
        return 0
