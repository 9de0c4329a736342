"""LLaMA-Factory's preferences in ShareGPT form: conversations up to the question, then one turn for each side.

RLHF-V and VLFeedback are published in this form for LLaMA-Factory; `messages` may take the place of `conversations`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import answer_text, is_turns, parse_turns, split_answer
from vlgenrm_ray.curation.sources.rows import ID_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch


class ShareGptPreference:
    """`conversations` with `chosen`, `rejected` and `images`, whose places `<image>` marks."""

    title = "LLaMA-Factory preferences (RLHF-V, VLFeedback binarised)"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        name = next((n for n in ("conversations", "messages") if any(is_turns(row.get(n)) for row in sample)), None)
        if name and {"chosen", "rejected"} <= columns:
            return SchemaMatch(88, f"{name} are chat turns, with chosen and rejected")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        turns = parse_turns(fields.take("question", "conversations", "messages"), "conversations")
        if system := fields.take("question", "system"):
            turns = (*parse_turns(system, "system", role="system"), *turns)
        yield RowContent(
            turns=split_answer(turns)[0],
            images=take_images(fields),
            id=fields.take("id", *ID_NAMES),
            chosen=answer_text(fields.take("chosen", "chosen"), "chosen"),
            rejected=answer_text(fields.take("rejected", "rejected"), "rejected"),
        )
