"""What a run tells its user while it goes on: a bar on a terminal or in a notebook, or plain lines.

What can't be shown is dropped (`scbjax.sweep.engine.streams`): no display may cost what was
computed.
"""

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Protocol

from scbjax.sweep.engine.streams import steady

LINE_SECONDS = 10.0
"""Time between two lines where there is no terminal to draw a bar on."""

TICK_SECONDS = 1.0
"""Time between two counts of the seconds that something has taken, on a terminal."""

_ROUNDING = 1e-6  # of a sum of parts of trajectories


@dataclass(frozen=True)
class Reading:
    """The state of a run at one moment.

    Attributes:
        trajectories: finished ones, counting those under way by the part that is done.
        total_trajectories: of the whole study.
        fraction: done of the work of the whole study.
        steps_per_second: steps of all trajectories, in this session; nan before the first segment.
        tokens_per_second: context tokens read, in this session.
        seconds_left: nan before the first segment.
        metric: name and present value of a recorded variable (the median of a chunk), if any.
    """

    trajectories: float
    total_trajectories: int
    fraction: float
    steps_per_second: float = math.nan
    tokens_per_second: float = math.nan
    seconds_left: float = math.nan
    metric: tuple[str, float] | None = None

    def __str__(self) -> str:
        """One line, without what is not known yet; a narrow terminal cuts off the end."""
        finished = math.floor(self.trajectories + _ROUNDING)
        parts = [f"{finished}/{counted(self.total_trajectories, 'trajectory')}"]
        if math.isfinite(self.seconds_left):
            parts.append(f"{readable_seconds(self.seconds_left)} left")
        if self.metric is not None:
            parts.append("{} {:.3g}".format(*self.metric))
        if math.isfinite(self.steps_per_second):
            parts.append(f"{readable_count(self.steps_per_second)} steps/s")
        if self.tokens_per_second > 0:  # not every experiment counts what it reads
            parts.append(f"{readable_count(self.tokens_per_second)} tokens/s")
        return ", ".join(parts)


class Meter:
    """Turns the work done so far into a reading. Rates are those of this session alone.

    Args:
        total_trajectories: of the whole study.
        total_work: of the whole study, in any unit that is proportional to the time it takes.
    """

    def __init__(self, total_trajectories: int, total_work: float) -> None:
        self._total_trajectories = total_trajectories
        self._total_work = total_work
        self._trajectories = 0.0
        self._work = 0.0
        self._session = dict.fromkeys(("seconds", "work", "steps", "tokens"), 0.0)

    def skip(self, trajectories: float, work: float) -> None:
        """Counts what an earlier session has done."""
        self._trajectories += trajectories
        self._work += work

    def add(
        self, *, seconds: float, trajectories: float, work: float, steps: float, tokens: float
    ) -> None:
        """Counts what was just done, and the time that it took."""
        self.skip(trajectories, work)
        for name, amount in (("seconds", seconds), ("work", work)):
            self._session[name] += amount
        self._session["steps"] += steps
        self._session["tokens"] += tokens

    def reading(self, metric: tuple[str, float] | None = None) -> Reading:
        """The present state of the run."""
        seconds = self._session["seconds"]

        def rate(name: str) -> float:
            return self._session[name] / seconds if seconds > 0 else math.nan

        speed = rate("work")
        left = max(self._total_work - self._work, 0.0)
        return Reading(
            trajectories=self._trajectories,
            total_trajectories=self._total_trajectories,
            fraction=self._work / self._total_work,
            steps_per_second=rate("steps"),
            tokens_per_second=rate("tokens"),
            seconds_left=left / speed if speed > 0 else math.nan,
            metric=metric,
        )


class Shown(Protocol):
    """What a display shows: a line, and the share of the whole that is done."""

    @property
    def fraction(self) -> float:
        """From 0 to 1."""


class Progress(Protocol):
    """Where a run reports to."""

    def show(self, reading: Reading) -> None:
        """Replaces the reading that is shown."""

    def say(self, text: str) -> None:
        """Tells the user something that must stay readable."""

    def wait(self, text: str) -> None:
        """Tells what takes time now, and counts its seconds until something else is shown."""

    def close(self) -> None:
        """Ends the display; called once, also after an error."""


class Display(Progress, Protocol):
    """A display of anything that has a line and a share, a reading among them."""

    def show(self, reading: Shown) -> None:
        """Replaces what is shown."""


class SilentProgress:
    """Shows nothing."""

    def show(self, reading: Reading) -> None:
        """Does nothing."""

    def say(self, text: str) -> None:
        """Does nothing."""

    def wait(self, text: str) -> None:
        """Is said, and not counted."""
        self.say(text)

    def close(self) -> None:
        """Does nothing."""


