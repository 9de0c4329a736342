"""Labels: question, images and reference in one field of a trainer's data set.

Most trainers pass one free field of the data set (`label`, `ground_truth`, `extra_info`, ...) on to the reward, but
neither image nor question. A label is a JSON object in that field, as text or parsed:
`{"question": ..., "image": ... or "images": [...], "reference": ...}`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from vlgenrm_ray.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The contents of a label; None or () for keys it lacks."""

    question: str | None = None
    images: tuple[Any, ...] = ()
    """Images as the data set has them: paths, base64, data URLs, references, or pixels."""
    reference: str | None = None
    """A right answer, which the judge sees."""


def read_label(value: Any) -> Label:
    """Read a label from a field of a data set.

    Args:
        value: A JSON object, as text or parsed. Any other value, such as a plain answer, is taken as the reference.
            `answer` is accepted for `reference`; further keys are ignored, since they belong to the data set. Missing
            values, as data frames have them (NaN), count as absent.

    Raises:
        InputError: Question or reference is not a text, or `images` is not a list.
    """
    fields = _parse(value)
    if not isinstance(fields, Mapping):
        return Label(reference=reference_text(value))
    fields = {key: None if is_missing(field) else field for key, field in fields.items()}
    images = fields.get("images")
    if images is None:
        images = [] if fields.get("image") is None else [fields["image"]]
    if isinstance(images, str | bytes | Mapping) or not hasattr(images, "__iter__"):
        raise InputError("label.images: must be a list; give a single image under `image`")
    reference = fields.get("reference")
    return Label(
        question=_text(fields.get("question"), "question"),
        images=tuple(image for image in images if not is_missing(image)),
        reference=_text(fields.get("answer") if reference is None else reference, "reference"),
    )


def reference_text(value: Any) -> str | None:
    """Return a plain answer of a data set as a reference; None if it is missing."""
    return None if is_missing(value) else str(value)


def is_missing(value: Any) -> bool:
    """Return whether a value of a data set is absent: None, an empty text, NaN, NaT or pandas' NA."""
    if value is None or (isinstance(value, str | bytes) and not value):
        return True
    try:
        # NaN and NaT differ from themselves.
        return bool(value != value)
    except TypeError:
        # The truth of pandas' NA is not defined.
        return True
    except ValueError:
        # Arrays have no single truth.
        return False


def write_label(*, question: str, images: list[str] | tuple[str, ...] = (), reference: str | None = None) -> str:
    """Write a label as the JSON text for a data set's column. Images are paths, URIs, base64 or data URLs."""
    fields = {"question": question, "images": list(images), "reference": reference}
    return json.dumps({key: value for key, value in fields.items() if value}, ensure_ascii=False)


write = write_label
"""Former name of `write_label`; removed in the next version."""


def _parse(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, Real):
        return str(value)
    raise InputError(f"label.{name}: must be a text")
