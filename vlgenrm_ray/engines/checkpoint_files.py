"""Checksums of the files of a training checkpoint, written by each worker for its own part.

A checkpoint lies on a shared file system for minutes or hours until a restart needs it. One that was damaged meanwhile
must not be loaded: torch would refuse it in the middle of a group of workers, or load other numbers in silence.
"""

import json
import zlib
from pathlib import Path

_CHUNK_BYTES = 1 << 24


def write_checksums(folder: Path, rank: int) -> None:
    """Write the checksums of all files that a worker has put into its folder of a checkpoint."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    checksums = {str(path.relative_to(folder)): _checksum(path) for path in files}
    _list_of(folder, rank).write_text(json.dumps(checksums))


def find_damage(folder: Path, rank: int) -> str:
    """Return what is wrong with a worker's part of a checkpoint; "" if its files are as they were written."""
    try:
        checksums = json.loads(_list_of(folder, rank).read_text())
    except (OSError, ValueError) as error:
        return f"{folder.name} has no readable list of files of worker {rank} ({error})"
    for name, checksum in checksums.items():
        path = folder / name
        if not path.is_file():
            return f"{folder.name} lacks {name}"
        if _checksum(path) != checksum:
            return f"{folder.name} is damaged: {name} is not as it was written"
    return ""


def _list_of(folder: Path, rank: int) -> Path:
    return folder / f"checksums-{rank}.json"


def _checksum(path: Path) -> int:
    # CRC-32 finds what disks and networks do to files, at the speed of the disk; nobody forges a checkpoint here.
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
