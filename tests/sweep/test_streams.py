"""Streams that fail, or can't say a text, end nothing."""

import errno
import io
import os
import sys

import pytest

from scbjax.sweep.engine.progress import BarProgress, LineProgress, Reading, create_progress
from scbjax.sweep.engine.streams import SteadyStream, steady, steady_streams


class Failing(io.StringIO):
    """A stream that fails from the second write on, counting what was tried."""

    def __init__(self, error: Exception, *, terminal: bool = False) -> None:
        super().__init__()
        self.tried = 0
        self._error = error
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        self.tried += 1
        if self.tried > 1:
            raise self._error
        return super().write(text)


ERRORS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),  # of a terminal that is gone
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_display_that_fails_is_dropped(error: Exception, terminal: bool) -> None:
    stream = Failing(error, terminal=terminal)
    progress = create_progress(stream)
    assert isinstance(progress, BarProgress if terminal else LineProgress)
    for done in range(4):
        progress.say(f"message {done}")
        progress.show(Reading(done, 4, done / 4))
    progress.close()
    assert stream.getvalue()
    assert stream.tried == 2  # no more after the first failure


def test_a_display_without_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    progress = create_progress()
    progress.say("message")
    progress.show(Reading(1, 1, 1.0))
    progress.close()


def test_a_write_within_a_write_is_left_out_alone() -> None:
    stream = Failing(RuntimeError("reentrant call inside <_io.BufferedWriter>"))
    shown = steady(stream)
    shown.write("first")
    shown.write("from a signal's handler")
    assert isinstance(shown, SteadyStream)
    assert shown.failure is None
    shown.write("next")
    assert stream.tried == 3


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", rb"d\xefr \u03bb \udcff"),
        ("latin-1", b"d\xefr \\u03bb \\udcff"),
        ("utf-8", "dïr λ ".encode() + rb"\udcff"),
    ],
)
def test_what_an_encoding_lacks_is_escaped(encoding: str, written: bytes) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    print("dïr λ \udcff", end="", file=steady(stream), flush=True)
    assert raw.getvalue() == written


def test_the_streams_are_those_of_before_when_it_is_over() -> None:
    before = sys.stdout, sys.stderr
    with steady_streams() as streams:
        assert (sys.stdout, sys.stderr) == streams
    assert (sys.stdout, sys.stderr) == before


def test_what_is_left_in_a_buffer_fails_nowhere_else() -> None:
    """The interpreter flushes standard output when it ends, and exits with 120 if it can't."""
    read, write = os.pipe()
    os.close(read)
    with pytest.MonkeyPatch.context() as patch, os.fdopen(write, "w") as stream:
        patch.setattr(sys, "stdout", stream)
        with steady_streams() as (output, _):
            print("text")
        assert isinstance(output.failure, BrokenPipeError)
        stream.flush()
