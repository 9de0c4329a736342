"""Rows of a source: the columns' names, the content that a schema reads from a row, and the finished `SourceRow`.

    row of a file -> RowFields -> Schema.questions -> RowContent -> SourceRow

`RowFields` records which column a schema took for which role, so that a report can name the columns that nothing used.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from vlgenrm_ray.curation.sources.conversations import ChatTurn, render
from vlgenrm_ray.curation.sources.values import (
    MalformedRowError,
    SourceImage,
    is_missing,
    list_images,
    locate,
    show,
    to_id,
    to_image,
)
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.judge.chat_templates import strip_images
from vlgenrm_ray.settings import Settings


class Columns(Settings):
    """Names of the columns. None: the first of the usual names (`USUAL_NAMES`) that a row has."""

    id: str | None = None
    """Id of the question; without one it is derived from the content."""
    image: str | None = None
    """Path, URI, bytes or base64 of the image; a list for several images."""
    question: str | None = None
    """Text of the question, or chat turns."""
    reference: str | None = None
    """Reference answer or label, for reports."""
    chosen: str | None = None
    """Better response of an imported pair."""
    rejected: str | None = None
    """Worse response of an imported pair."""
    kind: str | None = None
    """Kind of the question, for reports."""
    group: str | None = None
    """Group of questions that are scored together."""

    def overrides(self) -> dict[str, str]:
        """Return the columns that were named, by field."""
        return {name: value for name, value in self.model_dump().items() if value}


ID_NAMES = ("id", "question_id", "ds_question_id", "sample_id", "qid", "uid", "__key__")
IMAGE_NAMES = (
    "images",
    "image",
    "image_path",
    "img_path",
    "image_paths",
    "image_file",
    "img",
    "image_src",
    "image_url",
    "image_base64",
    "image_bytes",
    "img_base64",
    "image_name",
    "file_name",
    "picture",
    "jpg",
    "jpeg",
    "png",
    "webp",
)
QUESTION_NAMES = ("question", "query", "prompt", "text", "instruction", "problem", "conversations", "messages")
REFERENCE_NAMES = ("reference", "reference_answer", "answer", "label", "ground_truth", "gt_answer", "solution", "truth")
KIND_NAMES = ("kind", "question_kind", "category", "question_type")
GROUP_NAMES = ("group",)
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "id": ID_NAMES,
    "image": IMAGE_NAMES,
    "question": QUESTION_NAMES,
    "reference": REFERENCE_NAMES,
    "chosen": ("chosen", "chosen_response"),
    "rejected": ("rejected", "rejected_response"),
    "kind": KIND_NAMES,
    "group": GROUP_NAMES,
}
"""Field -> column names that are tried in this order."""


class RowFields:
    """The columns of one row, with a record of which of them were used, and for what."""

    def __init__(self, row: Mapping[str, Any], overrides: Mapping[str, str] | None = None) -> None:
        self.row = row
        self.roles: dict[str, list[str]] = {}
        """Role (`question`, `chosen`, `label`, ...) -> columns it was read from."""
        self._overrides = overrides or {}

    def __contains__(self, name: str) -> bool:
        return not is_missing(self.row.get(name))

    def take(self, role: str, *names: str) -> Any:
        """Return the first of the named columns that has a value, and record it as used; None if none has one.

        A name of two parts, `metainfos.reference`, is a field of a column. A column named in the recipe for the role
        comes first, and alone.
        """
        if override := self._overrides.get("reference" if role == "label" else role):
            names = (override,)
        for name in names:
            value = self._value(name)
            if not is_missing(value):
                self.note(role, name)
                return value
        return None

    def note(self, role: str, *names: str) -> None:
        """Record columns as used for a role."""
        for name in names:
            if name not in self.roles.setdefault(role, []):
                self.roles[role].append(name)

    def _value(self, name: str) -> Any:
        if name in self.row:
            return self.row[name]
        column, _, field = name.partition(".")
        if not field:
            return None
        inner = self.row.get(column)
        return inner.get(field) if isinstance(inner, Mapping) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowContent:
    """One question that a schema read from a row; its images are not opened, its text not rendered."""

    turns: tuple[ChatTurn, ...]
    """Conversation that ends with the question."""
    images: tuple[Any, ...] = ()
    """Images in the forms of `values.to_image`. Empty: those that the turns hold."""
    id: Any = None
    """Value of the id column."""
    id_suffix: str = ""
    """Added to the id of one of several questions of a row."""
    group: str = ""
    kind: str = ""
    reference: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    no_image: str = ""
    """Why the row has no image, if the schema knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """A parsed row whose images have not been opened. Either `problem` is set, or the text and an image."""

    id: str
    """Unique in the source: `file:row` (from 1), or the question's id if the source creates questions."""
    question_id: str = ""
    """The row's own id, or one derived from its content; a repeated one ends in `#2`, `#3`, ... "" if malformed."""
    group: str = ""
    """Questions of one group are scored together: those whose rows have the same id, or as the data set says."""
    problem: str = ""
    """Reason why the row is malformed, or ""."""
    reason: str = DropReason.MALFORMED_ROW.value
    """Drop reason of a row with a problem."""
    images: tuple[SourceImage, ...] = ()
    text: str = ""
    kind: str = ""
    reference: str | None = None
    chosen: str | None = None
    rejected: str | None = None


