"""The embedded world as a source: questions and pictures made from a seed, in parallel."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlgenrm_ray.curation.sources.candidate import Candidate
from vlgenrm_ray.curation.sources.pieces import Opened
from vlgenrm_ray.data.arrow import to_table
from vlgenrm_ray.data.flow import LIGHT
from vlgenrm_ray.records import Question
from vlgenrm_ray.settings import digest
from vlgenrm_ray.shapes import world
from vlgenrm_ray.shapes.pairs import gold_pairs
from vlgenrm_ray.shapes.scenes import Split

if TYPE_CHECKING:
    import pyarrow as pa

_PIECE_ROWS = 64


def open_shapes(folder: Path, *, seed: int, split: Split, count: int, labelled: bool) -> Opened:
    """`count` questions of the world, whose pictures go to `folder`; `labelled` ones come with a pair of answers."""
    import pyarrow as pa
    import ray.data

    starts = list(range(0, count, _PIECE_ROWS))
    plan = pa.table({"start": starts, "count": [min(_PIECE_ROWS, count - s) for s in starts]})
    return Opened(
        rows=ray.data.from_arrow(plan).map_batches(_Make(folder, seed, split, labelled), batch_size=1, **LIGHT),
        total=count,
        data_hash=digest(["shapes", seed, split, count, labelled]),
    )


@dataclass(frozen=True)
class _Make:
    folder: Path
    seed: int
    split: Split
    labelled: bool

    def __call__(self, plan: "pa.Table") -> "Iterator[pa.Table]":
        for piece in plan.to_pylist():
            yield to_table(Candidate, self._made(piece["start"], piece["count"]))

    def _made(self, start: int, count: int) -> Iterator[Candidate]:
        if self.labelled:
            for pair in gold_pairs(self.folder, seed=self.seed, split=self.split, start=start, count=count):
                yield replace(_candidate(pair.question), chosen=pair.chosen, rejected=pair.rejected)
        else:
            made = world.questions(self.folder, seed=self.seed, split=self.split, start=start, count=count)
            yield from map(_candidate, made)


def _candidate(question: Question) -> Candidate:
    return Candidate(
        id=question.id,
        name=question.id,
        image_uri=question.image.uri,
        text=question.text,
        kind=question.kind,
        reference=question.reference,
    )
