"""CSV and TSV with a header, beside a folder of images, or with images in base64 as VLMEvalKit's tables have them."""

import csv
import io
import sys
from collections.abc import Iterator
from itertools import islice

from vlgenrm_ray.curation.sources.container import Container
from vlgenrm_ray.curation.sources.files import DataFile
from vlgenrm_ray.curation.sources.values import MalformedRowError

_DELIMITERS = ",\t;|"


class DelimitedText(Container):
    """CSV or TSV. The delimiter is that of the suffix, or the commonest one of the header; empty cells are missing."""

    title = "CSV or TSV"
    suffixes = (".csv", ".tsv")

    def recognise(self, file: DataFile, head: bytes) -> str:
        """See `Container.recognise`."""
        return f"suffix {file.suffix}" if file.suffix in self.suffixes and b"\x00" not in head[:1024] else ""

    def rows(self, file: DataFile) -> Iterator[object]:
        """See `Container.rows`."""
        # Images in base64 are longer than the default limit.
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
        with file.reader() as reader:
            text = io.TextIOWrapper(reader, encoding="utf-8-sig", errors="surrogateescape", newline="")
            first = text.readline()
            delimiter = self.options.get("delimiter") or _delimiter(first, file.suffix)
            lines = _chain(first, text)
            table = csv.reader(lines, delimiter=delimiter)
            header = [name.strip() for name in next(table, [])]
            if len(set(header)) < len(header):
                repeated = next(name for name in header if header.count(name) > 1)
                yield MalformedRowError(f"the header names the column {repeated!r} twice")
                return
            while row := list(islice(table, 1)):
                yield _to_mapping(header, row[0], table.line_num)


def _to_mapping(header: list[str], cells: list[str], line: int) -> object:
    if len(cells) != len(header):
        return MalformedRowError(f"line {line}: {len(cells)} cells under a header of {len(header)}")
    return {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}


def _delimiter(header: str, suffix: str) -> str:
    if suffix == ".tsv":
        return "\t"
    return max(_DELIMITERS, key=header.count)


def _chain(first: str, rest: io.TextIOWrapper) -> Iterator[str]:
    yield first
    yield from rest
