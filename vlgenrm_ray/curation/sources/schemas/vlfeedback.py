"""VLFeedback: four responses to a prompt, rated 1 to 5 in three aspects; every two of different mean form a pair."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import answer_text, parse_turns
from vlgenrm_ray.curation.sources.rows import ID_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.schemas.ranked import ranked_pairs
from vlgenrm_ray.curation.sources.values import MalformedRowError, show, to_number


class VlFeedback:
    """`completions`: responses with `annotations`; the rating is the mean over the aspects, as in official pairs."""

    title = "VLFeedback"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if any(_has_annotations(row.get("completions")) for row in sample):
            return SchemaMatch(95, "completions hold responses with annotations")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        completions = _completions(fields.take("chosen", "completions"))
        fields.note("rejected", "completions")
        fields.note("ranking", "completions.annotations")
        content = RowContent(
            turns=parse_turns(fields.take("question", "prompt", "instruction", "question"), "prompt"),
            images=take_images(fields),
            id=fields.take("id", *ID_NAMES),
        )
        texts = [answer_text(completion.get("response"), "response") or "" for completion in completions]
        yield from ranked_pairs(content, texts, [_rank(c.get("annotations")) for c in completions])


def _has_annotations(value: Any) -> bool:
    try:
        return all("response" in c and "annotations" in c for c in _completions(value))
    except MalformedRowError:
        return False


def _completions(value: Any) -> list[Mapping[str, Any]]:
    """Return the completions as objects; Hugging Face stores a sequence of objects as an object of lists."""
    if isinstance(value, Mapping) and isinstance(value.get("response"), (list, tuple)):
        lists = {key: list(values) for key, values in value.items() if isinstance(values, (list, tuple))}
        return [
            {key: values[i] for key, values in lists.items() if i < len(values)} for i in range(len(lists["response"]))
        ]
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(c, Mapping) for c in value):
        raise MalformedRowError(f"completions must be a list of objects with a response, not {show(value)}")
    return list(value)


def _rank(annotations: Any) -> float | None:
    """Return minus the mean rating, None if an aspect has no number, such as "N/A"."""
    if not isinstance(annotations, Mapping) or not annotations:
        return None
    ratings = [to_number(a.get("Rating") if isinstance(a, Mapping) else a) for a in annotations.values()]
    numbers = [rating for rating in ratings if rating is not None]
    return -sum(numbers) / len(numbers) if len(numbers) == len(ratings) else None
