"""WebDataset: a tar in which the files of one name make a row: `000.jpg`, `000.json`, `000.txt`.

The fields of `.json` become columns, `.txt` and `.cls` the columns `text` and `cls`, and every image an entry of
`images`, which takes precedence over paths in the JSON.
"""

import json
import tarfile
from collections.abc import Iterator
from typing import Any

from vlgenrm_ray.curation.sources.container import Container
from vlgenrm_ray.curation.sources.files import DataFile
from vlgenrm_ray.curation.sources.values import MalformedRowError

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "img")
_TEXTS = {"txt": "text", "text": "text", "caption": "text", "cls": "cls", "id": "id"}
_MAX_MEMBER = 512 * 1024 * 1024


class WebDataset(Container):
    """Tar files, read in their order; the files of one row follow each other."""

    title = "WebDataset (tar)"
    suffixes = (".tar", ".tgz")

    def recognise(self, file: DataFile, head: bytes) -> str:
        """See `Container.recognise`."""
        return "tar's mark" if head[257:262] == b"ustar" else ""

    def rows(self, file: DataFile) -> Iterator[object]:
        """See `Container.rows`."""
        with file.reader() as reader, tarfile.open(fileobj=reader, mode="r|") as archive:
            row = _TarRow("")
            for member in archive:
                name = member.name.rpartition("/")[2]
                if not member.isfile() or name.startswith("."):
                    continue
                stem, _, extension = name.partition(".")
                key = member.name[: len(member.name) - len(name)] + stem
                if key != row.key:
                    if row.key:
                        yield row.finish()
                    row = _TarRow(key)
                row.add(extension.lower(), archive, member)
            if row.key:
                yield row.finish()
            # The reader of a stream takes any end within or before a header for the end of the archive, but only one
            # whose mark was read lies behind the last member by whole blocks.
            read = 0 if archive.fileobj is None else archive.fileobj.tell() - archive.offset
            if read <= 0 or read % tarfile.BLOCKSIZE:
                yield MalformedRowError("the archive has no end mark; it may be cut off after this row")


class _TarRow:
    """The files of one name."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._fields: dict[str, Any] = {}
        self._images: list[bytes] = []
        self._problem: MalformedRowError | None = None

    def add(self, extension: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Add a file. One that cannot be used makes the row malformed."""
        if member.size > _MAX_MEMBER:
            self._problem = MalformedRowError(f"{member.name} has {member.size} bytes, limit {_MAX_MEMBER}")
            return
        opened = archive.extractfile(member)
        data = b"" if opened is None else opened.read()
        name, _, last = extension.rpartition(".")
        if last in _IMAGE_SUFFIXES:
            self._images.append(data)
        elif last == "json":
            try:
                value = json.loads(data)
            except (ValueError, RecursionError) as error:
                self._problem = MalformedRowError(f"{member.name}: not JSON: {error}")
                return
            self._fields.update(value if isinstance(value, dict) else {name or "json": value})
        else:
            self._fields[_TEXTS.get(last, extension)] = data.decode("utf-8", "backslashreplace")

    def finish(self) -> object:
        """Return the row, or the error that says why it is malformed."""
        images = {"images": self._images} if self._images else {}
        return self._problem or {"__key__": self.key} | self._fields | images
