"""What is shown of a run: true numbers, few lines."""

import io
import math
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from scbjax.sweep.engine.progress import (
    BarProgress,
    LineProgress,
    Meter,
    NotebookProgress,
    Reading,
    create_progress,
    in_notebook,
    readable_count,
    readable_seconds,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work_on(meter: Meter, seconds: float, trajectories: float) -> None:
    meter.add(
        seconds=seconds,
        trajectories=trajectories,
        work=trajectories,
        steps=100 * trajectories,
        tokens=1000 * trajectories,
    )


def test_rates_and_the_time_left_are_those_of_this_session() -> None:
    meter = Meter(total_trajectories=16, total_work=16.0)
    meter.skip(trajectories=8, work=8.0)
    work_on(meter, seconds=2.0, trajectories=1.0)
    work_on(meter, seconds=2.0, trajectories=3.0)
    reading = meter.reading()
    assert (reading.trajectories, reading.fraction) == (12, 0.75)
    assert (reading.steps_per_second, reading.tokens_per_second) == (100, 1000)
    assert reading.seconds_left == 4.0  # 4 of 16 are left, at one a second


def test_nothing_is_promised_before_the_first_segment() -> None:
    meter = Meter(total_trajectories=4, total_work=4.0)
    meter.skip(trajectories=2, work=2.0)
    reading = meter.reading()
    assert math.isnan(reading.seconds_left)
    assert str(reading) == "2/4 trajectories"


def test_parts_of_a_trajectory_add_up_to_a_whole_one() -> None:
    meter = Meter(total_trajectories=1, total_work=1.0)
    for _ in range(10):
        work_on(meter, seconds=1.0, trajectories=0.1)
    assert meter.reading().trajectories < 1
    assert str(meter.reading()).startswith("1/1 trajectory")


def test_a_reading_is_one_line() -> None:
    reading = Reading(3.5, 8, 0.4, 12_300.0, 3.4e8, 61.0, ("attention_distance", 0.4142))
    assert (
        str(reading)
        == "3/8 trajectories, 1:01 left, attention_distance 0.414, 12.3k steps/s, 340M tokens/s"
    )


def test_lines_come_every_ten_seconds_and_the_last_one_always() -> None:
    stream, times = io.StringIO(), iter([0.0, 0.0, 3.0, 9.9, 10.1, 10.1, 12.0, 12.0])
    progress = LineProgress(stream, clock=lambda: next(times))
    for done in range(5):
        progress.show(Reading(done, 8, done / 8))
    progress.close()
    shown = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert shown == ["0/8", "3/8", "4/8"]


def test_a_line_that_was_shown_is_not_repeated_at_the_end() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.show(Reading(8, 8, 1.0))
    progress.close()
    progress.close()
    assert stream.getvalue() == "100%  8/8 trajectories\n"


def test_a_terminal_gets_a_bar_and_messages_of_their_own() -> None:
    terminal = Terminal()
    progress = create_progress(terminal)
    progress.say("before")
    progress.show(Reading(2, 8, 0.25))
    progress.say("a message")
    progress.show(Reading(8, 8, 1.0))
    progress.close()
    text = terminal.getvalue()
    assert "before\n" in text
    assert "a message\n" in text
    assert " 25%|" in text
    assert "100%|" in text
    assert "00:00, 8/8 trajectories" in text


def test_what_shows_the_progress_depends_on_the_stream() -> None:
    assert isinstance(create_progress(Terminal()), BarProgress)
    assert isinstance(create_progress(io.StringIO()), LineProgress)


class Widget:
    """Stands in for the bar of tqdm in a notebook."""

    made: list["Widget"] = []  # noqa: RUF012 - emptied by the test that uses it

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of tqdm
        self.options = options
        self.n = 0.0
        self.shown: list[tuple[float, str]] = []
        self.closed = False
        Widget.made.append(self)

    def set_postfix_str(self, text: str, *, refresh: bool) -> None:
        assert refresh
        self.shown.append((self.n, text))

    def write(self, text: str, file: object) -> None:
        assert file is self.options["file"]
        self.shown.append((math.nan, text))

    def close(self) -> None:
        self.closed = True


def become_kernel(monkeypatch: pytest.MonkeyPatch, config: dict[str, object]) -> None:
    """Lets this process look like one in which IPython runs."""
    ipython = ModuleType("IPython")
    vars(ipython)["get_ipython"] = lambda: SimpleNamespace(config=config)
    monkeypatch.setitem(sys.modules, "IPython", ipython)


def test_a_notebook_gets_the_widget_of_tqdm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = ModuleType("tqdm.auto")
    vars(auto)["tqdm"] = Widget
    monkeypatch.setitem(sys.modules, "tqdm.auto", auto)
    monkeypatch.setattr(Widget, "made", [])
    become_kernel(monkeypatch, {"IPKernelApp": {}})
    assert in_notebook()
    progress = create_progress()
    assert isinstance(progress, NotebookProgress)
    progress.say("before")
    progress.show(Reading(2, 8, 0.25))
    progress.say("a message")
    progress.show(Reading(8, 8, 1.0))
    progress.close()
    (widget,) = Widget.made
    assert widget.options["total"] == 1.0
    assert "{bar}" in widget.options["bar_format"]  # where notebooks put the widget
    assert widget.shown[0] == (0.25, "2/8 trajectories")
    assert widget.shown[1][1] == "a message"
    assert widget.shown[2] == (1.0, "8/8 trajectories")
    assert widget.closed
    assert capsys.readouterr() == ("before\n", "")


def test_a_notebook_without_widgets_gets_a_bar_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    become_kernel(monkeypatch, {"IPKernelApp": {}})
    stream = io.StringIO()
    progress = NotebookProgress(stream)
    progress.show(Reading(2, 8, 0.25))
    progress.close()
    assert "25%|" in stream.getvalue()


@pytest.mark.parametrize("config", [{}, None], ids=["IPython in a terminal", "no shell"])
def test_elsewhere_there_is_no_notebook(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, object] | None
) -> None:
    if config is not None:
        become_kernel(monkeypatch, config)
    else:
        monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    assert not isinstance(create_progress(), NotebookProgress)
    become_kernel(monkeypatch, {"IPKernelApp": {}})
    assert isinstance(create_progress(io.StringIO()), LineProgress)  # a stream that was named


