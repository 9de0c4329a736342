"""Progress of a stage: a bar on a terminal, a line every ten seconds in a job's log."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console

_LOG_INTERVAL_S = 10.0


class Progress:
    """Counter of finished rows or steps, shown on stderr while it is used as a context manager."""

    def __init__(self, name: str, *, total: int, done: int = 0, console: "Console | None" = None) -> None:
        """Create a counter.

        Args:
            name: Shown before the counter.
            total: Number of rows or steps in all.
            done: Number that an earlier call finished; it does not count for the estimate of the time left.
            console: Where to show the progress; default: stderr.
        """
        from rich import progress
        from rich.console import Console

        self.name = name
        self.total = total
        self.done = done
        self._done_before = done
        self._start = self._last_log = time.monotonic()
        self._done_at_last_log = -1
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description:<12}"),
            progress.BarColumn(20),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(elapsed_when_finished=False),
            console=self._console,
            refresh_per_second=2,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=total, completed=done)

    def __enter__(self) -> Self:
        self._bar.start()
        self._log()
        return self

    def advance(self, count: int) -> None:
        """Add `count` finished rows or steps."""
        self.done += count
        self._bar.update(self._task, completed=self.done)
        if time.monotonic() - self._last_log >= _LOG_INTERVAL_S:
            self._log()

    def print(self, text: str) -> None:
        """Print lines of text above the bar, or into the log."""
        self._console.print(text, markup=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._done_at_last_log != self.done:
            self._log()

    def _log(self) -> None:
        """Print a line where there is no bar."""
        self._last_log, self._done_at_last_log = time.monotonic(), self.done
        if self._console.is_terminal:
            return
        seconds = self._last_log - self._start
        rate = (self.done - self._done_before) / seconds if seconds else 0.0
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else ""
        self._console.print(f"{self.name:<12} {self.done:>7}/{self.total} {seconds:6.1f} s{left}", markup=False)
