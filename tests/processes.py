"""Child processes of a test by their titles."""

import psutil


def below(name: str, pid: int | None = None) -> list[psutil.Process]:
    """Return the descendants of `pid` (default: this process) with `name` in their titles."""
    return [p for p in psutil.Process(pid).children(recursive=True) if name in _title(p)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
