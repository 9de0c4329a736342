"""What rides along with a trainer's sample, where the trainer itself passes on neither image nor question.

Most trainers hand one free field of the data set (`label`, `ground_truth`, `extra_info`, ...) through to the reward.
There goes a JSON object, as text or parsed: `{"question": ..., "image": ... or "images": [...], "reference": ...}`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlgenrm_ray.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a label says; None and () where it says nothing."""

    question: str | None = None
    images: tuple[Any, ...] = ()
    """As the data set has them: paths, base64, data URLs, references, or pixels."""
    reference: str | None = None


def read(value: Any) -> Label:
    """A label of any form. What is no JSON object, such as a plain answer, is the reference.

    `answer` is another name of `reference`; other keys are left alone, they are the data set's own.
    Raises InputError for a question or reference that is no text, or images that are no list.
    """
    found = _parsed(value)
    if not isinstance(found, Mapping):
        return Label() if value is None or value == "" else Label(reference=str(value))
    images = found.get("images")
    if images is None:
        images = [] if found.get("image") is None else [found["image"]]
    if isinstance(images, str | bytes | Mapping) or not hasattr(images, "__iter__"):
        raise InputError("label.images: must be a list; a single image goes under `image`")
    reference = found.get("reference")
    return Label(
        question=_text(found.get("question"), "question"),
        images=tuple(images),
        reference=_text(found.get("answer") if reference is None else reference, "reference"),
    )


def write(*, question: str, images: list[str] | tuple[str, ...] = (), reference: str | None = None) -> str:
    """A label as the JSON text to put into a data set's column. Images are paths, URIs, base64 or data URLs."""
    fields = {"question": question, "images": list(images), "reference": reference}
    return json.dumps({key: value for key, value in fields.items() if value}, ensure_ascii=False)


def _parsed(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, int | float):
        return str(value)
    raise InputError(f"label.{name}: must be a text")
