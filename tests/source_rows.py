"""Rows of data sets, read by a schema as the tasks of the pool read them."""

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from vlgenrm_ray.curation.sources.container import Container
from vlgenrm_ray.curation.sources.files import DataFile
from vlgenrm_ray.curation.sources.rows import Columns, SourceRow
from vlgenrm_ray.curation.sources.schema import COLUMNS, RowReader, rank_schemas
from vlgenrm_ray.curation.sources.stream import PieceReader


def png(side: int = 16, colour: str = "red") -> bytes:
    """Return a square picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def png_base64(side: int = 16) -> str:
    """Return a square picture in base64."""
    return base64.b64encode(png(side)).decode()


def parse_row(
    row: object,
    *,
    id: str = "d.jsonl:1",
    folder: str = "/data",
    schema: str = COLUMNS,
    columns: Columns = Columns(),  # noqa: B008 (immutable)
) -> SourceRow:
    """Read a row that holds one question."""
    (parsed,) = parse_rows(row, id=id, folder=folder, schema=schema, columns=columns)
    return parsed


def parse_rows(
    row: object,
    *,
    id: str = "d.jsonl:1",
    folder: str = "/data",
    schema: str = COLUMNS,
    columns: Columns = Columns(),  # noqa: B008 (immutable)
) -> list[SourceRow]:
    """Read all questions of a row."""
    return RowReader(schema=schema, columns=columns).read(row, id=id, folder=folder)


def recognise_and_parse(*rows: dict[str, Any], folder: str = "/data") -> tuple[str, list[SourceRow]]:
    """Return the schema that fits some rows best, and their questions."""
    name = rank_schemas(rows)[0][0]
    return name, [question for row in rows for question in parse_rows(row, folder=folder, schema=name)]


def read_file(container: Container, path: Path, schema: str = COLUMNS) -> list[SourceRow]:
    """Index and read a file as the stage does."""
    codecs = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
    file = DataFile(uri=str(path), name=path.name, size=path.stat().st_size, codec=codecs.get(path.suffix, ""))
    reader = PieceReader(container, RowReader(schema=schema, columns=Columns()))
    rows: list[SourceRow] = []
    number = 1
    for piece in container.split(file):
        index = reader.index(piece)
        assert len(index.row_lines) == len(index.id_hashes)
        rows += reader.read(piece, number, {}, frozenset())
        number += index.num_lines
    return rows
