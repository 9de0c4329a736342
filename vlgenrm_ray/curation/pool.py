"""The pool stage: reads a data set, or the embedded world. Writes Question.

A unit is one row of the source. Every image is opened once, here, to check that it exists and can be decoded; from here
on rows carry its address and its hash. Images that came as bytes within rows are stored under `<run>/pool/images/`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote, urlsplit

from pydantic import field_validator

from vlgenrm_ray.curation.sources import SourceConfig, absolute, open_source
from vlgenrm_ray.curation.sources.rows import SourceRow, encodable
from vlgenrm_ray.curation.sources.values import SourceImage
from vlgenrm_ray.data import addresses, flow, images
from vlgenrm_ray.data.arrow import from_table
from vlgenrm_ray.data.faults import MAX_DROPPED
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.errors import DropReason, InputError, StageError
from vlgenrm_ray.records import Dropped, ImageRef, Question
from vlgenrm_ray.settings import ANY_VALUE, RemovedSetting

if TYPE_CHECKING:
    import pyarrow as pa

STAGE = "pool"
_NUM_CPUS = 1.0
"""CPUs of a task, which decodes the images of a block and commits its rows."""
_MAX_BLOCK_ROWS = 512
"""Rows per block at most: each may carry the bytes of an image."""


class PoolConfig(SourceConfig):
    """The source of the questions, and the checks of its images."""

    renamed: ClassVar = {"limits": "images"}
    removed: ClassVar = {
        "num_cpus": RemovedSetting(1.0, "Ray runs as many of these tasks at once as there are CPUs"),
        "labelled": RemovedSetting(False, "only the held-out pairs of a reward model are labelled by ground truth"),
    }

    image_root: str | None = None
    """Open no image outside this folder, even if a row names it directly, by `..` or by a symbolic link."""
    name: str = ""
    """Name of the data set in the records; default: the name of the file."""
    images: ImageLimits = ImageLimits()
    """Limits that each image must be within to enter the pool."""

    @field_validator("image_root")
    @classmethod
    def _make_root_absolute(cls, folder: str | None) -> str | None:
        return absolute(folder)


class HeldoutConfig(PoolConfig):
    """The source of the held-out pairs. Those of `shapes` are labelled by ground truth, which only measures."""

    removed: ClassVar = {"labelled": RemovedSetting(ANY_VALUE, "remove it: held-out pairs are always labelled")}

    labelled: ClassVar[bool] = True


Probe = Callable[[str, ImageLimits], ImageRef]
"""Opens an image by its address to check it, as `images.probe` does."""


def resolve_row(row: SourceRow, config: PoolConfig, image_store: Path, probe: Probe = images.probe) -> Unit[Question]:
    """Build the unit of one row: its question, or a `Dropped` that states why the row cannot be used.

    Opens the image to check it, and stores it if it came as bytes.

    Args:
        row: The row.
        config: Settings of the stage.
        image_store: Folder for images that came as bytes.
        probe: Opens the other images.
    """
    if row.problem:
        return _drop(row, row.id, DropReason(row.reason), row.problem)
    try:
        image, *more_images = [_open_image(image, config, image_store, probe) for image in row.images]
    except ImageError as error:
        return _drop(row, row.question_id, error.reason, f"{row.id}: {error.detail}")
    # `images` turns all failures to read into ImageError; this is the image store, which every row needs.
    except OSError:
        raise
    # A row may be wrong in ways that nobody foresaw; it must not end the run.
    except Exception as error:
        detail = f"{row.id}: {type(error).__name__}: {error}"
        return _drop(row, row.question_id, DropReason.MALFORMED_ROW, detail)
    question = Question(
        id=row.question_id,
        image=image,
        more_images=tuple(more_images),
        text=row.text,
        source=config.name or Path(config.path or config.source).stem,
        kind=row.kind,
        group=row.group,
        reference=row.reference,
        chosen=row.chosen,
        rejected=row.rejected,
    )
    return Unit(id=row.id, records=(question,))


def _open_image(image: SourceImage, config: PoolConfig, image_store: Path, probe: Probe) -> ImageRef:
    if image.data is not None:
        return images.keep(image.data, image_store, config.images)
    assert image.uri is not None, "an image has bytes or an address"
    check_root(image.uri, config)
    return probe(image.uri, config.images)


def check_root(uri: str, config: PoolConfig) -> None:
    """Raise ImageError if an image is outside `config.image_root`."""
    if config.image_root and not is_within(uri, config.image_root):
        detail = f"{uri}: outside pool.image_root {config.image_root}"
        raise ImageError(DropReason.IMAGE_OUTSIDE_ROOT, detail)


def is_within(uri: str, root: str) -> bool:
    """Return True if a path or URI lies in `root`, after `..` and local symbolic links are resolved."""
    try:
        path, folder = addresses.local_path(uri), addresses.local_path(root)
        if path is not None and folder is not None:
            return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
        if path is not None or folder is not None:
            return False
        address, base = urlsplit(uri), urlsplit(root)
    # A NUL, half a surrogate pair, an incomplete IPv6 address.
    except ValueError:
        return False
    inner, outer = (os.path.normpath(unquote(part.path)) for part in (address, base))
    return (address.scheme, address.netloc) == (base.scheme, base.netloc) and Path(inner).is_relative_to(outer)


def _drop(row: SourceRow, id: str, reason: DropReason, detail: str) -> Unit[Question]:
    dropped = Dropped(stage=STAGE, id=encodable(id), reason=reason, detail=encodable(detail))
    return Unit(id=encodable(row.id), dropped=(dropped,))


@dataclass(frozen=True)
class _ResolveRows:
    config: PoolConfig
    image_store: Path

    def __call__(self, rows: "pa.Table") -> "pa.Table":
        # Data sets ask several questions about an image, mostly in rows that follow each other.
        probe = lru_cache(maxsize=None)(images.probe)
        units = (resolve_row(row, self.config, self.image_store, probe) for row in from_table(SourceRow, rows))
        return units_table(Question, units)


def run(config: PoolConfig, *, target: StageFolder, seed: int = 0, max_dropped: float = MAX_DROPPED) -> Manifest:
    """Write the questions of the pool to `target`.

    Args:
        config: Settings of this stage.
        target: Folder of this stage.
        seed: Seed of the run, used if the configuration has none.
        max_dropped: Largest share of rows that may be dropped because of a fault.

    Raises:
        InputError: The data cannot be read, or have no rows.
        ConfigError: `target` was made with other settings.
        StageError: No row can be used, or too many met a fault.
    """
    image_store = target.path / "images"
    source = open_source(config, image_store=image_store, seed=seed)
    if not source.total:
        raise InputError(f"pool.path: {config.path!r} has no rows; give a file with at least one question")
    manifest = flow.run(
        target,
        source.rows,
        lambda rows: rows.map_batches(
            _ResolveRows(config, image_store), num_cpus=_NUM_CPUS, batch_format="pyarrow", zero_copy_batch=True
        ),
        total=source.total,
        block_rows=flow.light_block_rows(source.total, _MAX_BLOCK_ROWS),
        num_cpus=_NUM_CPUS,
        fingerprint=config.fingerprint(),
        inputs={"source": source.data_hash},
        metrics=lambda _folder, _sums: {"source": dict(source.report)} if source.report else {},
        max_dropped=max_dropped,
    )
    if not manifest.rows_out:
        first = next(target.dropped())
        counts = ", ".join(f"{reason} {count}" for reason, count in manifest.dropped.items())
        raise StageError(
            f"pool is empty: none of {manifest.rows_in} rows of {config.path or config.source!r} can be used "
            f"({counts}). The first: {first.detail or first.id}. "
            f"Correct the data, or name its columns under pool.columns, then delete {target.path} and run again"
        )
    return manifest
