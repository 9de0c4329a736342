"""Parsing of source rows: names of columns, forms of images, chat turns.

Rows with `image`, `question` and optionally `id`, `reference`, `chosen`, `rejected` need no configuration. These are
the columns of RLAIF-V, SPA-VL, MMPR and MM-RLHF. Texts may be chat turns or lists of chat turns, as in LLaMA-Factory
(RLHF-V, VLFeedback binarised) and TRL.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vlgenrm_ray.data import addresses, images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.settings import Settings

_NO_LIMITS = ImageLimits(max_bytes=sys.maxsize)
"""Limits of images are checked when they are opened, with the settings of the pool."""


class Columns(Settings):
    """Names of the columns. None: the first of the usual names (`USUAL_NAMES`) that a row has."""

    id: str | None = None
    """Id of the question; without one it is derived from the content."""
    image: str | None = None
    """Path, URI, bytes or base64 of the image."""
    question: str | None = None
    """Text of the question, or chat turns."""
    reference: str | None = None
    """Reference answer, for reports."""
    chosen: str | None = None
    """Better response of an imported pair."""
    rejected: str | None = None
    """Worse response of an imported pair."""
    kind: str | None = None
    """Kind of the question, for reports."""

    def names(self, field: str) -> tuple[str, ...]:
        """Return the column names to try for one of the fields above."""
        name = getattr(self, field)
        return (name,) if name else USUAL_NAMES[field]

    def all_names(self) -> frozenset[str]:
        """Return every column name to read."""
        return frozenset(name for field in USUAL_NAMES for name in self.names(field))


USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "question_id"),
    "image": ("image", "image_path", "img_path", "images"),
    "question": ("question", "query", "text", "prompt", "conversations", "messages"),
    "reference": ("reference", "answer"),
    "chosen": ("chosen",),
    "rejected": ("rejected", "rejected_response"),
    "kind": ("kind", "question_kind"),
}


class MalformedRowError(ValueError):
    """A row that is not a question; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """A parsed row whose image has not been opened. Either `problem` is set, or the text and one of the images."""

    id: str
    """Unique in the source: `file:line` (from 1), or the question's id if the source creates questions."""
    question_id: str = ""
    """The row's own id, or one derived from its content. "" if there is a problem."""
    duplicate_of: str = ""
    """`id` of the first row with the same `question_id`; "" if this is the first."""
    problem: str = ""
    """Reason why the row is malformed, or ""."""
    image_uri: str | None = None
    image_bytes: bytes | None = None
    text: str = ""
    kind: str = ""
    reference: str | None = None
    chosen: str | None = None
    rejected: str | None = None


def parse_row(row: object, *, id: str, folder: str, columns: Columns) -> SourceRow:
    """Parse one row. A malformed row has a `problem`; nothing is raised, whatever the row is.

    Args:
        row: A mapping of column names to values, or anything else, which is malformed. An exception is the reason why
            the row could not be read.
        id: Name of the row in the source.
        folder: Folder or URI that relative image paths refer to.
        columns: Names of the columns.
    """
    try:
        parsed = _parse(row, id, folder, columns)
        _check_texts(parsed)
        return parsed
    except MalformedRowError as error:
        problem = str(error)
    # A row may be wrong in ways that nobody foresaw, such as values nested too deep; it must not end the run.
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    return SourceRow(id=id, problem=encodable(problem))


def encodable(text: str) -> str:
    """Return a text with the halves of surrogate pairs escaped, which Arrow and files cannot represent."""
    return text.encode("utf-8", "backslashreplace").decode()


def _check_texts(row: SourceRow) -> None:
    """Raise MalformedRowError if a text of a row has half of a surrogate pair, as JSON can spell it."""
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, str) and encodable(value) != value:
            name = {"question_id": "id", "image_uri": "image", "text": "question"}.get(field.name, field.name)
            raise MalformedRowError(f"{name} is not valid Unicode, it has half of a character: {_repr(value)}")


def hash_id(question_id: str) -> int:
    """Return a 64-bit hash of a question id, to find duplicates: a million ids take 8 MB in the driver.

    The probability that two of a million different ids have the same bits is 3 in 100 million.
    """
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=8).digest())


