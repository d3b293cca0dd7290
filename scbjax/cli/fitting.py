"""``scbjax fit``, ``predict``, ``sample`` and ``score``: sequences of one's own."""

from __future__ import annotations

import codecs
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from scbjax.base import StudyError
from scbjax.cli.options import left_out, read_integer
from scbjax.cli.printing import aligned
from scbjax.sweep.engine.places import checked_path, writable_folder
from scbjax.sweep.study.fields import shown
from scbjax.tables import nearest

if TYPE_CHECKING:
    from scbjax.fitting.fitted import Fit as Fitted, Predictions, Row
    from scbjax.fitting.reading import Symbols

_FOLDER = Path("results") / "fit"
_DPI = 200
_TITLE = 40  # characters of a context
_GLUED = frozenset({"characters", "letters", "fasta"})  # symbols without blanks between

_Kind = Annotated[
    str | None,
    left_out(
        name="as", metavar="KIND",
        help="What symbols are: characters, letters (a to z and space), words, csv, fasta, codons "
        "or integers (.npy); left out, what the file's ending says.",
    ),
]  # fmt: skip
_Column = Annotated[
    str | None, left_out(metavar="NAME", help="Column of a table, by name or number.")
]
_Model = Annotated[
    tyro.conf.Positional[str], tyro.conf.arg(metavar="FIT", help="File of a fit (.nc).")
]
_File = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(
        metavar="FILE",
        help="A text, a table, FASTA or .npy; for a sample english, temperatures or brca1.",
    ),
]


@dataclass(frozen=True)
class Fit:
    """Fit a mixture over lags (MTD, MTDg, SCB) to a text, a column, a genome."""

    file: _File
    kind: _Kind = None
    column: _Column = None
    classes: Annotated[
        int | None, left_out(metavar="K", help="Cut a column of numbers into K classes.")
    ] = None
    top: Annotated[int | None, left_out(metavar="K", help="Keep the K most frequent symbols.")] = (
        None
    )
    model: Annotated[str, tyro.conf.arg(metavar="mtd|mtdg|scb", help="The model.")] = "scb"
    heads: Annotated[int, tyro.conf.arg(help="Heads of mtd and scb.")] = 1
    context: Annotated[int, tyro.conf.arg(help="The longest lag that is looked at.")] = 32
    lags: Annotated[
        str,
        tyro.conf.arg(
            metavar="METHOD|LAGS",
            help="How lags are chosen (all, screening, l1, forward, bic), or which: 1,15,30.",
        ),
    ] = "forward"
    most_lags: Annotated[int, tyro.conf.arg(help="Lags that may be chosen, at most.")] = 8
    held_out: Annotated[float, tyro.conf.arg(help="Share at the end to score on.")] = 0.1
    smoothing: Annotated[
        float | None,
        left_out(metavar="S", help="Pseudo-samples of each column, if not by the data."),
    ] = None
    start: Annotated[
        str, tyro.conf.arg(metavar="moments|descent", help="Of EM, where lags are not chosen.")
    ] = "moments"
    polish: Annotated[int, tyro.conf.arg(help="Steps of EM, at most.")] = 200
    resamples: Annotated[int, tyro.conf.arg(help="For intervals of weights; 0 for none.")] = 100
    seed: Annotated[int, tyro.conf.arg(help="Of whatever is drawn.")] = 0
    out: Annotated[
        str | None, left_out(metavar="FILE.nc", help="The fit's file, if not in results/fit/.")
    ] = None
    force: Annotated[bool, tyro.conf.arg(help="Replace an earlier fit in that file.")] = False

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        options = {
            name: getattr(self, name)
            for name in (
                "model", "heads", "context", "most_lags", "held_out", "smoothing", "start",
                "polish", "resamples", "seed",
            )
        }  # fmt: skip
        from scbjax.fitting.fitted import checked

        options["lags"] = read_lags(self.lags)
        checked(options)
        out = _out(self.out, self.file, force=self.force)
        from scbjax.fitting.reading import read_symbols

        symbols = read_symbols(
            checked_path(self.file), self.kind,
            column=self.column, classes=self.classes, top=self.top,
        )  # fmt: skip
        fitted = _fit(symbols, options)
        from scbjax.fitting.picture import draw_fit
        from scbjax.fitting.saving import save_fit

        print("\n".join(report(fitted, self.file)))
        save_fit(fitted, out)
        picture = out.with_suffix(".png")
        draw_fit(fitted).savefig(picture, dpi=_DPI)
        print(f"fit: {out}\npicture: {picture}")
        return 0


