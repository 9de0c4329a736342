"""The embedded world as a source: questions and images generated from a seed, in parallel."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from vlgenrm_ray.curation.sources.rows import SourceRow
from vlgenrm_ray.curation.sources.stream import OpenedSource
from vlgenrm_ray.curation.sources.values import SourceImage
from vlgenrm_ray.data.arrow import to_table
from vlgenrm_ray.data.flow import LIGHT
from vlgenrm_ray.records import Question
from vlgenrm_ray.settings import digest
from vlgenrm_ray.shapes import world
from vlgenrm_ray.shapes.pairs import gold_pairs
from vlgenrm_ray.shapes.scenes import Split

if TYPE_CHECKING:
    import pyarrow as pa

    from vlgenrm_ray.curation.sources import SourceConfig

_PIECE_ROWS = 64


def open_shapes(config: "SourceConfig", image_store: Path, seed: int) -> OpenedSource:
    """Open `config.count` questions of the world; their images are written to `image_store`.

    With `config.labelled`, each question comes with a true and a wrong answer.
    """
    import pyarrow as pa
    import ray.data

    split = cast("Split", config.split or "train")
    starts = list(range(0, config.count, _PIECE_ROWS))
    plan = pa.table({"start": starts, "count": [min(_PIECE_ROWS, config.count - s) for s in starts]})
    generate = _GenerateShapes(image_store, seed, split, config.labelled)
    return OpenedSource(
        rows=ray.data.from_arrow(plan).map_batches(generate, batch_size=1, **LIGHT),
        total=config.count,
        data_hash=digest(["shapes", seed, split, config.count, config.labelled]),
    )


@dataclass(frozen=True)
class _GenerateShapes:
    image_store: Path
    seed: int
    split: Split
    labelled: bool

    def __call__(self, plan: "pa.Table") -> "Iterator[pa.Table]":
        for piece in plan.to_pylist():
            yield to_table(SourceRow, self._generate(piece["start"], piece["count"]))

    def _generate(self, start: int, count: int) -> Iterator[SourceRow]:
        if self.labelled:
            for pair in gold_pairs(self.image_store, seed=self.seed, split=self.split, start=start, count=count):
                yield replace(_source_row(pair.question), chosen=pair.chosen, rejected=pair.rejected)
        else:
            questions = world.questions(self.image_store, seed=self.seed, split=self.split, start=start, count=count)
            yield from map(_source_row, questions)


def _source_row(question: Question) -> SourceRow:
    return SourceRow(
        id=question.id,
        question_id=question.id,
        images=(SourceImage(uri=question.image.uri),),
        text=question.text,
        kind=question.kind,
        reference=question.reference,
    )
