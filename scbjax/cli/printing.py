"""How commands print: notes, columns, and long sequences cut short."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TypeVar

_MOST = 24
"""So many are all shown; of more, the first and the last."""
_FIRST_SHOWN, _LAST_SHOWN = 8, 2

_Entry = TypeVar("_Entry")


def note(text: str) -> None:
    """Prints a sentence that is not part of what was asked for."""
    print(f"scbjax: {text}", file=sys.stderr)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table whose columns are as wide as their longest entry."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def shortened(entries: Sequence[_Entry], gap: _Entry, most: int = _MOST) -> tuple[_Entry, ...]:
    """The first and the last of a long sequence, with something that stands for the others.

    >>> shortened(range(100), -1)
    (0, 1, 2, 3, 4, 5, 6, 7, -1, 98, 99)
    """
    if len(entries) <= most:
        return tuple(entries)
    return (*entries[:_FIRST_SHOWN], gap, *entries[-_LAST_SHOWN:])


def as_text(value: object) -> str:
    """A value as it is printed, several of them with commas."""
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
