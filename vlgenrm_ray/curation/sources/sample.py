"""A sample of a data set's files: their container, rows from several places, the number of rows, the schema.

Everything is read in the driver within a time limit; no engine and no Ray is needed. A run and `vlgenrm inspect`
recognise a data set by the same functions.
"""

import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from vlgenrm_ray.curation.sources.container import (
    BLANK,
    CONTAINERS,
    Container,
    FilePiece,
    known_suffixes,
    load_container,
    recognise,
)
from vlgenrm_ray.curation.sources.files import DataFile, find_files, is_folder, list_files
from vlgenrm_ray.curation.sources.schema import AUTO, COLUMNS, RowReader, SchemaMatch, load_schema, rank_schemas
from vlgenrm_ray.curation.sources.values import show
from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

    from vlgenrm_ray.curation.sources import SourceConfig

FILES = "files"
"""Source whose container is recognised by the content of the files."""
_METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "meta.json", "package.json")
_CATALOGUE = ("file_name", "annotation", "hf_hub_url")
"""Columns of lists of data sets, as LLaMA-Factory's `dataset_info.json` and MMPR's `meta.json`."""
_BINARY = ("parquet", "arrow", "webdataset")
"""Containers beside which JSON and CSV files of a folder are taken for its description."""
_SPLIT = re.compile(
    r"(?:^|/)(train|training|test|testing|validation|valid|val|dev|eval|heldout)(?=[-_./]|$)", re.IGNORECASE
)
_MAX_CHECKED = 16
"""Files of a folder whose schemas are compared."""
_HEAD_ROWS = 64
_SPREAD_ROWS = 32
_SPREAD_PIECES = 24
_SPREAD_STEP = 100
"""Distance, in rows, between the sampled rows of a file that can only be read from its beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedRow:
    """A raw row with its place."""

    piece: FilePiece
    number: int
    """Number within the piece, from 0."""
    value: object

    @property
    def folder(self) -> str:
        """Folder of the file."""
        return self.piece.file.folder

    def id(self, container: Container) -> str:
        """Return `file:row`. The rows before the piece may have to be counted."""
        return f"{self.piece.file.name}:{container.first_number(self.piece) + self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileGroup:
    """The files of a data set, all of one container."""

    container: str
    reason: str
    """Why they are of this container."""
    files: tuple[DataFile, ...]
    ignored: tuple[str, ...] = ()
    """Names of files beside them that are not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSample:
    """A sample of a data set and what it was recognised as."""

    group: FileGroup
    rows: tuple[LocatedRow, ...]
    num_rows: int
    is_exact: bool
    """False: `num_rows` is estimated."""
    schema: str
    match: SchemaMatch
    alternatives: tuple[tuple[str, SchemaMatch], ...] = ()
    """Other schemas that fit, the best first."""


def kind_of(value: object) -> str:
    """Return the type of a column's value, for people."""
    if value is None:
        return "null"
    if isinstance(value, (list, tuple)):
        inner = sorted({kind_of(v) for v in value})
        return f"list of {inner[0]}" if len(inner) == 1 else "list"
    if isinstance(value, dict):
        return "object"
    kinds = {"str": "text", "int": "number", "float": "number", "bool": "boolean"}
    return kinds.get(type(value).__name__, type(value).__name__)


# -- files -----------------------------------------------------------------------------------------------------------


def find_group(config: "SourceConfig") -> FileGroup:
    """Find the files that a source names. Raises InputError if they are of several containers or splits."""
    groups = find_groups(config)
    if len(groups) > 1:
        names = "; ".join(f"{g.container}: {', '.join(f.name for f in g.files[:3])}" for g in groups)
        raise InputError(
            f"pool.path: {config.path!r} holds files of several formats ({names}); name one file, or set pool.source"
        )
    return groups[0]


