"""Standard output and error that can't end a run: what can't be shown is dropped.

A terminal may close, the reader of a pipe may go away, a disk that takes a log may be full, and a
daemon has no streams at all. None of this may cost what a study has computed.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, cast


class SteadyStream:
    """A text stream that writes what it can and never raises; all else is that of the stream.

    Args:
        stream: the stream; `None`, as `sys.stderr` is where it was closed, for nowhere.

    Attributes:
        failure: why nothing is written any more, once that is so.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream: IO[str] = cast(IO[str], _Nowhere()) if stream is None else stream
        self.failure: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Writes a text, with a backslash and a number for what the encoding does not have."""
        self._try(lambda: self._write(text))
        return len(text)

    def flush(self) -> None:
        """Writes what is left in the buffer."""
        self._try(self._stream.flush)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            escaped = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
            self._stream.write(escaped)

    def _try(self, call: Callable[[], object]) -> None:
        if self.failure is not None:
            return
        try:
            call()
        except (OSError, ValueError) as error:  # ValueError: the stream has been closed
            self.failure = error
        except RuntimeError:
            # A signal came while a line was being written, and its handler wants to write another.
            return

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the stream's own
        return getattr(self._stream, name)


class _Nowhere(io.TextIOBase):
    """Takes everything."""

    def write(self, text: str) -> int:
        return len(text)


def steady(stream: IO[str] | None) -> IO[str]:
    """A stream that can't end a run; one that is such a stream already is returned as it is."""
    given: object = stream
    return cast(IO[str], given if isinstance(given, SteadyStream) else SteadyStream(stream))


@contextlib.contextmanager
def steady_streams() -> Iterator[tuple[SteadyStream, SteadyStream]]:
    """Makes standard output and error steady for a time, and leaves nothing in their buffers.

    Yields:
        The two.
    """
    _fill_descriptors()
    streams = SteadyStream(sys.stdout), SteadyStream(sys.stderr)
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            yield streams
        finally:
            for stream in streams:
                stream.flush()
                if stream.failure is not None:
                    _send_nowhere(stream)


def _fill_descriptors() -> None:
    """Opens the standard descriptors that are closed, so that no file of results becomes one.

    Whoever writes to them without asking Python (a compiler, a child process) would write there.
    """
    for standard in range(3):
        try:
            os.fstat(standard)
        except OSError:
            # Takes the lowest number that is free, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _send_nowhere(stream: SteadyStream) -> None:
    """Lets the interpreter flush what is left in the stream's buffer when it ends."""
    with contextlib.suppress(OSError, ValueError):  # not of a descriptor, or closed
        target = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, target)
        os.close(nowhere)
