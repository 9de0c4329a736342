"""The embedded worlds as sources: questions and images generated from a seed, in parallel."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.curation.sources.rows import SourceRow
from vlgenrm_ray.curation.sources.stream import OpenedSource
from vlgenrm_ray.curation.sources.values import SourceImage
from vlgenrm_ray.data.arrow import to_table
from vlgenrm_ray.data.flow import read_plan
from vlgenrm_ray.records import Question
from vlgenrm_ray.settings import digest
from vlgenrm_ray.shapes import world
from vlgenrm_ray.shapes.pairs import gold_pairs

if TYPE_CHECKING:
    import pyarrow as pa

    from vlgenrm_ray.curation.sources import SourceConfig

_PIECE_ROWS = 64


def open_shapes(config: "SourceConfig", image_store: Path, seed: int) -> OpenedSource:
    """Open `config.count` questions of the world `config.source`; their images are written to `image_store`.

    With `config.labelled`, each question comes with a true and a wrong answer.
    """
    import pyarrow as pa

    split = config.split or "train"
    starts = list(range(0, config.count, _PIECE_ROWS))
    plan = pa.table({"start": starts, "count": [min(_PIECE_ROWS, config.count - s) for s in starts]})
    generate = _GenerateShapes(image_store, config.source, seed, split, config.labelled)
    return OpenedSource(
        rows=read_plan(plan, generate, num_rows=config.count),
        total=config.count,
        data_hash=digest([config.source, seed, split, config.count, config.labelled]),
    )


@dataclass(frozen=True)
class _GenerateShapes:
    image_store: Path
    world: str
    seed: int
    split: str
    labelled: bool

    def __call__(self, plan: "pa.Table") -> "Iterator[pa.Table]":
        for piece in plan.to_pylist():
            yield to_table(SourceRow, self._generate(piece["start"], piece["count"]))

    def _generate(self, start: int, count: int) -> Iterator[SourceRow]:
        items: dict[str, Any] = {"world": self.world, "seed": self.seed, "split": self.split}
        items |= {"start": start, "count": count}
        if self.labelled:
            for pair in gold_pairs(self.image_store, **items):
                yield replace(_source_row(pair.question), chosen=pair.chosen, rejected=pair.rejected)
        else:
            yield from map(_source_row, world.questions(self.image_store, **items))


def _source_row(question: Question) -> SourceRow:
    return SourceRow(
        id=question.id,
        question_id=question.id,
        images=(SourceImage(uri=question.image.uri),),
        text=question.text,
        kind=question.kind,
        reference=question.reference,
    )