class Ticker:
    """Calls a function again and again with the seconds that have gone by, until it is stopped.

    Args:
        function: what is called, in a thread of its own.
        period: seconds between two calls.
    """

    def __init__(self, function: Callable[[float], None], period: float) -> None:
        self._function = function
        self._period = period
        self._ended = threading.Event()
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Ends the calls, and returns the seconds that have gone by."""
        self._ended.set()
        self._thread.join()
        return time.monotonic() - self._begun

    def _run(self) -> None:
        while not self._ended.wait(self._period):
            self._function(time.monotonic() - self._begun)


class LineProgress:
    """Plain lines, for logs and pipes: one every ten seconds, and the last reading.

    Args:
        stream: where they go.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        period: float = LINE_SECONDS,
    ) -> None:
        self._stream = steady(sys.stderr if stream is None else stream)
        self._clock = clock
        self._period = period
        self._ticker: Ticker | None = None
        self._written = -math.inf
        self._pending: Shown | None = None

    def show(self, reading: Shown) -> None:
        """Writes the reading, unless the last line is younger than ten seconds."""
        self._stop()
        self._pending = reading
        if self._clock() - self._written >= LINE_SECONDS:
            self._flush()

    def say(self, text: str) -> None:
        """Writes a line."""
        self._stop()
        self._write(text)

    def wait(self, text: str) -> None:
        """Writes a line, and another one every ten seconds."""
        self.say(text)
        self._ticker = Ticker(lambda seconds: self._write(f"{text}, {seconds:.0f} s"), self._period)

    def close(self) -> None:
        """Writes the last reading if no line has shown it."""
        self._stop()
        self._flush()

    def _stop(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None

    def _write(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def _flush(self) -> None:
        if self._pending is not None:
            self.say(f"{100 * self._pending.fraction:3.0f}%  {self._pending}")
            self._written = self._clock()
            self._pending = None


class BarProgress:
    """A bar on a terminal.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: IO[str] | None = None, period: float = TICK_SECONDS) -> None:
        self._stream = steady(sys.stderr if stream is None else stream)
        self._period = period
        self._bar: Any = None
        self._ticker: Ticker | None = None

    def show(self, reading: Shown) -> None:
        """Draws the bar as it stands."""
        self._stop()
        self._draw(str(reading), reading.fraction)

    def wait(self, text: str) -> None:
        """Counts the seconds at the end of the bar."""
        self._stop()
        self._draw(text)
        self._ticker = Ticker(lambda seconds: self._draw(f"{text}, {seconds:.0f} s"), self._period)

    def _draw(self, text: str, fraction: float | None = None) -> None:
        if self._bar is None:
            self._bar = self._new_bar()
        if fraction is not None:
            self._bar.n = min(fraction, 1.0)
        self._bar.set_postfix_str(text, refresh=True)

    def _stop(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None

    def say(self, text: str) -> None:
        """Writes a line above the bar."""
        self._stop()
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.write(text, file=self._stream)

    def close(self) -> None:
        """Leaves the last state of the bar on the terminal."""
        self._stop()
        if self._bar is not None:
            self._bar.close()

    def _new_bar(self) -> Any:  # noqa: ANN401 - tqdm is imported when the first bar is drawn
        from tqdm import tqdm

        return tqdm(
            total=1.0,
            bar_format="{percentage:3.0f}%|{bar:10}| {elapsed}{postfix}",
            file=self._stream,
            dynamic_ncols=True,
        )


class NotebookProgress(BarProgress):
    """A widget in a Jupyter notebook, or a bar of text in one without ipywidgets.

    Args:
        stream: where its lines go; standard output if left out, as notebooks mark the other as an
            error.
    """

    def __init__(self, stream: IO[str] | None = None, period: float = TICK_SECONDS) -> None:
        super().__init__(sys.stdout if stream is None else stream, period)

    def _new_bar(self) -> Any:  # noqa: ANN401 - as above
        import warnings

        with warnings.catch_warnings():
            # Of ipywidgets that are not installed: a bar of text does as well.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm
        return tqdm(
            total=1.0,
            # The widget takes the place of {bar}, which must stand without a width.
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}{postfix}",
            file=self._stream,
            dynamic_ncols=True,
        )


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    ipython = sys.modules.get("IPython")
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})


def create_progress(stream: IO[str] | None = None) -> Display:
    """A bar where the stream is a terminal, plain lines otherwise.

    Args:
        stream: where to show it. If it is left out, this is a widget in a notebook, and standard
            error elsewhere.
    """
    if stream is None and in_notebook():
        return NotebookProgress()
    stream = steady(sys.stderr if stream is None else stream)
    return BarProgress(stream) if stream.isatty() else LineProgress(stream)


def counted(number: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "file"), counted(0, "trajectory"), counted(2, "record")
    ('1 file', '0 trajectories', '2 records')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun.removesuffix('y')}ies" if noun.endswith("y") else f"{number} {noun}s"


def readable_count(number: float) -> str:
    """A large number for people.

    >>> readable_count(340_000_000)
    '340M'
    """
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{suffix}"
    return f"{number:.3g}"


def readable_seconds(seconds: float) -> str:
    """A duration for people.

    >>> readable_seconds(61), readable_seconds(7384.2)
    ('1:01', '2:03:04')
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