def find_groups(config: "SourceConfig") -> list[FileGroup]:
    """Find the files that a source names, and group them by container. Raises InputError if there are none."""
    path = config.path or ""
    if config.source not in (FILES, *CONTAINERS):
        container = load_container(config.source, config.options)
        return [FileGroup(container=config.source, reason="as set", files=tuple(find_files(path, container.suffixes)))]
    preferred = "" if config.source == FILES else config.source
    suffixes = load_container(preferred).suffixes if preferred else known_suffixes()
    files = list_files(path, suffixes)
    if is_folder(path):
        files = [f for f in files if f.suffix in suffixes and f.name.rpartition("/")[2] not in _METADATA]
        if not files:
            find_files(path, suffixes)  # Raises the error that names what would be read.
    files = _of_split(config, files)
    return _group_by_container(files, preferred)


def _group_by_container(files: Sequence[DataFile], preferred: str) -> list[FileGroup]:
    members: dict[str, list[DataFile]] = {}
    reasons: dict[str, str] = {}
    ignored: list[str] = []
    by_suffix: dict[str, tuple[str, str]] = {}
    for stored in files:
        # Shards have one format; JSON files are looked at one by one.
        (name, codec), reason = by_suffix.get(stored.suffix, ("", "")), ""
        file = replace(stored, codec=stored.codec or codec)
        if not name:
            try:
                file = file.with_codec()
                name, reason = recognise(file, preferred)
            except InputError:
                if len(files) == 1 or file.suffix != ".json":
                    raise
                ignored.append(file.name)
                continue
            if name in _BINARY:
                by_suffix[file.suffix] = (name, file.codec)
        members.setdefault(name, []).append(file)
        reasons.setdefault(name, reason)
    if not members:
        raise InputError(f"pool.path: {files[0].uri!r} and its like hold no rows; name a file of a data set")
    if binary := [name for name in members if name in _BINARY]:
        ignored += [file.name for name in members if name not in _BINARY for file in members[name]]
        members = {name: members[name] for name in binary}
    return [
        FileGroup(container=name, reason=reasons[name], files=tuple(of_name), ignored=tuple(ignored))
        for name, of_name in members.items()
    ]


def find_splits(config: "SourceConfig") -> list[str]:
    """Return the splits that the names of a source's files tell apart; [] if there are fewer than two."""
    splits = sorted(set(_splits_by_name(list_files(config.path or "")).values()))
    return splits if len(splits) > 1 else []


def _splits_by_name(files: Sequence[DataFile]) -> dict[str, str]:
    data_files = (file for file in files if file.suffix in known_suffixes())
    return {file.name: match[1].lower() for file in data_files if (match := _SPLIT.search(file.name))}


def _of_split(config: "SourceConfig", files: Sequence[DataFile]) -> list[DataFile]:
    """Return the files of the split that is set. Raises InputError if there are several and none is set."""
    splits = _splits_by_name(files)
    names = sorted(set(splits.values()))
    if config.split is None and len(names) < 2:
        return list(files)
    if config.split is None:
        raise InputError(
            f"pool.path: {config.path!r} holds the splits {', '.join(names)}; set pool.split to one of them, "
            "or name its files"
        )
    chosen = [file for file in files if splits.get(file.name) == config.split]
    if names and not chosen:
        raise InputError(f"pool.split: {config.split!r} is not in {config.path!r}; it holds {', '.join(names)}")
    return chosen or list(files)


# -- rows ------------------------------------------------------------------------------------------------------------


def take_sample(config: "SourceConfig", group: FileGroup | None = None, *, seconds: float = 1.0) -> SourceSample:
    """Sample a source and recognise its schema.

    Args:
        config: The source.
        group: Files of the source; None: those of `find_group`.
        seconds: Time after which no more rows are read.

    Raises:
        InputError: There are no files or rows, or no schema fits, or files have different schemas.
    """
    group = group or find_group(config)
    container = load_container(group.container, config.options)
    rows, num_rows, is_exact = sample_rows(container, group.files, seconds)
    if not rows:
        raise InputError(f"pool.path: {config.path!r} has no rows; give a file with at least one question")
    schema, match, alternatives = choose_schema(config, rows)
    _check_one_schema(config, container, group, schema)
    return SourceSample(
        group=group,
        rows=tuple(rows),
        num_rows=num_rows,
        is_exact=is_exact,
        schema=schema,
        match=match,
        alternatives=tuple(alternatives),
    )


