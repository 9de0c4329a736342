"""TRL: one Parquet file that `datasets.load_dataset` reads with its images decoded.

Columns, as TRL's DPO, KTO and SFT trainers expect them for vision-language models:

    preferences   images, prompt, chosen, rejected
    critiques     images, prompt, completion, label
    examples      images, prompt, completion

Prompts and responses are lists of messages; the trainers insert the image into the first user message.
"""

import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.records import ImageRef
from vlgenrm_ray.report.exports import ExportRow

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_PER_GROUP = 256


class Trl:
    """Writer of `<out>/<name>.parquet`, images included."""

    embeds_images = True

    def write(self, rows: Iterable[ExportRow], out: Path, name: str) -> Path:
        """Write the rows; see `ExportFormat.write`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = out / f"{name}.parquet"
        remaining = iter(rows)
        batch = [_as_row(row) for row in islice(remaining, _ROWS_PER_GROUP)]
        schema = _schema(tuple(batch[0]) if batch else ())
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            while batch:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = [_as_row(row) for row in islice(remaining, _ROWS_PER_GROUP)]
        return path


def _as_row(row: ExportRow) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": row.id,
        "images": [_as_image(ref) for ref in row.images],
        "prompt": [{"role": "user", "content": row.prompt}],
    }
    response = [{"role": "assistant", "content": row.response}]
    if row.rejected is not None:
        return values | {"chosen": response, "rejected": [{"role": "assistant", "content": row.rejected}]}
    return values | {"completion": response} | ({} if row.label is None else {"label": row.label})


def _as_image(ref: ImageRef) -> dict[str, Any]:
    limits = ImageLimits()
    data = images.portable(images.verify(ref, limits), limits, ref.uri)
    return {"bytes": data, "path": Path(ref.uri).name if "://" not in ref.uri else None}


def _schema(columns: tuple[str, ...]) -> "pa.Schema":
    """Return the Arrow schema, with the features that let `datasets` decode the images."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    text = {"dtype": "string", "_type": "Value"}
    types = {"id": pa.string(), "images": pa.list_(image), "label": pa.bool_()}
    features = {
        "id": text,
        "images": {"feature": {"_type": "Image"}, "_type": "List"},
        "label": {"dtype": "bool", "_type": "Value"},
    }
    messages = {"feature": {"role": text, "content": text}, "_type": "List"}
    fields = [pa.field(name, types.get(name, pa.list_(message))) for name in columns]
    info = {"info": {"features": {name: features.get(name, messages) for name in columns}}}
    return pa.schema(fields, metadata={"huggingface": json.dumps(info)})
