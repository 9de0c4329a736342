"""Files that are replaced atomically, and small ones that are read whole: JSON objects, texts, and lines of a log."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlgenrm_ray.errors import StageError, StorageFullError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises StageError if its content is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise StageError(
            f"{path} is damaged ({error}); restore it, or delete {path.parent} to make its content again"
        ) from error
    if not isinstance(value, dict):
        raise StageError(f"{path} is damaged (no JSON object); restore it, or delete {path.parent} to make it again")
    return value


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, and flush it to the disk. Raises StorageFullError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    with writing(path, len(data)) as partial:
        partial.write_bytes(data)


@contextmanager
def writing(path: Path, num_bytes: int, *, flush: bool = True) -> Iterator[Path]:
    """Write a file atomically: yield the path of a partial file, which replaces `path` when the context ends well.

    Args:
        path: The file, in a folder that exists.
        num_bytes: About how many bytes are written, for the message of an error.
        flush: Flush the file to the disk before it is renamed. Without it a loss of power may leave it damaged.

    Raises:
        StorageFullError: The file system takes no more data. Nothing is left of the partial file.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield partial
        if flush:
            replace_file(partial, path)
        else:
            os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise StorageFullError(
            f"{path.parent}: cannot write {path.name}, about {num_bytes / 1e6:.1f} MB ({error.strerror or error}; "
            f"{free / 1e6:.1f} MB free); make room and run the same command again"
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, which is created if it is missing."""
    with path.open("a", encoding="utf-8") as out:
        out.write(line + "\n")


def replace_file(partial: Path, target: Path) -> None:
    """Rename a file whose content is on the disk, so that a loss of power leaves the old file or the new one."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, target)
