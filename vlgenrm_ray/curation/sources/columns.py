"""From a row as its authors wrote it to a `Candidate`: names of columns, forms of images, chat turns.

Understood without configuration: rows with `image`, `question` and optionally `id`, `reference`, `chosen`, `rejected`,
which are the columns of RLAIF-V, SPA-VL, MMPR and MM-RLHF, and the chat forms of LLaMA-Factory (RLHF-V, VLFeedback
binarised) and TRL, where a text is a turn or a list of turns.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlparse

from vlgenrm_ray.curation.sources.candidate import Candidate
from vlgenrm_ray.data import images
from vlgenrm_ray.settings import Settings

_SHORTEST_BASE64 = 64
"""Strings below this length are paths: no image of a usable size is so short."""


class Columns(Settings):
    """Which column holds what. None: the first of the usual names that the row has."""

    id: str | None = None
    image: str | None = None
    question: str | None = None
    reference: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kind: str | None = None

    def names(self, field: str) -> tuple[str, ...]:
        """The column names to try for one of the fields above."""
        named = getattr(self, field)
        return (named,) if named else USUAL[field]

    def wanted(self) -> frozenset[str]:
        """Every column worth reading."""
        return frozenset(name for field in USUAL for name in self.names(field))


USUAL: dict[str, tuple[str, ...]] = {
    "id": ("id", "question_id"),
    "image": ("image", "image_path", "img_path", "images"),
    "question": ("question", "query", "text", "prompt", "conversations", "messages"),
    "reference": ("reference", "answer"),
    "chosen": ("chosen",),
    "rejected": ("rejected", "rejected_response"),
    "kind": ("kind", "question_kind"),
}


class MalformedRowError(ValueError):
    """A row that is no question, and why."""


def candidate(row: object, *, id: str, folder: str, columns: Columns) -> Candidate:
    """One row -> a candidate, whose `problem` says so if it is malformed.

    `folder` is where relative image paths begin.
    """
    try:
        return _candidate(row, id, folder, columns)
    except MalformedRowError as error:
        return Candidate(id=id, problem=str(error))


def _candidate(row: object, id: str, folder: str, columns: Columns) -> Candidate:
    if not isinstance(row, Mapping):
        raise MalformedRowError(f"a row must be an object with named columns, not {_shown(row)}")
    path, data = _image(_value(row, columns, "image"))
    chosen = _text(_value(row, columns, "chosen"), "chosen", "assistant")
    rejected = _text(_value(row, columns, "rejected"), "rejected", "assistant")
    if (chosen is None) != (rejected is None):
        raise MalformedRowError(f"has {'chosen' if chosen else 'rejected'} alone; give both or neither")
    text = _text(_value(row, columns, "question"), "question", "user")
    if not text:
        raise MalformedRowError(f"no question: none of the columns {', '.join(columns.names('question'))} has a text")
    kind = _value(row, columns, "kind")
    reference = _text(_value(row, columns, "reference"), "reference", "assistant")
    # By the path as it is written, so that the ids stay when the data set moves.
    image = path if data is None else hashlib.sha256(data).hexdigest()
    content = json.dumps([image, text, reference, chosen, rejected])
    return Candidate(
        id=id,
        name=own_id(row, columns) or "q" + hashlib.sha256(content.encode()).hexdigest()[:16],
        image_uri=None if path is None else _joined(folder, path),
        image_bytes=data,
        text=text,
        kind=kind if isinstance(kind, str) else "",
        reference=reference,
        chosen=chosen,
        rejected=rejected,
    )


def own_id(row: Mapping[Any, Any], columns: Columns) -> str | None:
    """The id that the row itself has, if any. Raises MalformedRowError if it is neither a string nor an integer."""
    value = _value(row, columns, "id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise MalformedRowError(f"id must be a string or an integer, not {_shown(value)}")
    return str(value)


def _value(row: Mapping[Any, Any], columns: Columns, field: str) -> Any:
    return next((row[n] for n in columns.names(field) if row.get(n) is not None), None)


def _image(value: Any) -> tuple[str | None, bytes | None]:
    """An image as a path or URI as written, or as encoded bytes."""
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise MalformedRowError(f"has {len(value)} images; one image a question is supported")
        (value,) = value
    if isinstance(value, Mapping):
        # As Hugging Face data sets store an image: {"bytes": ..., "path": ...}, either of them null.
        data = value.get("bytes")
        value = data if data is not None else value.get("path")
    if value is None or value == "":
        raise MalformedRowError("no image")
    if isinstance(value, bytes):
        return None, value
    if not isinstance(value, str):
        raise MalformedRowError(f"image must be a path, a URI, bytes or base64, not {_shown(value)}")
    if value.startswith("data:"):
        return None, _decoded(value.partition(",")[2], "the image's data URL is not base64")
    if len(value) >= _SHORTEST_BASE64 and (data := _base64_image(value)) is not None:
        return None, data
    return value, None


def _joined(folder: str, path: str) -> str:
    return path if urlparse(path).scheme or path.startswith("/") else f"{folder}/{path}"


def _base64_image(text: str) -> bytes | None:
    """The bytes if `text` is an image in base64. A long path may look like base64, but not like an image in it."""
    try:
        head = base64.b64decode(text[:32], validate=True)
    except binascii.Error:
        return None
    return _decoded(text, "the image is cut or broken base64") if images.suffix(head) else None


def _decoded(text: str, problem: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise MalformedRowError(f"{problem}: {error}") from error


_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant"}


def _text(value: Any, field: str, role: str) -> str | None:
    """A text, or the one turn of `role` in a list of chat turns, without image placeholders."""
    if isinstance(value, Mapping):
        return _text(value.get("value", value.get("content")), field, role)
    if isinstance(value, (list, tuple)):
        turns = [t for t in value if isinstance(t, Mapping)]
        if turns and all("type" in t for t in turns):
            return " ".join(str(t["text"]) for t in turns if t["type"] == "text" and t.get("text")).strip()
        mine = [t for t in turns if _ROLES.get(str(t.get("role", t.get("from")))) == role]
        if len(mine) != 1:
            raise MalformedRowError(f"{field} has {len(mine)} turns of the {role}; one is supported")
        return _text(mine[0], field, role)
    if value is None:
        return None
    if not isinstance(value, str):
        raise MalformedRowError(f"{field} must be a text, not {_shown(value)}")
    return value.replace("<image>", "").strip()


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
