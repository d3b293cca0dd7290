"""What parameters may be set to: the kinds of their values, and what of these is allowed.

Nothing here imports JAX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Scalar: TypeAlias = bool | int | float | str
FieldValue: TypeAlias = Scalar | tuple[str, ...] | tuple[int, ...] | None
Values: TypeAlias = Mapping[str, Any]
"""Values of parameters by dotted path."""

INT32_MAX = 2**31 - 1
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
FLOAT32_TINY = 2.0**-126


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`, with `low` itself left out when `above` is set."""

    low: float
    high: float
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.high in (FLOAT32_MAX, math.inf):
            return f"{'above' if self.above else 'of at least'} {self.low:g}"
        if self.above:
            return f"above {self.low:g} and at most {self.high:g}"
        return f"from {self.low} to {self.high}"


@dataclass(frozen=True)
class Choice:
    """A closed list of names."""

    options: tuple[str, ...]

    def __contains__(self, value: str) -> bool:
        return value in self.options

    def __str__(self) -> str:
        return "one of " + ", ".join(f"'{option}'" for option in self.options)


Check: TypeAlias = Interval | Choice | None
