"""RLAIF-V: pairs of the published data set (Parquet), and the questions from which its pairs are generated."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlgenrm_ray.curation.sources.rows import RowContent, RowFields
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.schemas.pairs import pair_content
from vlgenrm_ray.curation.sources.values import to_text


class RlaifV:
    """Question, chosen and rejected with their origin; `image` holds bytes and path."""

    title = "RLAIF-V"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if {"question", "chosen", "rejected"} <= columns and columns & {"origin_dataset", "origin_split"}:
            return SchemaMatch(90, "columns question, chosen, rejected with origin_dataset or origin_split")
        if {"ds_question_id", "question"} <= columns:
            return SchemaMatch(90, "columns ds_question_id and question")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        content = pair_content(fields)
        reference = fields.take("reference", "metainfos.reference") or None
        yield replace(
            content,
            id=fields.take("id", "ds_question_id") if content.id is None else content.id,
            kind=content.kind or _question_type(fields),
            reference=content.reference if reference is None else to_text(reference, "reference"),
        )


def _question_type(fields: RowFields) -> str:
    """Return the type of the question in `origin_split`, which is an object in JSON."""
    origin = fields.take("kind", "origin_split")
    try:
        parsed = json.loads(origin) if isinstance(origin, str) else origin
    except (ValueError, RecursionError):
        return ""
    kind = parsed.get("type") if isinstance(parsed, Mapping) else None
    return kind if isinstance(kind, str) else ""