def _parse(row: object, id: str, folder: str, columns: Columns) -> SourceRow:
    if isinstance(row, Exception):
        raise row
    if not isinstance(row, Mapping):
        raise MalformedRowError(f"a row must be an object with named columns, not {_repr(row)}")
    path, data = _parse_image(_value(row, columns, "image"))
    chosen = _text(_value(row, columns, "chosen"), "chosen", "assistant")
    rejected = _text(_value(row, columns, "rejected"), "rejected", "assistant")
    if (chosen is None) != (rejected is None):
        raise MalformedRowError(f"has {'chosen' if chosen else 'rejected'} alone; give both or neither")
    text = _text(_value(row, columns, "question"), "question", "user")
    if not text:
        raise MalformedRowError(f"no question: none of the columns {', '.join(columns.names('question'))} has a text")
    kind = _value(row, columns, "kind")
    reference = _text(_value(row, columns, "reference"), "reference", "assistant")
    # The path as it is written, so that ids do not change when the data set is moved.
    image_key = path if data is None else hashlib.sha256(data).hexdigest()
    content = json.dumps([image_key, text, reference, chosen, rejected])
    return SourceRow(
        id=id,
        question_id=explicit_id(row, columns) or "q" + hashlib.sha256(content.encode()).hexdigest()[:16],
        image_uri=None if path is None else _join(folder, path),
        image_bytes=data,
        text=text,
        kind=kind if isinstance(kind, str) else "",
        reference=reference,
        chosen=chosen,
        rejected=rejected,
    )


def explicit_id(row: Mapping[Any, Any], columns: Columns) -> str | None:
    """Return the value of the row's id column, if any. Raises MalformedRowError unless it is a string or an integer."""
    value = _value(row, columns, "id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise MalformedRowError(f"id must be a string or an integer, not {_repr(value)}")
    return str(value)


def _value(row: Mapping[Any, Any], columns: Columns, field: str) -> Any:
    return next((row[n] for n in columns.names(field) if row.get(n) is not None), None)


def _parse_image(value: Any) -> tuple[str | None, bytes | None]:
    """Return an image as a path or URI, as it is written, or as encoded bytes."""
    if isinstance(value, (list, tuple)):
        if len(value) != 1:
            raise MalformedRowError(f"has {len(value)} images; one image a question is supported")
        (value,) = value
    if isinstance(value, Mapping):
        # Hugging Face data sets store an image as {"bytes": ..., "path": ...}, either of them null.
        data = value.get("bytes")
        value = data if data is not None else value.get("path")
    if value is None or value == "":
        raise MalformedRowError("no image")
    if isinstance(value, bytes):
        return None, value
    if not isinstance(value, str):
        raise MalformedRowError(f"image must be a path, a URI, bytes or base64, not {_repr(value)}")
    try:
        if images.is_data_url(value):
            return None, images.decode_data_url(value, _NO_LIMITS)
        return (None, images.decode_base64(value, _NO_LIMITS)) if images.is_base64_image(value) else (value, None)
    except ImageError as error:
        raise MalformedRowError(error.detail) from error


def _join(folder: str, path: str) -> str:
    return path if addresses.scheme(path) or path.startswith("/") else f"{folder}/{path}"


_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "bot": "assistant"}


def _text(value: Any, field: str, role: str) -> str | None:
    """Return a text, or the only turn of `role` in a list of chat turns, without image placeholders."""
    if isinstance(value, Mapping):
        return _text(value.get("value", value.get("content")), field, role)
    if isinstance(value, (list, tuple)):
        turns = [t for t in value if isinstance(t, Mapping)]
        if turns and all("type" in t for t in turns):
            return " ".join(str(t["text"]) for t in turns if t["type"] == "text" and t.get("text")).strip()
        of_role = [t for t in turns if _ROLES.get(str(t.get("role", t.get("from")))) == role]
        if len(of_role) != 1:
            raise MalformedRowError(f"{field} has {len(of_role)} turns of the {role}; one is supported")
        return _text(of_role[0], field, role)
    if value is None:
        return None
    if not isinstance(value, str):
        raise MalformedRowError(f"{field} must be a text, not {_repr(value)}")
    return value.replace("<image>", "").strip()


def _repr(value: object) -> str:
    """Return the type and the beginning of a value, for messages."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