def choose_schema(
    config: "SourceConfig", rows: Sequence[LocatedRow]
) -> tuple[str, SchemaMatch, list[tuple[str, SchemaMatch]]]:
    """Return the schema of a source, why it fits, and the others that fit.

    Raises:
        InputError: No schema fits.
    """
    if config.schema != AUTO:
        load_schema(config.schema)
        return config.schema, SchemaMatch(100, "set as pool.schema"), []
    if config.columns.overrides():
        return COLUMNS, SchemaMatch(100, "pool.columns names the columns"), []
    mappings = [row.value for row in rows if isinstance(row.value, dict)]
    ranked = rank_schemas(mappings)
    if ranked:
        return ranked[0][0], ranked[0][1], ranked[1:]
    if not mappings:
        first = rows[0].value
        problem = str(first) if isinstance(first, Exception) else f"not an object but {show(first)}"
        name = rows[0].piece.file.name
        raise InputError(f"pool.path: no row of {config.path!r} can be read; {name}:{rows[0].number + 1}: {problem}")
    names = sorted({str(name) for row in mappings for name in row})
    if listed := [_listed(row, name) for row in mappings for name in _CATALOGUE if isinstance(row.get(name), str)]:
        raise InputError(
            f"pool.path: {config.path!r} describes data sets and holds none; name one of its files: "
            f"{', '.join(listed[:5])}"
        )
    raise InputError(
        f"pool.path: {config.path!r} has no column that is a question; its columns are {', '.join(names[:20])}. "
        "Name them under pool.columns, such as {question: ask, image: picture}, or set pool.schema"
    )


def _listed(row: Mapping[str, object], name: str) -> str:
    """Return a file of a catalogue, with the folder of its images where the catalogue names it."""
    return f"{row[name]} (image_folder: {row['root']})" if isinstance(row.get("root"), str) else str(row[name])