@pytest.mark.parametrize(
    ("number", "text"), [(0.5, "0.5"), (999, "999"), (1000, "1k"), (12345, "12.3k"), (4e9, "4G")]
)
def test_large_numbers_are_short(number: float, text: str) -> None:
    assert readable_count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3600, "1:00:00"), (math.inf, "?"), (math.nan, "?")],
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert readable_seconds(seconds) == text


def wait_for(stream: io.StringIO, text: str) -> None:
    """Until it has been written, or ten seconds are over."""
    end = time.monotonic() + 10.0
    while text not in stream.getvalue() and time.monotonic() < end:
        time.sleep(0.005)
    assert text in stream.getvalue()


@pytest.mark.parametrize("kind", [BarProgress, LineProgress])
def test_what_takes_time_is_counted_until_something_else_is_shown(
    kind: type[BarProgress] | type[LineProgress],
) -> None:
    stream = Terminal()
    progress = kind(stream, period=0.3)
    progress.wait("compiling the program")
    wait_for(stream, "compiling the program, 1 s")
    meter = Meter(total_trajectories=4, total_work=4.0)
    work_on(meter, seconds=1.0, trajectories=1.0)
    progress.show(meter.reading())
    shown = stream.getvalue()
    time.sleep(0.8)
    assert stream.getvalue() == shown  # the count has ended
    progress.close()


def test_a_wait_that_ends_in_an_error_leaves_nothing_behind() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, period=0.01)
    progress.wait("compiling the program")
    wait_for(stream, "compiling the program, 0 s")
    progress.close()
    written = stream.getvalue()
    time.sleep(0.05)
    assert stream.getvalue() == written
