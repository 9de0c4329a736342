"""What stands in a critique's text: where its verdict ends, and what it says of the image."""

import re

from vlgenrm_ray.judge.verdict import strip_verdict

_LABEL = re.compile(r"\bverdict\b[\s*_]*:", re.IGNORECASE)
_WORD = re.compile(r"[\W_]*(?:yes|no)\b", re.IGNORECASE)
_IMAGE = re.compile(
    r"\bimage[*_]*:(.*?)(?=[.;][\s*_]*\b(?:right|wrong)\b|\b(?:claim|verdict)[*_]*:|$)",
    re.IGNORECASE | re.MULTILINE,
)


def cut_after_verdict(text: str) -> str | None:
    """A critique as the model wrote it, ended right after the word of its verdict.

    None if it has no verdict, or labels several: the judge reads the last, but it is no example to learn from.
    """
    prefix = strip_verdict(text)
    if prefix is None or len(_LABEL.findall(text)) > 1:
        return None
    word = _WORD.match(text, len(prefix))
    return text[: word.end()] if word else None


def image_statements(text: str) -> tuple[str, ...]:
    """What each line says the image shows: the part between "Image:" and the line's own Right or Wrong."""
    return tuple(found for match in _IMAGE.finditer(text) if (found := match[1].strip(" \t*_.")))
