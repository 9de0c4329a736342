"""Groups responses by image, so that the experts open and examine each image once.

A shuffle of all rows would block the stage until its input is read. But nearly always the responses about an image lie
in one shard: those are grouped within the shard, and only images that occur in several shards are sorted together.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data import flow
from vlgenrm_ray.data.arrow import arrow_schema
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.records import Response

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_SHA256 = "question.image.sha256"


def count_images(source: StageFolder) -> tuple[int, list[str]]:
    """Count the images of a responses stage, and list those that occur in several shards. Reads one column.

    Returns:
        The number of distinct images, and the sha256 of each image in more than one shard.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    images_of_shards = []
    for path in source.shards():
        responses = source.read_records(path, columns=[_SHA256]).to_struct_array().combine_chunks()
        images_of_shards.append(_image_ids(responses).unique())
    counts = pa.chunked_array(images_of_shards, pa.string()).value_counts()
    in_several = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    return len(counts), in_several.to_pylist()


def group_by_image(source: StageFolder) -> "tuple[Dataset, int]":
    """Group the responses of a complete stage by image.

    Returns:
        A dataset with the columns `id` (an image's sha256) and `responses` (all about it), and its number of rows.
    """
    import pyarrow as pa
    import ray

    source.data_hash()
    total, in_several = count_images(source)
    if not in_several:
        return flow.read_shards(source, _GroupShard(source, None)), total
    scattered_ids = ray.put(pa.array(in_several, pa.string()))
    scattered = flow.read_shards(source, _ReadScattered(source, scattered_ids))
    grouped = scattered.sort("id").map_batches(group_rows, **_WHOLE_BLOCKS)
    return flow.read_shards(source, _GroupShard(source, scattered_ids)).union(grouped), total


# After a sort all rows with one key are in one block.
_WHOLE_BLOCKS: dict[str, Any] = {**flow.LIGHT, "batch_size": None}


@dataclass(frozen=True)
class _GroupShard:
    """Groups the responses about images that occur in one shard only."""

    source: StageFolder
    scattered_ids: Any
    """Ray reference to the ids of images in several shards; None if there are none."""

    def __call__(self, paths: "pa.Table") -> "Iterator[pa.Table]":
        for rows in _read_responses(self.source, paths):
            yield group_rows(_filter_scattered(rows, self.scattered_ids, scattered=False))


@dataclass(frozen=True)
class _ReadScattered:
    """Reads the responses about images that occur in several shards."""

    source: StageFolder
    scattered_ids: Any

    def __call__(self, paths: "pa.Table") -> "Iterator[pa.Table]":
        for rows in _read_responses(self.source, paths):
            yield _filter_scattered(rows, self.scattered_ids, scattered=True)


def _read_responses(source: StageFolder, paths: "pa.Table") -> "Iterator[pa.Table]":
    """Yield for each shard its responses, with the columns `id` (the image's) and `response`."""
    import pyarrow as pa

    for path in paths.column("path").to_pylist():
        responses = source.read_records(Path(path)).to_struct_array().combine_chunks()
        yield pa.table({"id": _image_ids(responses), "response": responses})


def _image_ids(responses: "pa.StructArray") -> "pa.Array":
    import pyarrow.compute as pc

    return pc.struct_field(responses, ["question", "image", "sha256"])


def _filter_scattered(rows: "pa.Table", scattered_ids: Any, *, scattered: bool) -> "pa.Table":
    import pyarrow.compute as pc
    import ray

    if scattered_ids is None:
        return rows
    is_scattered = pc.is_in(rows.column("id"), value_set=ray.get(scattered_ids))
    return rows.filter(is_scattered if scattered else pc.invert(is_scattered))


def group_rows(rows: "pa.Table") -> "pa.Table":
    """Turn rows of one response each into rows of one image each."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = rows.append_column("name", pc.struct_field(rows.column("response"), "id"))
    rows = rows.sort_by([("id", "ascending"), ("name", "ascending")])
    # Not Table.group_by: it promises no order of groups, and here the k-th list must belong to the k-th id.
    runs = pc.run_end_encode(rows.column("id").combine_chunks(), run_end_type=pa.int32())
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), runs.run_ends])
    kind = pa.struct(list(arrow_schema(Response)))
    responses = pa.concat_arrays([chunk.cast(kind) for chunk in rows.column("response").chunks] or [pa.array([], kind)])
    return pa.table({"id": runs.values, "responses": pa.ListArray.from_arrays(offsets, responses)})
