"""From a file to symbols: letters, characters, words, a column of a table, records of FASTA."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scbjax.base import StudyError
from scbjax.tables import brief, nearest

_SAMPLE_KINDS: Final[Mapping[str, str]] = {
    "english": "letters", "temperatures": "csv", "brca1": "fasta",
}  # fmt: skip
SAMPLES: Final = tuple(_SAMPLE_KINDS)
"""Sequences that come with Python or this library; where from, says `samples/README.md`."""
OTHER: Final = "<other>"
"""The symbol that stands for all that are not among the most frequent ones."""
_LISTED = 8  # names in a sentence
_LONGEST_PATH = 255
_FEW = 16  # rows that may all differ by chance
MOST: Final = 4096  # symbols: matrices are [N, N]

_ENDINGS: Final[Mapping[str, str]] = {
    ".csv": "csv", ".tsv": "csv", ".fa": "fasta", ".fasta": "fasta", ".fna": "fasta",
    ".ffn": "fasta", ".npy": "integers",
}  # fmt: skip
_SAMPLE_CLASSES = 6


@dataclasses.dataclass(frozen=True)
class Symbols:
    """A sequence as integers, and what they stand for.

    Attributes:
        tokens: [n] of uint8, uint16 or uint32, from 0 to N - 1.
        names: what the integers stand for, N of them.
        starts: where records begin: no window goes over such a place; the first is 0.
        kind: how the file was read, one of `KINDS`.
    """

    tokens: NDArray[Any]
    names: tuple[str, ...]
    starts: tuple[int, ...] = (0,)
    kind: str = "integers"

    def __repr__(self) -> str:
        """Sizes, not the arrays."""
        return f"Symbols({self.kind}: {self.tokens.size} of {len(self.names)} kinds)"


def read_symbols(
    path: str | Path,
    kind: str | None = None,
    *,
    column: str | None = None,
    classes: int | None = None,
    top: int | None = None,
    names: Sequence[str] | None = None,
) -> Symbols:
    """Reads a file.

    Args:
        path: the file; of a text or table, in UTF-8. Where no file is called so, ``english`` is
            the text that comes with Python, ``temperatures`` are hourly ones of Seattle in six
            classes, and ``brca1`` the bases of a gene of 55 mammals.
        kind: what its symbols are: ``characters`` as they stand; ``letters``, a to z with a space
            for all else; ``words`` in lower case; ``csv``, the rows of a column; ``fasta``, the
            bases of its records; ``codons``, the same by threes; ``integers``, an array in an
            ``.npy`` file. None for what the ending says, and characters where it says nothing.
        column: of a table, by its name or number (the first is 1); it may be left out where there
            is one.
        classes: of a column of numbers, into how many classes of about equal size they are cut.
        top: how many of the most frequent symbols are kept; the others become one.
        names: the symbols of a fit, in their order: any other is an error.

    Raises:
        StudyError: one sentence for what can't be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "song.txt")
        ...     _ = file.write_text("La la la!")
        ...     read_symbols(file, "letters").names
        (' ', 'a', 'l')
    """
    path = Path(path)
    if _is_sample(path):
        kind = kind or _SAMPLE_KINDS[str(path)]
        classes = classes or (_SAMPLE_CLASSES if kind == "csv" else None)
    kind = kind or _ENDINGS.get(path.suffix.lower(), "characters")
    if kind not in KINDS:
        known = nearest(kind, KINDS) or f" (known: {', '.join(KINDS)})"
        raise StudyError(f"no kind of symbols is called {brief(kind)}{known}")
    for name, value in (("column", column), ("classes", classes)):
        if value is not None and kind != "csv":
            raise StudyError(
                f"{name} = {brief(value)} has no meaning for {kind}, only for csv: --as csv"
            )
    if kind == "integers":
        return as_symbols(_array(path), names=names)
    records = _records(path, _text(path), kind, column, classes, names)
    return encode(records, kind, where=str(path), top=top, names=names)


def read_sample(name: str) -> Symbols:
    """One of `SAMPLES`, whatever files there are.

    Example:
        >>> read_sample("temperatures")
        Symbols(csv: 8759 of 6 kinds)
    """
    kind = _SAMPLE_KINDS[name]
    classes = _SAMPLE_CLASSES if kind == "csv" else None
    records = _records(Path(name), _sample_text(name), kind, None, classes)
    return encode(records, kind, where=name)


def _records(
    path: Path,
    text: str,
    kind: str,
    column: str | None,
    classes: int | None,
    names: Sequence[str] | None = None,
) -> list[list[str]]:
    if kind != "csv":
        return _TEXTS[kind](text)
    cells = _column(path, text, column)
    if names is not None and (bounds := _bounds(names)):
        cells = _cut(path, cells, bounds)
    elif classes is not None:
        cells = _classes(path, cells, classes)
    # An empty cell is a gap: nothing is told across it.
    return [list(part) for full, part in itertools.groupby(cells, bool) if full]


def _is_sample(path: Path) -> bool:
    return str(path) in SAMPLES and not path.exists()


def as_symbols(tokens: Any, names: Sequence[str] | None = None) -> Symbols:  # noqa: ANN401
    """Symbols of an array of integers from 0, of a text, or of a list of anything with names.

    Args:
        tokens: integers [n] of NumPy, JAX or Python; a text, whose characters are meant; or a
            list of strings.
        names: what the integers stand for.

    Raises:
        StudyError: if they are none of these.

    Example:
        >>> as_symbols("abba").tokens.tolist()
        [0, 1, 1, 0]
        >>> as_symbols([0, 2, 1]).names
        ('0', '1', '2')
    """
    if isinstance(tokens, Symbols):
        return tokens
    if isinstance(tokens, str):
        if len(tokens) <= _LONGEST_PATH and tokens.isprintable() and Path(tokens).is_file():
            raise StudyError(
                f"tokens is {tokens!r}, the name of a file; scbjax.read_symbols reads it"
            )
        return encode([list(tokens)], "characters", where="tokens", names=names)
    array = np.asarray(tokens)
    if array.ndim == 1 and array.dtype.kind in "UO" and all(isinstance(x, str) for x in array):
        return encode([array.tolist()], "words", where="tokens", names=names)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise StudyError(
            f"tokens is an array of {array.dtype} of shape {array.shape}; it must be integers [n], "
            "a text, or a list of strings"
        )
    if not array.size:
        raise StudyError("tokens is empty")
    least, largest = int(array.min()), int(array.max())
    limit = MOST if names is None else len(names)
    if least < 0 or largest >= limit:
        wrong = least if least < 0 else largest
        raise StudyError(f"tokens has {wrong}; integers must be between 0 and {limit - 1}")
    spelt = tuple(names) if names is not None else tuple(str(n) for n in range(largest + 1))
    return Symbols(array.astype(_dtype(len(spelt))), spelt)


def encode(
    records: Iterable[Sequence[str]],
    kind: str,
    *,
    where: str,
    top: int | None = None,
    names: Sequence[str] | None = None,
) -> Symbols:
    """Numbers symbols in the order of their names, or in that of a fit's.

    Raises:
        StudyError: for nothing, for one symbol only, for more than there may be, and for a symbol
            that is not among the names.
    """
    records = [record for record in records if len(record)]
    if not records:
        raise StudyError(f"{where} is empty: there are no {kind} in it")
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record)
    if names is None:
        names = _names(counts, kind, where, top)
    number = {name: place for place, name in enumerate(names)}
    other = number.get(OTHER)
    if other is None and (unknown := [name for name in counts if name not in number]):
        raise StudyError(_unknown(where, unknown[0], names))
    of = {name: number.get(name, other) for name in counts}
    parts = [np.fromiter((of[s] for s in record), np.int64, len(record)) for record in records]
    ends = np.cumsum([part.size for part in parts])
    return Symbols(
        np.concatenate(parts).astype(_dtype(len(names))),
        tuple(names),
        (0, *(int(end) for end in ends[:-1])),
        kind,
    )


def renamed(symbols: Symbols, names: Sequence[str], where: str) -> Symbols:
    """The same symbols, numbered as those of a fit are: by what they stand for.

    Raises:
        StudyError: for a symbol that occurs and is not among the names.

    Example:
        >>> renamed(as_symbols("cab"), ("a", "b", "c", "d"), "the data").tokens.tolist()
        [2, 0, 1]
    """
    if symbols.names == tuple(names):
        return symbols
    number = {name: place for place, name in enumerate(names)}
    other = number.get(OTHER, -1)
    table = np.array([number.get(name, other) for name in symbols.names])
    unknown = np.flatnonzero(table < 0)
    seen = unknown[np.isin(unknown, symbols.tokens)]
    if seen.size:
        raise StudyError(_unknown(where, symbols.names[seen[0]], names))
    tokens = table[symbols.tokens].astype(_dtype(len(names)))
    return dataclasses.replace(symbols, tokens=tokens, names=tuple(names))


def _unknown(where: str, name: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _LISTED else ""
    known = nearest(name, names) or f" (known: {', '.join(map(brief, names[:_LISTED]))}{more})"
    return f"{where} has {brief(name)}, which the fit does not know{known}"


def _names(counts: Counter[str], kind: str, where: str, top: int | None) -> tuple[str, ...]:
    if len(counts) == 1:
        raise StudyError(f"{where} has one symbol only, {brief(next(iter(counts)))}")
    if kind == "csv" and len(counts) > _FEW and max(counts.values()) == 1:
        raise StudyError(
            f"{where}: all {len(counts)} rows of the column differ, so that none tells another; "
            "cut numbers into classes, or name another column"
        )
    if top is not None and top < 1:
        raise StudyError(f"top = {top}; it must be at least 1")
    if top is not None and top < len(counts):
        return (*sorted(name for name, _ in counts.most_common(top)), OTHER)
    if len(counts) > MOST:
        hint = "classes of numbers" if kind == "csv" else "the most frequent ones (top)"
        raise StudyError(
            f"{where} has {len(counts)} different {kind}, more than {MOST}: ask for {hint}"
        )
    return tuple(sorted(counts))


def _dtype(size: int) -> Any:  # noqa: ANN401 - a type of NumPy
    return np.uint8 if size <= 2**8 else np.uint16


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise StudyError(f"there is no file {brief(str(path))}")
    return path


def _text(path: Path) -> str:
    if _is_sample(path):
        return _sample_text(str(path))
    content = _existing(path).read_bytes()
    try:
        # utf-8-sig: some programs begin a file with a mark of the order of bytes.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError(
            f"{path} is not text in UTF-8: byte {error.start} is 0x{content[error.start]:02x}"
        ) from None


def _sample_text(name: str) -> str:
    if name == "english":
        from pydoc_data.topics import topics

        return "\n".join(topics.values())
    path = Path(__file__).parent / "samples" / f"{name}.{_SAMPLE_KINDS[name]}"
    return path.read_text(encoding="utf-8")


def _array(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(_existing(path), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise StudyError(f"{path} is not a file of one array (.npy)") from None
    return array


def _column(path: Path, text: str, column: str | None) -> list[str]:
    """The cells of a column, without its head."""
    first = text.partition("\n")[0]
    delimiter = max("\t,;", key=first.count) if any(mark in first for mark in "\t,;") else ","
    rows = list(csv.reader(text.splitlines(), delimiter=delimiter))
    if not any(rows):
        raise StudyError(f"{path} is empty: there are no rows in it")
    while not rows[0]:
        rows.pop(0)
    heads = [head.strip() for head in rows[0]]
    # An empty line is no row of a table, and the empty cell of one column.
    rows = [row or [""] for row in rows if row or len(heads) == 1]
    if column is None:
        if len(heads) > 1:
            raise StudyError(f"{path} has {len(heads)} columns; name one: {', '.join(heads)}")
        place = 0
    elif column in heads:
        place = heads.index(column)
    elif column.isascii() and column.isdigit() and 1 <= int(column) <= len(heads):
        place = int(column) - 1
    else:
        known = nearest(column, heads) or f" (columns: {', '.join(heads)})"
        raise StudyError(f"{path} has no column {brief(column)}{known}")
    cells = []
    for number, row in enumerate(rows[1:], 2):
        if place >= len(row):
            raise StudyError(f"{path}: row {number} has no column {brief(heads[place])}")
        cells.append(row[place].strip())
    return cells


def _classes(path: Path, cells: Sequence[str], classes: int) -> list[str]:
    """Classes of numbers at their quantiles, named by their bounds; empty cells stay so."""
    if not 2 <= classes <= MOST:
        raise StudyError(f"classes = {classes}; it must be between 2 and {MOST}")
    numbers = _numbers(path, cells)
    known = numbers[~np.isnan(numbers)]
    if not known.size:
        return []
    cuts = np.unique(np.quantile(known, np.arange(1, classes) / classes))
    places = np.searchsorted(cuts, known, side="right")
    for digits in range(6, 18):  # as few as leave every number in its class
        bounds = [f"{cut:.{digits}g}" for cut in cuts]
        if (np.searchsorted([float(b) for b in bounds], known, side="right") == places).all():
            break
    return _cut(path, cells, bounds)


def _cut(path: Path, cells: Sequence[str], bounds: Sequence[str]) -> list[str]:
    """The names of the classes that numbers are in; a bound belongs to the class above it."""
    # Numbered, so that they are in the order of the numbers when they are sorted by name.
    width = len(str(len(bounds)))
    between = (f"{low} to {high}" for low, high in pairwise(bounds))
    spelt = (f"below {bounds[0]}", *between, f"from {bounds[-1]}")
    names = [f"{n:0{width}d}: {text}" for n, text in enumerate(spelt)]
    numbers = _numbers(path, cells)
    places = np.searchsorted([float(bound) for bound in bounds], numbers, side="right")
    return ["" if np.isnan(x) else names[n] for x, n in zip(numbers, places, strict=True)]


def in_classes(cells: Sequence[str], names: Sequence[str], where: str) -> list[str]:
    """Cells by the names of a fit; numbers by the classes that they are in, where it has classes.

    Example:
        >>> in_classes(["7", "0: below 3"], ("0: below 3", "1: from 3"), "the context")
        ['1: from 3', '0: below 3']
    """
    bounds = _bounds(names)
    if not bounds or set(cells) <= set(names):
        return list(cells)
    cut = iter(_cut(Path(where), [cell for cell in cells if cell not in names], bounds))
    return [cell if cell in names else next(cut) for cell in cells]


def _bounds(names: Sequence[str]) -> list[str]:
    """The bounds of classes, by their names; none where symbols are no classes."""
    bounds = []
    for place, name in enumerate(names):
        match = re.fullmatch(r"(\d+): (?:below (\S+)|\S+ to (\S+)|from \S+)", name)
        if match is None or int(match[1]) != place:
            return []
        bounds.append(match[2] or match[3])
    return bounds[:-1]


def _numbers(path: Path, cells: Sequence[str]) -> NDArray[Any]:
    """Cells as numbers, NaN for empty ones."""
    numbers = np.full(len(cells), np.nan)
    for place, cell in enumerate(cells):
        if not cell:
            continue
        try:
            numbers[place] = float(cell)
        except ValueError:
            hint = "; write a decimal point" if "," in cell else ""
            raise StudyError(
                f"{path}: {brief(cell)} in row {place + 2} is no number, and classes are of "
                f"numbers{hint}"
            ) from None
        if not np.isfinite(numbers[place]):
            raise StudyError(f"{path}: a number in the column is not finite")
    return numbers


def letters_of(text: str) -> list[list[str]]:
    """A text as one record of letters a to z, and one space for all that stands between them.

    >>> "".join(letters_of("Don't!")[0])
    'don t'
    """
    return [list(re.sub("[^a-z]+", " ", text.lower()).strip())]


def _words(text: str) -> list[list[str]]:
    return [re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*", text.lower())]


def _fasta(text: str) -> list[list[str]]:
    records: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith((">", ";")):
            records.append([])
        else:
            # Gaps of an alignment are no bases.
            records[-1].extend(line.strip().upper().replace("-", "").replace(".", ""))
    return records


def _codons(text: str) -> list[list[str]]:
    records = ("".join(record) for record in _fasta(text))
    return [[each[n : n + 3] for n in range(0, len(each) - 2, 3)] for each in records]


_TEXTS: Final[Mapping[str, Callable[[str], list[list[str]]]]] = {
    "characters": lambda text: [list(text)],
    "letters": letters_of,
    "words": _words,
    "fasta": _fasta,
    "codons": _codons,
}
KINDS: Final = (*_TEXTS, "csv", "integers")
"""What the symbols of a file can be."""
