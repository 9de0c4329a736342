"""Data sources of the pool: the settings, the table of sources, and opening.

A source is the embedded world, a run folder, the judge prompts of one, a function of yours, or files. Files have a
*container*, which yields raw rows (see `container.py`), and a *schema*, which makes questions of them (see
`schema.py`); both are recognised unless the recipe names them. `vlgenrm inspect FILE` shows what they are taken for.
"""

import os
import warnings
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from vlgenrm_ray import plugins
from vlgenrm_ray.curation.sources.container import CONTAINERS, Container, load_container
from vlgenrm_ray.curation.sources.judge_prompts import JUDGE_PROMPTS, SPLITS
from vlgenrm_ray.curation.sources.rows import Columns
from vlgenrm_ray.curation.sources.sample import FILES, iterate_pieces, row_reader, take_sample, unused_columns
from vlgenrm_ray.curation.sources.schema import AUTO, SCHEMAS
from vlgenrm_ray.curation.sources.stream import OpenedSource, PieceReader, read_pieces
from vlgenrm_ray.data import addresses
from vlgenrm_ray.settings import Settings

SHAPES = "shapes"
RUN = "run"
SHAPES_HARD = "shapes-hard"
SOURCES = {
    **CONTAINERS,
    FILES: "vlgenrm_ray.curation.sources.container:Container",
    SHAPES: "vlgenrm_ray.curation.sources.shapes:open_shapes",
    RUN: "vlgenrm_ray.curation.sources.run_folder:open_run_folder",
    JUDGE_PROMPTS: "vlgenrm_ray.curation.sources.judge_prompts:open_judge_prompts",
    SHAPES_HARD: "vlgenrm_ray.curation.sources.shapes:open_shapes",
}
"""Source -> container, or function that opens the source."""
_WORLD_SPLITS = {SHAPES: ("train", "heldout", "test"), SHAPES_HARD: ("train", "validation", "test")}
"""Embedded world -> its splits."""

# A deprecated method of pydantic's models has the name; nothing here calls it.
warnings.filterwarnings("ignore", 'Field name "schema" in "SourceConfig" shadows', UserWarning)


class SourceConfig(Settings):
    """The data that questions are read from."""

    labelled: ClassVar[bool] = False
    """Embedded worlds: give each question a true and a wrong answer, by ground truth; see `HeldoutConfig`."""

    source: str = SHAPES
    """`files` (of any format, recognised by their content), a format by name (`jsonl`, `json`, `parquet`, `arrow`,
    `csv`, `webdataset`), an embedded world (`shapes`, `shapes-hard`), `run` (the preference pairs of a run folder),
    `judge_prompts` (prompts about those pairs, to train the run's judge as a policy), or an import path
    `package.module:Name` of your own."""
    path: str | None = None
    """A file, a folder or a pattern; a local path or a URI of a store (`s3://`, `gs://`, `az://`, ...). `run` and
    `judge_prompts`: the run folder."""
    schema: str = AUTO  # type: ignore[assignment]
    """Form of the rows: `auto` (recognised by the columns), a name that `vlgenrm inspect` prints, or an import path
    `package.module:Name` of your own."""
    columns: Columns = Columns()
    """Names of columns, where they are not the usual ones."""
    image_folder: str | None = None
    """Folder that relative image paths refer to; default: the folder of the data file. Images of network addresses,
    which are not fetched, are looked up in it by their file names."""
    split: str | None = None
    """Part of an embedded world: `train` (default), `heldout` or `test` of `shapes`; `train`, `validation` or `test` of
    `shapes-hard`. `judge_prompts`: `heldout`, a tenth of the images, or `train`, the others; default: all. Files: the
    split to read from a folder that holds several."""
    count: int = Field(default=500, ge=1)
    """Embedded worlds: number of questions."""
    seed: int | None = None
    """Embedded worlds: seed. None: the seed of the run."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further settings for a source of your own; `csv`: `delimiter`; `judge_prompts`: settings of the judge that differ
    from the run's, such as `kind`."""

    @field_validator("source")
    @classmethod
    def _is_known(cls, source: str) -> str:
        return plugins.check_name(source, SOURCES)

    @field_validator("schema")
    @classmethod
    def _is_known_schema(cls, schema: str) -> str:
        return schema if schema == AUTO else plugins.check_name(schema, SCHEMAS)

    @model_validator(mode="after")
    def _is_consistent(self) -> "SourceConfig":
        if self.source in (FILES, RUN, *CONTAINERS) and not self.path:
            raise ValueError(f"source '{self.source}' needs pool.path: a file, a folder or a pattern")
        if self.options and self.source in SOURCES and self.source not in ("csv", JUDGE_PROMPTS):
            raise ValueError(f"source '{self.source}' has no options; remove them, or give an import path as source")
        if self.source == JUDGE_PROMPTS and not self.path:
            raise ValueError(f"source '{self.source}' needs pool.path: the folder of a reward-model run")
        if self.source == JUDGE_PROMPTS and self.split not in (None, *SPLITS):
            raise ValueError(f"split '{self.split}' of {self.source} is unknown; choose from {', '.join(SPLITS)}")
        splits = _WORLD_SPLITS.get(self.source)
        if splits and self.split not in (None, *splits):
            raise ValueError(
                f"split '{self.split}' is not in the world '{self.source}'; choose from {', '.join(splits)}"
            )
        return self

    @field_validator("image_folder")
    @classmethod
    def _make_absolute(cls, folder: str | None) -> str | None:
        return absolute(folder)

    def is_embedded_world(self) -> bool:
        """Return True if the questions come from an embedded world, whose ground truth can measure the stages."""
        return self.source in _WORLD_SPLITS

    def reads_files(self) -> bool:
        """Return True if the rows come from files, which can be sampled without an engine."""
        if self.is_embedded_world() or self.source in (RUN, JUDGE_PROMPTS):
            return False
        opener = plugins.load(self.source, SOURCES, "pool.source")
        return isinstance(opener, type) and issubclass(opener, Container)


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
    if not config.reads_files():
        opener = plugins.load(config.source, SOURCES, "pool.source")
        opened: OpenedSource = opener(config, image_store, seed if config.seed is None else config.seed)
        return opened
    sample = take_sample(config)
    container = load_container(sample.group.container, config.options)
    reader = PieceReader(container, row_reader(config, sample.schema))
    report = {
        "format": container.title or sample.group.container,
        "schema": sample.schema,
        "unused_columns": unused_columns(reader.reader, sample),
    }
    return read_pieces(reader, list(iterate_pieces(container, sample.group.files)), report)
