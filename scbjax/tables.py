"""Tables of names: what is registered in them stays, and what is misspelt is found again.

Imports nothing, so that the command can use it without JAX.
"""

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

V = TypeVar("V")

NEAREST_CUTOFF = 0.5
"""Similarity (of difflib) from which a name is suggested: low enough for 'l2' to suggest 'l1'."""
MIN_BEGUN = 3
"""Letters from which what is typed may be the beginning of a name."""
MOST_NAMED = 3
"""Names that are suggested together."""
MAX_SHOWN = 60
"""Characters of an offending value that an error message repeats."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns the suggestion that ends an error about a misspelt name, or nothing.

    What is typed may also be the beginning of names, or the first letters of their words, which
    difflib finds unlike them.

    Example:
        >>> nearest("proximl", ["proximal", "sgd"])
        "; did you mean 'proximal'?"
        >>> nearest("temp", ["time", "temperature_c"])
        "; did you mean 'temperature_c'?"
        >>> nearest("lr", ["l1", "learning_rate_1", "learning_rate_2"])
        "; did you mean 'learning_rate_1' or 'learning_rate_2'?"
        >>> nearest("xyz", ["proximal", "sgd"])
        ''
    """
    quoted = [f"'{each}'" for each in _alike(name, names)]
    if not quoted:
        return ""
    return f"; did you mean {' or '.join(filter(None, (', '.join(quoted[:-1]), quoted[-1])))}?"


def most_like(name: str, names: Iterable[str]) -> str:
    """The name that one which is none of them is most like; empty if it is like none."""
    return next(iter(_alike(name, names)), "")


def _alike(name: str, names: Iterable[str]) -> list[str]:
    """The names that one which is none of them may stand for: one, or all numbers of a name."""
    known, typed = list(dict.fromkeys(names)), name.lower()
    if same := [each for each in known if each.lower() == typed]:
        return same[:1]
    numbered = [each for each in known if each.lower().rstrip("0123456789") == f"{typed}_"]
    short = [each for each in known if _initials(each).startswith(typed)] if len(typed) > 1 else []
    if some := (numbered or short)[:MOST_NAMED]:
        return some
    begun = [each for each in known if each.lower().startswith(typed)]
    if len(typed) >= MIN_BEGUN and begun:
        return difflib.get_close_matches(name, begun, n=1, cutoff=0.0)
    return difflib.get_close_matches(name, known, n=1, cutoff=NEAREST_CUTOFF)


def _initials(name: str) -> str:
    """First letters of the words of a name that has several."""
    words = name.lower().split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def brief(value: object) -> str:
    """A value as one short line of an error message.

    Example:
        >>> brief([1, 2])
        '[1, 2]'
        >>> len(brief("x" * 1000))
        60
    """
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # Python spells out no integer of thousands of digits
        return "what is too long to show"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


class Registry(dict[str, V]):
    """A dictionary in which a name stands for one thing for as long as the process lasts.

    Compiled programs are known to JAX by the names in them, not by what the names stand for: were a
    name given something else, programs that are compiled already would go on with the old. So a
    name that stands for something is not given anything else, also not after it was removed.

    Args:
        kind: what an entry is, for messages.
        entries: the first entries.

    Raises:
        ValueError: when a name that is or was in use is given something else.

    Example:
        >>> shapes = Registry("shape", {"round": 1})
        >>> shapes["flat"] = 2
        >>> shapes["flat"] = 3
        Traceback (most recent call last):
        ...
        ValueError: a shape 'flat' is registered already; choose another name, since compiled ...
    """

    def __init__(self, kind: str, entries: dict[str, V]) -> None:
        self._kind = kind
        self._ever: dict[str, V] = {}
        super().__init__()
        self.update(entries)

    def __setitem__(self, name: str, entry: V) -> None:
        if self._ever.setdefault(name, entry) is not entry:
            raise ValueError(
                f"{_article(self._kind)} {name!r} is registered already; choose another name, "
                "since compiled programs know it by its name and would go on with the first"
            )
        super().__setitem__(name, entry)

    def update(self, *entries: Any, **named: V) -> None:  # noqa: ANN401 - as that of a dictionary
        """Adds entries, none of them under a name that stands for something else."""
        for name, entry in dict[str, V](*entries, **named).items():
            self[name] = entry

    def setdefault(self, name: str, entry: V) -> V:
        """The entry of a name, which is added if there is none."""
        if name not in self:
            self[name] = entry
        return self[name]

    def __ior__(self, entries: Any) -> "Registry[V]":  # type: ignore[override,misc] # noqa: ANN401
        self.update(entries)
        return self


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
