"""Stored answers of a model, as benchmarks take them beside their questions. They are no questions, and are refused."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlgenrm_ray.curation.sources.rows import IMAGE_NAMES, RowContent, RowFields
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError


class ModelAnswers:
    """`question_id` with an answer in `text` or `answer`, and no image."""

    title = "answers of a model"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        answers = columns & {"text", "answer", "output", "response"}
        model = columns & {"model", "model_id", "answer_id"}
        if "question_id" in columns and answers and model and not columns & {*IMAGE_NAMES, "label", "question"}:
            return SchemaMatch(90, f"question_id, {', '.join(sorted(answers | model))}, and no image")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        fields.take("id", "question_id")
        raise MalformedRowError(
            "an answer of a model, without question and image; score it by `vlgenrm benchmark NAME --data QUESTIONS "
            "--answers FILE`"
        )
        yield
