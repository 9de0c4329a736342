"""Data sources of the pool: the settings, the table of formats, and opening.

To add a format, write a subclass of `files.FileFormat` (see README.md of `curation`), or a function
`open(config, image_store, seed) -> OpenedSource`, and add a line to `SOURCES`, or name it in a recipe as
`source: package.module:Name`.
"""

import os
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vlgenrm_ray import plugins
from vlgenrm_ray.curation.sources.files import FileFormat, OpenedSource
from vlgenrm_ray.curation.sources.rows import Columns
from vlgenrm_ray.data import addresses
from vlgenrm_ray.settings import Settings

SOURCES = {
    "jsonl": "vlgenrm_ray.curation.sources.jsonl:JsonLines",
    "parquet": "vlgenrm_ray.curation.sources.parquet:Parquet",
    "shapes": "vlgenrm_ray.curation.sources.shapes:open_shapes",
}
"""Source -> subclass of `FileFormat`, or function that opens the source."""


class SourceConfig(Settings):
    """The data that questions are read from."""

    labelled: ClassVar[bool] = False
    """`shapes`: give each question a true and a wrong answer, by ground truth; see `HeldoutConfig`."""

    source: str = "shapes"
    """`shapes` (the embedded world), `jsonl`, `parquet`, or an import path `package.module:Name` of your own."""
    path: str | None = None
    """A file, a folder or a pattern; a local path or a URI that pyarrow opens (`s3://`, `gs://`, ...)."""
    columns: Columns = Columns()
    """Names of columns, where they are not the usual ones."""
    image_folder: str | None = None
    """Folder that relative image paths refer to; default: the folder of the data file."""
    split: Literal["train", "heldout", "test"] = "train"
    """`shapes`: part of the world."""
    count: int = Field(default=500, ge=1)
    """`shapes`: number of questions."""
    seed: int | None = None
    """`shapes`: seed of the world. None: the seed of the run."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further settings for a source of your own."""

    @field_validator("source")
    @classmethod
    def _is_known(cls, source: str) -> str:
        return plugins.check_name(source, SOURCES)

    @model_validator(mode="after")
    def _is_consistent(self) -> "SourceConfig":
        if self.source in ("jsonl", "parquet") and not self.path:
            raise ValueError(f"source '{self.source}' needs pool.path: a file, a folder or a pattern")
        if self.options and self.source in SOURCES:
            raise ValueError(f"source '{self.source}' has no options; remove them, or give an import path as source")
        return self

    @field_validator("image_folder")
    @classmethod
    def _make_absolute(cls, folder: str | None) -> str | None:
        return absolute(folder)


def absolute(folder: str | None) -> str | None:
    """Make a local folder absolute: tasks run in other working directories than the user's command."""
    return folder if not folder or addresses.scheme(folder) else os.path.abspath(folder)


def open_source(config: SourceConfig, *, image_store: Path, seed: int) -> OpenedSource:
    """Open a source.

    Args:
        config: The source.
        image_store: Folder in which a source stores the images it creates.
        seed: Seed of the run, used if the configuration has none.

    Raises:
        InputError: The data cannot be read.
        ConfigError: An import path cannot be imported.
    """
    opener = plugins.load(config.source, SOURCES, "pool.source")
    if isinstance(opener, type) and issubclass(opener, FileFormat):
        return opener(config.columns, config.image_folder, config.options).open(config.path or "")
    opened: OpenedSource = opener(config, image_store, seed if config.seed is None else config.seed)
    return opened