@dataclass(frozen=True)
class Predict:
    """Tell by a fit what comes next: after contexts, at the end of a file, all along it."""

    fit: _Model
    contexts: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="CONTEXT", help="The symbols before it, the newest last."),
    ] = ()
    top: Annotated[int, tyro.conf.arg(help="How many symbols are listed.")] = 5
    file: Annotated[
        str | None, left_out(metavar="FILE", help="Tell what comes at the end of a file.")
    ] = None
    column: _Column = None
    out: Annotated[
        str | None,
        left_out(metavar="FILE.csv", help="Write what is told of all positions of --file instead."),
    ] = None
    force: Annotated[bool, tyro.conf.arg(help="Replace what is in --out.")] = False

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        read_integer("--top", str(self.top), 1)
        if bool(self.contexts) == (self.file is not None):
            raise StudyError("predict needs contexts or a --file, and not both")
        for name, value in (("--column", self.column), ("--out", self.out)):
            if value is not None and self.file is None:
                raise StudyError(f"{name} is of a --file, and there is none")
        fitted = _load(self.fit)
        if self.file is None:
            given = [split(text, fitted.kind) for text in self.contexts]
            _print_next(fitted, given, self.contexts, self.top)
            return 0
        out = None if self.out is None else _free(self.out, ".csv", force=self.force)
        symbols = _read_as(fitted, self.file, self.column)
        if out is not None:
            _write_predictions(out, fitted.predict_along(symbols))
            print(f"predictions: {out}")
            return 0
        end = symbols.tokens[symbols.starts[-1] :][-fitted.longest :]
        last = [symbols.names[n] for n in end]
        _print_next(fitted, [last], [f"the end of {self.file}"], self.top)
        return 0


@dataclass(frozen=True)
class Sample:
    """Draw a sequence from a fit."""

    fit: _Model
    length: Annotated[int, tyro.conf.arg(help="Symbols to draw.")] = 200
    seed: Annotated[int, tyro.conf.arg(help="Of the draws.")] = 0
    start: Annotated[str | None, left_out(metavar="CONTEXT", help="What to go on from.")] = None

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        fitted = _load(self.fit)
        read_integer("--length", str(self.length), 1)
        read_integer("--seed", str(self.seed), 0)
        start = None if self.start is None else split(self.start, fitted.kind)
        print(joined(fitted.sample(self.length, seed=self.seed, start=start), fitted.kind))
        return 0


@dataclass(frozen=True)
class Score:
    """Score a fit on other data of the same kind."""

    fit: _Model
    file: _File
    column: _Column = None

    def __call__(self) -> int:
        """Runs the command; returns its exit status."""
        fitted = _load(self.fit)
        symbols = _read_as(fitted, self.file, self.column)
        rows = fitted.unigram(symbols), fitted.score(symbols)
        print("\n".join(aligned([_HEAD, *map(_cells, rows)])))
        print("(the unigram is that of the fit; AIC and BIC are of these data)")
        return 0


def _read_as(fitted: Fitted, file: str, column: str | None) -> Symbols:
    """Other data of the kind that a fit is of, by its symbols."""
    from scbjax.fitting.reading import read_symbols

    return read_symbols(checked_path(file), fitted.kind, column=column, names=fitted.names)


def _print_next(
    fitted: Fitted, given: Sequence[Sequence[str]], titles: Sequence[str], top: int
) -> None:
    """The likeliest symbols after contexts; of several, each with its context before it."""
    laws = fitted.predict_proba(given)
    rows = [("after", "next", "probability")]
    for title, law in zip(titles, laws, strict=True):
        order = law.argsort(kind="stable")[::-1][:top]
        short = title if len(title) <= _TITLE else f"...{title[-_TITLE:]}"  # the newest is last
        rows += [(_quoted(short), _quoted(fitted.names[n]), f"{law[n]:.4f}") for n in order]
    print("\n".join(aligned(rows if len(laws) > 1 else [row[1:] for row in rows])))


def _write_predictions(out: Path, told: Predictions) -> None:
    """What is told of each position, as a table; positions from 0, as in Python."""
    from scbjax.sweep.results.arrays import atomic_file

    with atomic_file(out) as file:
        table = csv.writer(codecs.getwriter("utf-8")(file), lineterminator="\n")
        table.writerow(["position", "symbol", "probability", "likeliest", "its_probability"])
        for position, symbol, own, likeliest, highest in zip(*told, strict=True):
            table.writerow([position, symbol, f"{own:.6g}", likeliest, f"{highest:.6g}"])


