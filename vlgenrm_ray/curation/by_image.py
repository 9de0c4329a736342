"""Responses, brought together by their image, so that each image is opened and looked at once.

A shuffle of everything would hold the stage up until its input is read. But nearly always an image's responses lie in
one shard already: those are grouped where they lie, and only images that several shards speak of are sorted together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data import flow
from vlgenrm_ray.data.arrow import arrow_schema
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.records import Response

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_SHA256 = "records.list.element.question.image.sha256"


def index(source: StageFolder) -> tuple[int, list[str]]:
    """How many images a responses stage speaks of, and which of them stand in more than one shard. Reads one column."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    shards = []
    for path in source.shards():
        records = pq.ParquetFile(path).read(columns=[_SHA256]).column("records").combine_chunks()
        shards.append(_image_ids(records.flatten()).unique())
    counted = pa.chunked_array(shards, pa.string()).value_counts()
    several = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
    return len(counted), several.to_pylist()


def grouped(source: StageFolder) -> "tuple[Dataset, int]":
    """Rows of `id` (an image's sha256) and `responses` (all that speak of it), and how many there will be."""
    import pyarrow as pa
    import ray
    import ray.data

    source.data_hash()
    total, several = index(source)
    paths = ray.data.from_arrow(pa.table({"path": [str(p) for p in source.shards()]}))
    if not several:
        return paths.map_batches(_GroupShards(None), **flow.LIGHT), total
    apart = ray.put(pa.array(several, pa.string()))
    scattered = paths.map_batches(_Scattered(apart), **flow.LIGHT).sort("id").map_batches(group, **_WHOLE_BLOCKS)
    return paths.map_batches(_GroupShards(apart), **flow.LIGHT).union(scattered), total


# After a sort all rows of one key are in one block.
_WHOLE_BLOCKS: dict[str, Any] = {**flow.LIGHT, "batch_size": None}


@dataclass(frozen=True)
class _GroupShards:
    """Shards -> the images that stand in one shard alone."""

    apart: Any

    def __call__(self, paths: "pa.Table") -> "Iterator[pa.Table]":
        for rows in _responses(paths):
            yield group(_split(rows, self.apart, scattered=False))


@dataclass(frozen=True)
class _Scattered:
    """Shards -> the responses whose image stands in several."""

    apart: Any

    def __call__(self, paths: "pa.Table") -> "Iterator[pa.Table]":
        for rows in _responses(paths):
            yield _split(rows, self.apart, scattered=True)


def _responses(paths: "pa.Table") -> "Iterator[pa.Table]":
    """For each shard its responses, as rows of `id` (the image's) and `response`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths.column("path").to_pylist():
        records = pq.read_table(path, columns=["records"]).column("records").combine_chunks().flatten()
        yield pa.table({"id": _image_ids(records), "response": records})


def _image_ids(responses: "pa.StructArray") -> "pa.Array":
    import pyarrow.compute as pc

    return pc.struct_field(responses, ["question", "image", "sha256"])


def _split(rows: "pa.Table", apart: Any, *, scattered: bool) -> "pa.Table":
    import pyarrow.compute as pc
    import ray

    if apart is None:
        return rows
    chosen = pc.is_in(rows.column("id"), value_set=ray.get(apart))
    return rows.filter(chosen if scattered else pc.invert(chosen))


def group(rows: "pa.Table") -> "pa.Table":
    """Rows of one response each -> rows of one image each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = rows.append_column("name", pc.struct_field(rows.column("response"), "id"))
    rows = rows.sort_by([("id", "ascending"), ("name", "ascending")])
    # Not Table.group_by: its groups come in no promised order, and here the k-th list must belong to the k-th id.
    runs = pc.run_end_encode(rows.column("id").combine_chunks(), run_end_type=pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), runs.run_ends])
    kind = pa.struct(list(arrow_schema(Response)))
    responses = pa.concat_arrays([chunk.cast(kind) for chunk in rows.column("response").chunks] or [pa.array([], kind)])
    return pa.table({"id": runs.values, "responses": pa.ListArray.from_arrays(offsets, responses)})
