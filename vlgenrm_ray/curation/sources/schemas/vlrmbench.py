"""VLRMBench: a question whose reasoning steps are labelled 0 (right) or 1 (wrong). The question is read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.conversations import parse_turns
from vlgenrm_ray.curation.sources.rows import RowContent, RowFields, take_images
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import to_text


class VlrmBenchRows:
    """`question`, `image` (a list), `step_list`, `task_gt`. Steps and labels are for the benchmark, not for a run."""

    title = "VLRMBench steps"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        if {"question", "step_list", "task_gt"} <= columns:
            return SchemaMatch(95, "columns question, step_list, task_gt")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        yield RowContent(
            turns=parse_turns(fields.take("question", "question"), "question"),
            images=take_images(fields),
            id=fields.take("id", "id"),
            kind=to_text(fields.take("kind", "category") or "", "category"),
        )