def _check_one_schema(config: "SourceConfig", container: Container, group: FileGroup, schema: str) -> None:
    if len(group.files) == 1 or config.schema != AUTO or schema == COLUMNS:
        return
    step = max(1, len(group.files) // _MAX_CHECKED)
    for file in group.files[::step]:
        rows, _, _ = sample_rows(container, [file], 0.05, head=8)
        ranked = rank_schemas([row.value for row in rows if isinstance(row.value, dict)])
        if ranked and ranked[0][0] != schema:
            raise InputError(
                f"pool.path: {config.path!r} holds files of several schemas: {group.files[0].name} ({schema}), "
                f"{file.name} ({ranked[0][0]}); name the files of one, or set pool.schema"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _MeasuredFile(DataFile):
    """A file that remembers how far it was read."""

    opened: "list[pa.NativeFile]" = field(default_factory=list, compare=False, repr=False)

    def open(self) -> "pa.NativeFile":
        file = DataFile.open(self)
        self.opened.append(file)
        return file

    def bytes_read(self) -> int:
        """Return the bytes read so far, 0 if they are not known any more."""
        return max((0 if file.closed else int(file.tell()) for file in self.opened), default=0)


def sample_rows(
    container: Container, files: Sequence[DataFile], seconds: float, *, head: int = _HEAD_ROWS
) -> tuple[list[LocatedRow], int, bool]:
    """Read rows from several places of some files.

    Args:
        container: Container of the files.
        files: The files.
        seconds: Time after which reading stops.
        head: Rows from the beginning.

    Returns:
        The rows, the number of all rows, and whether that number is exact.
    """
    deadline = time.monotonic() + seconds
    step = max(1, len(files) // _MAX_CHECKED)
    sampled = [_MeasuredFile(uri=f.uri, name=f.name, size=f.size, codec=f.codec) for f in files[::step]]
    pieces = [piece for file in sampled for piece in container.split(file)]
    if not pieces:
        return [], 0, True
    read: list[_PieceSample] = []
    for place in range(0, len(pieces), max(1, len(pieces) // _SPREAD_PIECES)):
        read.append(_read_piece(container, pieces[place], _SPREAD_ROWS if read else head, deadline))
        if time.monotonic() > deadline:
            break
    rows = [row for piece in read for row in piece.rows]
    num_rows, is_exact = _count(container, pieces, read, sampled, deadline)
    if len(sampled) < len(files):
        scale = sum(file.size for file in files) / max(1, sum(file.size for file in sampled))
        return rows, round(num_rows * scale), False
    return rows, round(num_rows), is_exact


@dataclass(frozen=True, slots=True)
class _PieceSample:
    """Rows of a piece."""

    rows: list[LocatedRow]
    num_rows: float
    """Number of rows of the piece, estimated by the bytes that were read unless `is_complete`."""
    is_complete: bool


def _read_piece(container: Container, piece: FilePiece, num_first: int, deadline: float) -> _PieceSample:
    """Read the first rows of a piece, and while there is time some of the others of one that is a whole file."""
    file = cast("_MeasuredFile", piece.file)
    rows: list[LocatedRow] = []
    num_read = 0
    reading = container.read(piece)
    for raw in reading:
        if raw.value is BLANK:
            continue
        num_read += 1
        is_sampled = num_read <= num_first or num_read % _SPREAD_STEP == 0
        if is_sampled and len(rows) < num_first + _SPREAD_ROWS * _SPREAD_PIECES:
            rows.append(LocatedRow(piece=piece, number=raw.number, value=raw.value))
        if num_read >= num_first and not piece.is_whole_file:
            break
        if num_read % 64 == 0 and time.monotonic() > deadline:
            break
    else:
        return _PieceSample(rows, num_read, True)
    share = file.bytes_read() / file.size if piece.is_whole_file and file.size else 0.0
    if isinstance(reading, Generator):
        reading.close()
    return _PieceSample(rows, num_read / share if share else num_read, False)


def _count(
    container: Container,
    pieces: Sequence[FilePiece],
    read: Sequence[_PieceSample],
    files: Sequence[DataFile],
    deadline: float,
) -> tuple[float, bool]:
    """Return the number of rows of some files, and whether it is exact: by metadata, lines, or reading to the end."""
    stated = [container.num_rows(piece) for piece in pieces]
    if None not in stated:
        return float(sum(number for number in stated if number is not None)), True
    if container.unit == "line" and not any(file.codec for file in files):
        return _count_lines(files, deadline)
    is_exact = all(piece.is_complete for piece in read) and len(read) == len(pieces)
    return sum(piece.num_rows for piece in read) * len(pieces) / len(read), is_exact


def _count_lines(files: Sequence[DataFile], deadline: float) -> tuple[float, bool]:
    """Count the lines that are not blank; extrapolate where the time is over."""
    total, num_bytes, all_bytes = 0.0, 0, sum(file.size for file in files)
    for file in files:
        with file.reader() as reader:
            while chunk := reader.read(16 * 1024 * 1024):
                num_bytes += len(chunk)
                total += chunk.count(b"\n") - _blank_lines(chunk)
                if time.monotonic() > deadline + 1.0:
                    return total * all_bytes / num_bytes, False
            total += 0 if file.size == 0 or _ends_line(file) else 1
    return total, True


def _blank_lines(chunk: bytes) -> int:
    return chunk.count(b"\n\n") + chunk.count(b"\r\n\r\n")


def _ends_line(file: DataFile) -> bool:
    with file.open() as opened:
        opened.seek(max(0, file.size - 1))
        return bytes(opened.read(1)) == b"\n"


def row_reader(config: "SourceConfig", schema: str) -> RowReader:
    """Return the reader of a source's rows."""
    return RowReader(schema=schema, columns=config.columns, image_folder=config.image_folder)


def unused_columns(reader: RowReader, sample: SourceSample) -> list[str]:
    """Return the columns of a sample that no role takes."""
    roles: dict[str, set[str]] = {}
    for row in sample.rows:
        reader.read(row.value, id="", folder=row.folder, roles=roles)
    used = {name for names in roles.values() for name in names}
    used |= {name.partition(".")[0] for name in used}
    columns = dict.fromkeys(str(name) for row in sample.rows if isinstance(row.value, dict) for name in row.value)
    return [name for name in columns if name not in used]


def iterate_pieces(container: Container, files: Sequence[DataFile]) -> Iterator[FilePiece]:
    """Yield the pieces of all files, in order."""
    for file in files:
        yield from container.split(file)
