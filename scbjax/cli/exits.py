"""How a command ends: its exit statuses, and that a run was stopped."""

from __future__ import annotations

from pathlib import Path

EXIT_DIFFERENT = 1
"""Results are not those that their study gives."""
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
"""What a shell reports of a process that SIGINT ended: 128 + 2."""


class Stopped(Exception):  # noqa: N818 - not an error
    """The user asked a run to stop, and what it had is saved in the directory `out`."""

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self.out = out