def build_row(content: RowContent, *, id: str, folder: str, by_name: bool = False) -> SourceRow:
    """Finish the question of a row.

    Args:
        content: Question as a schema read it.
        id: Name of the row in the source.
        folder: Folder or URI that relative image paths refer to.
        by_name: Look for images of network addresses by their file names in `folder`.

    Raises:
        MalformedRowError: An image, the question or one side of the pair is missing or has no usable form.
    """
    values = list(content.images) or [image for turn in content.turns for image in turn.images]
    written = [to_image(value) for value in values]
    if not written:
        raise MalformedRowError(f"no image{': ' + content.no_image if content.no_image else ''}")
    if (content.chosen is None) != (content.rejected is None):
        side = "chosen" if content.chosen is not None else "rejected"
        raise MalformedRowError(f"has {side} alone; give both or neither")
    turns = content.turns
    if not turns or turns[-1].role != "user":
        raise MalformedRowError(
            "no question: the row has no turn of the user" if not turns else "ends with no question"
        )
    text = render(turns, len(written))
    if not text or not _has_words(turns):
        raise MalformedRowError("no question: its text is empty")
    # Addresses as they are written, so that ids do not change when the data set is moved.
    keys = [hashlib.sha256(image.data).hexdigest() if image.data is not None else image.uri for image in written]
    key = keys[0] if len(keys) == 1 else keys
    identity = json.dumps([key, text, content.reference, content.chosen, content.rejected])
    own_id = to_id(content.id)
    return SourceRow(
        id=id,
        question_id=(own_id or "q" + hashlib.sha256(identity.encode()).hexdigest()[:16]) + content.id_suffix,
        group=content.group or (own_id or ""),
        images=tuple(locate(image, folder, by_name=by_name) for image in written),
        text=text,
        kind=content.kind,
        reference=content.reference,
        chosen=content.chosen,
        rejected=content.rejected,
    )


def _has_words(turns: Iterable[ChatTurn]) -> bool:
    return any(strip_images(turn.text).strip() for turn in turns if turn.role == "user")


def problem_row(error: Exception, id: str) -> SourceRow:
    """Return the row that says why it cannot be used."""
    if isinstance(error, MalformedRowError):
        return SourceRow(id=encodable(id), problem=encodable(str(error)), reason=error.reason.value)
    return SourceRow(id=encodable(id), problem=encodable(f"{type(error).__name__}: {error}"))


def encodable(text: str) -> str:
    """Return a text with the halves of surrogate pairs escaped, which Arrow and files cannot represent."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_unicode(text: str) -> bool:
    return text.isascii() or encodable(text) == text


def check_texts(row: SourceRow) -> None:
    """Raise MalformedRowError if a text of a row is not Unicode.

    JSON can spell half of a surrogate pair; tables have bytes that are not UTF-8.
    """
    for field in fields(row):
        value = getattr(row, field.name)
        if isinstance(value, str) and not _is_unicode(value):
            name = {"question_id": "id", "text": "question"}.get(field.name, field.name)
            raise MalformedRowError(f"{name} is not valid Unicode; save the file as UTF-8: {show(value)}")
    for image in row.images:
        if image.uri is not None and not _is_unicode(image.uri):
            raise MalformedRowError(f"image is not valid Unicode; save the file as UTF-8: {show(image.uri)}")


def hash_id(question_id: str) -> int:
    """Return a 64-bit hash of a question id, to find repeated ones: a million ids take 8 MB in the driver.

    The probability that two of a million different ids have the same bits is 3 in 100 million.
    """
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=8).digest())


def is_desirable(fields: RowFields, answer: str | None) -> bool:
    """Return False if a boolean `label` beside an answer says that it is a bad one, as in data for KTO."""
    return answer is None or not isinstance(fields.row.get("label"), bool) or bool(fields.take("label", "label"))


def take_images(fields: RowFields, *names: str) -> tuple[Any, ...]:
    """Take the images of a row from the usual columns, or the named ones."""
    names = names or IMAGE_NAMES
    for name in names:
        if values := list_images(fields.take("image", name)):
            return tuple(values)
    # MMMU has a column for each image.
    numbered = [name for i in range(10) for name in (f"image_{i}", f"image{i}") if name in fields]
    return tuple(image for name in numbered for image in list_images(fields.take("image", name)))
