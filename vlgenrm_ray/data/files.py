"""Small files that are read whole and replaced atomically: JSON objects, texts, and lines of a log."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from vlgenrm_ray.errors import StageError


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
    """Write a text file atomically, and flush it to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_text(text, encoding="utf-8")
        replace_file(partial, path)
    except OSError:
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
