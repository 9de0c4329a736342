"""The preference pairs of a run folder as a source: questions with a chosen and a rejected response."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlgenrm_ray.curation.sources.rows import SourceRow
from vlgenrm_ray.curation.sources.stream import OpenedSource
from vlgenrm_ray.curation.sources.values import SourceImage
from vlgenrm_ray.data.arrow import from_row, to_table
from vlgenrm_ray.data.flow import read_shards
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.records import Preference

if TYPE_CHECKING:
    import pyarrow as pa

    from vlgenrm_ray.curation.sources import SourceConfig

_STAGE = "preferences"


def open_run_folder(config: "SourceConfig", image_store: Path, seed: int) -> OpenedSource:
    """Open the preference pairs of the run folder `config.path`. The id of a question is that of its pair.

    Raises:
        InputError: There is no such folder, or its preferences are not complete.
    """
    path = Path(config.path or "").absolute()
    folder = StageFolder(path if path.name == _STAGE else path / _STAGE)
    manifest = folder.manifest()
    if manifest is None:
        raise InputError(
            f"pool.path: {config.path!r} has no complete preferences; name the folder of a reward-model run "
            "(`vlgenrm run`) that has finished this stage"
        )
    return OpenedSource(
        rows=read_shards(folder, _ReadPairs(folder)),
        total=manifest.rows_out,
        data_hash=folder.data_hash(),
    )


@dataclass(frozen=True)
class _ReadPairs:
    folder: StageFolder

    def __call__(self, paths: "pa.Table") -> "Iterator[pa.Table]":
        for shard in paths.column("path").to_pylist():
            rows = self.folder.read_records(Path(shard)).to_pylist()
            yield to_table(SourceRow, (_source_row(from_row(Preference, row)) for row in rows))


def _source_row(pair: Preference) -> SourceRow:
    question = pair.question
    return SourceRow(
        id=pair.id,
        question_id=pair.id,
        group=question.group or question.id,
        images=tuple(SourceImage(uri=image.uri) for image in question.images),
        text=question.text,
        kind=pair.kind or question.kind,
        reference=question.reference,
        chosen=pair.chosen,
        rejected=pair.rejected,
    )
