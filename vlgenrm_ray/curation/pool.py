"""Reads a data set, or the embedded world. Writes Question.

A unit is one row of the source. Every image is opened once, here, to see that it is there and whole; from here on
rows carry its address and its hash. Bytes that came inside rows are stored under `<run>/pool/images/`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse

from pydantic import Field, field_validator, model_validator

from vlgenrm_ray.curation.sources.candidate import Candidate
from vlgenrm_ray.curation.sources.columns import Columns
from vlgenrm_ray.data import flow, images
from vlgenrm_ray.data.arrow import from_table
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.errors import DropReason, InputError, StageError
from vlgenrm_ray.records import Dropped, ImageRef, Question
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from vlgenrm_ray.curation.sources.pieces import Opened

STAGE = "pool"


class PoolConfig(Settings):
    """Where the questions come from."""

    source: Literal["shapes", "jsonl", "parquet"] = "shapes"
    path: str | None = None
    """`jsonl`, `parquet`: a file, a folder or a pattern; a path or a URI that pyarrow opens (`s3://`, `gs://`, ...)."""
    columns: Columns = Columns()
    """Names of columns that are not the usual ones."""
    image_folder: str | None = None
    """Where relative image paths begin; default: beside the data file."""
    image_root: str | None = None
    """If given, no image outside this folder is opened, whatever rows, `..` or symbolic links say."""
    name: str = ""
    """Name of the data set in the records; default: the file's."""
    split: Literal["train", "heldout", "test"] = "train"
    """`shapes`: which part of the world."""
    count: int = Field(default=500, ge=1)
    """`shapes`: how many questions."""
    seed: int | None = None
    """`shapes`: of the world. None: the run's."""
    labelled: bool = False
    """`shapes`: each question comes with a true and a wrong answer, by ground truth. For held-out pairs alone."""
    limits: ImageLimits = ImageLimits()
    num_cpus: float = Field(default=1.0, gt=0)
    """CPUs of each task that opens images."""

    @model_validator(mode="after")
    def _has_path(self) -> "PoolConfig":
        if self.source != "shapes" and not self.path:
            raise ValueError(f"source '{self.source}' needs pool.path: a file, a folder or a pattern")
        return self

    @field_validator("image_folder", "image_root")
    @classmethod
    def _absolute(cls, folder: str | None) -> str | None:
        # Tasks run in other working directories than the one the user typed the path in.
        return folder if not folder or urlparse(folder).scheme else os.path.abspath(folder)


def settle(candidate: Candidate, config: PoolConfig, folder: Path) -> Unit[Question]:
    """One row -> its question, or why not. Opens the image; stores its bytes in `folder` if they came in the row."""
    where = candidate.id
    if candidate.problem:
        return _drop(where, where, DropReason.MALFORMED_ROW, candidate.problem)
    if candidate.first:
        detail = f"{where}: id {candidate.name!r} first stands in {candidate.first}"
        return _drop(where, where, DropReason.DUPLICATE_ID, detail)
    try:
        image = _image(candidate, config, folder)
    except ImageError as error:
        return _drop(where, candidate.name, error.reason, f"{where}: {error.detail}")
    question = Question(
        id=candidate.name,
        image=image,
        text=candidate.text,
        source=config.name or Path(config.path or config.source).stem,
        kind=candidate.kind,
        reference=candidate.reference,
        chosen=candidate.chosen,
        rejected=candidate.rejected,
    )
    return Unit(id=where, records=(question,))


def _image(candidate: Candidate, config: PoolConfig, folder: Path) -> ImageRef:
    if candidate.image_bytes is not None:
        return images.keep(candidate.image_bytes, folder, config.limits)
    assert candidate.image_uri is not None, "a candidate without a problem has an image"
    if config.image_root and not within(candidate.image_uri, config.image_root):
        raise ImageError(
            DropReason.IMAGE_OUTSIDE_ROOT, f"{candidate.image_uri}: outside pool.image_root {config.image_root}"
        )
    return images.probe(candidate.image_uri, config.limits)


def within(uri: str, root: str) -> bool:
    """Whether a path or URI lies in `root` once `..` and, on this machine, symbolic links are followed."""
    schemes = urlparse(uri).scheme, urlparse(root).scheme
    if any(s not in ("", "file") for s in schemes):
        mine, its = urlparse(uri), urlparse(root)
        inner, outer = os.path.normpath(mine.path), os.path.normpath(its.path)
        return (mine.scheme, mine.netloc) == (its.scheme, its.netloc) and Path(inner).is_relative_to(outer)
    path, base = (urlparse(u).path if s else u for u, s in zip((uri, root), schemes, strict=True))
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(base))


def _drop(unit: str, id: str, reason: DropReason, detail: str) -> Unit[Question]:
    return Unit(id=unit, dropped=(Dropped(stage=STAGE, id=id, reason=reason, detail=detail),))


@dataclass(frozen=True)
class _Settle:
    config: PoolConfig
    folder: Path

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        return units_table(Question, (settle(c, self.config, self.folder) for c in from_table(Candidate, rows)))


def run(config: PoolConfig, *, target: StageFolder, seed: int = 0) -> Manifest:
    """Fill `target` with the pool's questions. `seed`: the run's, if the configuration has none.

    Raises InputError if the data cannot be read or hold no row, StageError if no row is of use.
    """
    folder = target.path / "images"
    opened = _open(config, folder, seed if config.seed is None else config.seed)
    if not opened.total:
        raise InputError(f"pool.path: {config.path!r} holds no rows; give a file with at least one question")
    manifest = flow.run(
        target,
        opened.rows,
        lambda rows: rows.map_batches(
            _Settle(config, folder), num_cpus=config.num_cpus, batch_format="pyarrow", zero_copy_batch=True
        ),
        total=opened.total,
        fingerprint=config.fingerprint(),
        inputs={"source": opened.data_hash},
    )
    if not manifest.rows_out:
        first = next(target.dropped())
        counts = ", ".join(f"{reason} {count}" for reason, count in manifest.dropped.items())
        raise StageError(
            f"pool is empty: none of {manifest.rows_in} rows of {config.path or config.source!r} can be used "
            f"({counts}). The first: {first.detail or first.id}. "
            f"Mend the data, or name its columns under pool.columns, then delete {target.path} and run again"
        )
    return manifest


def _open(config: PoolConfig, folder: Path, seed: int) -> "Opened":
    if config.source == "shapes":
        from vlgenrm_ray.curation.sources.shapes import open_shapes

        return open_shapes(folder, seed=seed, split=config.split, count=config.count, labelled=config.labelled)
    assert config.path is not None, "checked by the configuration"
    if config.source == "jsonl":
        from vlgenrm_ray.curation.sources.jsonl import open_jsonl

        return open_jsonl(config.path, config.columns, config.image_folder)
    from vlgenrm_ray.curation.sources.parquet import open_parquet

    return open_parquet(config.path, config.columns, config.image_folder)
