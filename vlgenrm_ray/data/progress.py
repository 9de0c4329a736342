"""A progress bar on a terminal; a line every ten seconds in a job's log."""

import sys
import time
from types import TracebackType
from typing import Self

_LOG_EVERY_S = 10.0
_CLEARED = "\r\x1b[K"
"""Puts a terminal's cursor at the begin of its line, and empties that."""


class Progress:
    """Counts `done` of `total` under a name. Use as a context manager."""

    def __init__(self, name: str, *, total: int, done: int = 0) -> None:
        self.name = name
        self.total = total
        self.done = done
        self._first = done
        self._began = self._logged = time.monotonic()
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Self:
        self._show()
        return self

    def advance(self, count: int) -> None:
        """Add `count` finished rows."""
        self.done += count
        now = time.monotonic()
        if self._live or now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            self._show()

    def say(self, text: str) -> None:
        """Write lines of text above the bar, or into the log."""
        sys.stderr.write(f"{_CLEARED if self._live else ''}{text}\n")
        if self._live:
            self._show()
        sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show()
        if self._live:
            sys.stderr.write("\n")

    def _show(self) -> None:
        seconds = time.monotonic() - self._began
        new = self.done - self._first
        rate = new / seconds if seconds and new else 0.0
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else ""
        text = f"{self.name:<12} {self.done:>7}/{self.total} {seconds:6.1f} s{left}"
        if self._live:
            width = 20
            full = width * self.done // max(self.total, 1)
            sys.stderr.write(f"{_CLEARED}[{'#' * full}{'.' * (width - full)}] {text}")
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()
