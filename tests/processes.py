"""Processes below a test's own, by their titles."""

import psutil


def below(name: str, pid: int | None = None) -> list[psutil.Process]:
    """Those below `pid` (this process) that have this in their title; not those that end while they are looked at."""
    return [p for p in psutil.Process(pid).children(recursive=True) if name in _title(p)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
