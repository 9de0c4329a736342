"""Arrow files, as `datasets.save_to_disk` writes them (streams), and in the file format (Feather)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vlgenrm_ray.curation.sources.container import Container
from vlgenrm_ray.curation.sources.containers.parquet import read_batch
from vlgenrm_ray.curation.sources.files import DataFile

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 64


class ArrowFiles(Container):
    """Hugging Face data sets on disk: a folder of `.arrow` files, read batch by batch."""

    title = "Hugging Face data set on disk (Arrow)"
    suffixes = (".arrow", ".feather")

    def recognise(self, file: DataFile, head: bytes) -> str:
        """See `Container.recognise`."""
        if head.startswith(b"ARROW1"):
            return "the first bytes of an Arrow file"
        return "an Arrow stream" if file.suffix in self.suffixes and head.startswith(b"\xff\xff\xff\xff") else ""

    def rows(self, file: DataFile) -> Iterator[object]:
        """See `Container.rows`."""
        with file.open() as opened:
            for batch in _batches(opened):
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield from read_batch(batch.slice(start, _BATCH_ROWS))


def _batches(opened: "pa.NativeFile") -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    is_file = opened.read(6) == b"ARROW1"
    opened.seek(0)
    if not is_file:
        yield from pa.ipc.open_stream(opened)
        return
    reader = pa.ipc.open_file(opened)
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)