def read_lags(text: str) -> str | tuple[int, ...]:
    """A method, or lags with commas between them.

    >>> read_lags("1,15, 30")
    (1, 15, 30)
    """
    words = [word.strip() for word in text.split(",")]
    if all(word.isascii() and word.isdigit() and len(word) < 7 for word in words):
        return tuple(int(word) for word in words)
    return text


def split(text: str, kind: str) -> list[str]:
    """The symbols of a context as it is typed: characters, or words with blanks or commas between.

    >>> split("the qu", "characters")[-1], split("to be or", "words")
    ('u', ['to', 'be', 'or'])
    """
    if kind in _GLUED:
        return list(text)
    if kind == "codons":
        return [text[n : n + 3] for n in range(0, len(text) - 2, 3)]
    return [word.strip() for word in (text.split(",") if "," in text else text.split())]


def joined(symbols: Sequence[str], kind: str) -> str:
    """Symbols as a text, as `split` takes it apart."""
    if kind in {*_GLUED, "codons"}:
        return "".join(symbols)
    return (" " if kind in {"words", "integers"} else ", ").join(symbols)


def report(fitted: Fitted, source: str) -> list[str]:
    """What a fit found, in lines."""
    learned, held_out = fitted.counts
    size = len(fitted.names)
    lines = [f"{source}: {size} symbols; {learned} windows to learn from, {held_out} held out", ""]
    lines += aligned([_HEAD, *(_cells(row) for row in fitted.rows)])
    told = "held out" if held_out else "on what was learned from"
    lines += [f"(bits, Brier score and accuracy {told}; AIC and BIC of what was learned from)", ""]
    level = f"{100 * fitted.options.level:g}% interval"
    rows = [("lag", "weight", level if fitted.options.resamples else "")]
    for place in fitted.weights.argsort()[::-1][:16]:
        low, high = fitted.interval[place]
        interval = f"{low:.4f} to {high:.4f}" if fitted.options.resamples else ""
        name = f"{fitted.lags[place]}{' (just before)' if fitted.lags[place] == 1 else ''}"
        rows.append((name, f"{fitted.weights[place]:.4f}", interval))
    more = len(fitted.lags) - len(rows) + 1
    lines += [*aligned(rows), *([f"and {more} more lags"] if more > 0 else []), ""]
    if fitted.rows[-1].bic > fitted.rows[0].bic:
        lines.append("by BIC no lag is worth its parameters here: the unigram is preferred")
    share = f"{100 * float(fitted.spectrum[0]):.0f}%"
    lines.append(f"one matrix for all lags makes up {share} of what they predict (100%: an SCB)")
    return lines


_HEAD = ("model", "parameters", "bits a symbol", "Brier", "accuracy", "AIC", "BIC")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name, str(row.parameters), f"{row.bits:.4f}", f"{row.brier:.4f}",
        f"{row.accuracy:.4f}", f"{row.aic:.0f}", f"{row.bic:.0f}",
    )  # fmt: skip


def _fit(symbols: Symbols, options: dict[str, Any]) -> Fitted:
    """Fits, with a bar on a terminal and lines otherwise."""
    from scbjax.fitting import fits
    from scbjax.sweep.engine.progress import create_progress

    progress = create_progress(sys.stderr)

    def tell(text: str, fraction: float) -> None:
        progress.show(_Stage(text, fraction))

    try:
        return fits.fit(symbols, tell=tell, **options)
    finally:
        progress.close()


@dataclass(frozen=True)
class _Stage:
    """What is being done, as a display reads it."""

    text: str
    fraction: float

    def __str__(self) -> str:
        return self.text


def _out(out: str | None, file: str, *, force: bool) -> Path:
    """Where a fit goes, which must be free and writable before anything is computed."""
    default = str(_FOLDER / f"{Path(file).stem}.nc")
    return _free(default if out is None else out, ".nc", force=force)


def _free(out: str, ending: str, *, force: bool) -> Path:
    path = Path(checked_path(out))
    if path.suffix != ending:
        raise StudyError(f"--out must end in {ending}, got {shown(str(path))}")
    if path.exists() and not force:
        raise StudyError(f"{path} is there already; replace it with --force, or name another --out")
    writable_folder(path.parent)
    return path


def _load(file: str) -> Fitted:
    from scbjax.fitting.saving import load_fit

    path = Path(checked_path(file))
    if not path.is_file():
        near = [str(each) for each in path.parent.glob("*.nc")] if path.parent.is_dir() else []
        raise StudyError(f"there is no fit {shown(file)}{nearest(str(path), near)}")
    return load_fit(path)


def _quoted(name: str) -> str:
    return repr(name) if name != name.strip() or not name.isprintable() else name
