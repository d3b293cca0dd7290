"""The command as a process that is watched from outside: see test_soak.py.

``python soaked.py EVENTS LEAKS ...`` is ``scbjax ...``, with segments and checkpoints more often
than usual and the chunks of all programs in turns, so that everything is compiled at the beginning.
It appends a line of JSON to EVENTS for each chunk that has ended. LEAKS, separated by commas, are
things to lose with every chunk: what finds leaks has to find these.
"""

import dataclasses
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SEGMENT_SECONDS = 0.5
CHECKPOINT_SECONDS = 1.0
COMPILED = "/jax/core/compile/backend_compile_duration"
_LOST: list[object] = []


def _compile_another() -> None:
    import jax

    one = len(_LOST)
    _LOST.append(jax.jit(lambda x: x + one))
    _LOST[-1](1.0)  # type: ignore[operator]


def _lose_array() -> None:
    import jax.numpy as jnp

    _LOST.append(jnp.arange(10) + 0)


def _lose_thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


LEAKS: dict[str, Callable[[], object]] = {
    "memory": lambda: _LOST.append(os.urandom(2**22)),
    "objects": lambda: _LOST.extend([object() for _ in range(20_000)]),
    "arrays": _lose_array,
    "compilations": _compile_another,
    "threads": _lose_thread,
    "descriptors": lambda: _LOST.append(os.open(os.devnull, os.O_RDONLY)),
    "files": lambda: os.close(tempfile.mkstemp()[0]),
}
"""What can be lost, by the name of what then grows."""


def in_turns(indices: Sequence[int], program_of: Callable[[int], int]) -> list[int]:
    """The chunks in an order in which those of every program are spread evenly."""
    counts, seen = Counter(map(program_of, indices)), Counter[int]()
    places = {}
    for index in indices:
        program = program_of(index)
        places[index] = ((seen[program] + 0.5) / counts[program], program)
        seen[program] += 1
    return sorted(indices, key=places.__getitem__)


def watch(events: Path, leaks: Sequence[str]) -> None:
    """Makes every run of this process tell what it does, and lose what it is told to."""
    import jax
    from often import save_often

    from scbjax.sweep.engine import here
    from scbjax.sweep.engine.chunks import ChunkResult, Segment
    from scbjax.sweep.engine.engines import LocalEngine, Session
    from scbjax.sweep.plan.plans import Plan

    counts = Counter[str]()

    def count(event: str, duration_secs: float, **_: str | int) -> None:  # noqa: ARG001
        counts["compilations"] += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(count)

    class Counted:
        """A session that counts its segments and checkpoints."""

        def __init__(self, session: Session) -> None:
            self._session = session

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the session has it
            return getattr(self._session, name)

        def listen(self, segment: Segment) -> None:
            counts["segments"] += 1
            fetch = segment.checkpoint
            assert fetch is not None

            def checkpoint() -> Any:  # noqa: ANN401
                counts["checkpoints"] += 1
                return fetch()

            self._session.listen(dataclasses.replace(segment, checkpoint=checkpoint))

    class Watched(LocalEngine):
        """The local engine, taking programs in turns."""

        def run(
            self, plan: Plan, indices: Sequence[int], session: Session
        ) -> Iterator[tuple[int, ChunkResult]]:
            order = in_turns(indices, lambda index: plan.chunks[index].program)
            for index, result in super().run(plan, order, Counted(session)):
                for leak in leaks:
                    LEAKS[leak]()
                told = {
                    **counts,
                    "time": time.time(),
                    "program": plan.chunks[index].program,
                    "arrays": len(jax.live_arrays()),
                    "executables": len(jax.devices()[0].client.live_executables()),
                    "objects": sys.getallocatedblocks(),
                }
                with events.open("a") as file:
                    file.write(json.dumps(told) + "\n")
                yield index, result

    save_often(SEGMENT_SECONDS, CHECKPOINT_SECONDS)
    vars(here).update(LocalEngine=Watched)


def main() -> int:
    """Runs the command that stands after the names of the file and of the leaks."""
    events, leaks, *arguments = sys.argv[1:]
    from scbjax.sweep.engine import places

    start = places.start_jax

    def start_and_watch(count: int | None) -> None:
        start(count)  # decides how many devices there are, before anything else of JAX
        watch(Path(events), leaks.split(",") if leaks else [])

    vars(places).update(start_jax=start_and_watch)
    from scbjax import cli  # which takes the name from there

    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
