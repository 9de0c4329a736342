"""Child processes of a test, found by their titles."""

import psutil


def descendants(title: str, pid: int | None = None) -> list[psutil.Process]:
    """Return the descendants of `pid` (default: this process) whose command lines contain `title`."""
    return [p for p in psutil.Process(pid).children(recursive=True) if title in _command_line(p)]


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
