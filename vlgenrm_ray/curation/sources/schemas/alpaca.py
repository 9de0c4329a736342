"""LLaMA-Factory's Alpaca form: instruction and input, with an output or with chosen and rejected."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import answer_text, parse_history, parse_turns
from vlgenrm_ray.curation.sources.rows import ID_NAMES, RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError, to_text


class Alpaca:
    """The question is `instruction` and, below it, `input`; earlier turns are in `history`."""

    title = "LLaMA-Factory Alpaca (supervised or preference)"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if "instruction" not in columns or not any(isinstance(row.get("instruction"), str) for row in sample):
            return None
        if {"chosen", "rejected"} <= columns:
            return SchemaMatch(86, "columns instruction, chosen, rejected")
        return SchemaMatch(80, "columns instruction and output") if "output" in columns else None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        parts = [fields.take("question", name) for name in ("instruction", "input")]
        question = "\n".join(text for part in parts if part is not None and (text := to_text(part, "instruction")))
        if not question:
            raise MalformedRowError("no question: instruction and input are empty")
        system = parse_turns(fields.take("question", "system") or None, "system", role="system")
        history = parse_history(fields.take("question", "history"), "history")
        output = fields.take("reference", "output")
        chosen, rejected = fields.take("chosen", "chosen"), fields.take("rejected", "rejected")
        if chosen is None and rejected is None and isinstance(output, (list, tuple)) and len(output) == 2:
            # The older form of a preference: a list of the better and the worse output.
            chosen, rejected, output = output[0], output[1], None
            fields.note("chosen", "output")
            fields.note("rejected", "output")
        yield RowContent(
            turns=(*system, *history, *parse_turns(question, "instruction")),
            images=take_images(fields),
            id=fields.take("id", *ID_NAMES),
            reference=answer_text(output, "output"),
            chosen=answer_text(chosen, "chosen"),
            rejected=answer_text(rejected, "rejected"),
        )
