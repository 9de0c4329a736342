"""Any table with a question and an image under usual names, or under the names that the recipe gives."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import answer_text, parse_turns, reference_text, split_answer
from vlgenrm_ray.curation.sources.rows import USUAL_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError, to_text


class UsualColumns:
    """Question, image, and optionally chosen, rejected, reference, kind, id, group."""

    title = "usual column names"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        names = [name for name in USUAL_NAMES["question"] if name in columns]
        return SchemaMatch(10, f"a question under {names[0]!r}") if names else None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        turns, answer = split_answer(parse_turns(fields.take("question", *USUAL_NAMES["question"]), "question"))
        if not turns:
            names = ", ".join(USUAL_NAMES["question"])
            raise MalformedRowError(f"no question: none of the columns {names} has a text; name it under columns")
        reference = fields.take("reference", *USUAL_NAMES["reference"])
        kind = fields.take("kind", *USUAL_NAMES["kind"])
        yield RowContent(
            turns=turns,
            images=take_images(fields),
            id=fields.take("id", *USUAL_NAMES["id"]),
            group=to_text(fields.take("group", *USUAL_NAMES["group"]) or "", "group"),
            kind=kind if isinstance(kind, str) else "",
            reference=answer if reference is None else reference_text(reference, "reference"),
            chosen=answer_text(fields.take("chosen", *USUAL_NAMES["chosen"]), "chosen"),
            rejected=answer_text(fields.take("rejected", *USUAL_NAMES["rejected"]), "rejected"),
        )
