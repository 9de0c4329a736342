"""Inspection of a data set without engines: what it is, what becomes of its rows, what would be dropped, how to use it.

`vlgenrm inspect` prints the report (`inspection_view.py`); a run makes the same report of each of its inputs before the
first engine starts, and stops if one cannot be used.
"""

import os
import posixpath
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from vlgenrm_ray.curation.pool import PoolConfig, check_root
from vlgenrm_ray.curation.sources.container import BLANK, Container, load_container
from vlgenrm_ray.curation.sources.files import absolute_address
from vlgenrm_ray.curation.sources.rows import SourceRow
from vlgenrm_ray.curation.sources.sample import (
    FILES,
    FileGroup,
    SourceSample,
    find_groups,
    find_splits,
    iterate_pieces,
    kind_of,
    row_reader,
    take_sample,
)
from vlgenrm_ray.curation.sources.schema import AUTO, SchemaMatch, load_schema
from vlgenrm_ray.data import addresses, images
from vlgenrm_ray.data.filesystems import open_filesystem
from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.errors import DropReason, InputError

_NUM_EXAMPLES = 3
_MAX_PROBLEMS = 5
"""Problems that are reported with their place; the others are counted."""
_OPENED_ROWS = 96
"""Rows whose images are opened."""
_OPENED_S = 3.0
_LABELS = (
    "label",
    "labels",
    "ground_truth",
    "gt_answer",
    "human_ranking",
    "ranking",
    "task_gt",
    "answer",
    "truth",
    "rating",
    "preference",
    "better_response_id",
    "overall_response",
    "winner",
)
"""Columns that carry a label; not using one of them is pointed out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLook:
    """An image of an example."""

    address: str
    """Address, or "in the row" for bytes."""
    width: int = 0
    height: int = 0
    problem: str = ""
    """Why it cannot be opened, or ""."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleLook:
    """One question as a run would see it."""

    row: str
    """`file:row`."""
    question_id: str
    group: str
    text: str
    chosen: str | None
    rejected: str | None
    reference: str | None
    kind: str
    images: tuple[ImageLook, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowProblem:
    """One row that would be dropped."""

    row: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """Result of the inspection of a source."""

    path: str
    format: str
    format_reason: str
    num_files: int
    ignored_files: tuple[str, ...]
    num_rows: int
    is_exact: bool
    schema: str
    schema_title: str
    schema_reason: str
    alternatives: tuple[tuple[str, SchemaMatch], ...]
    columns: Mapping[str, str]
    """Column -> types of its values."""
    roles: Mapping[str, tuple[str, ...]]
    """Question, image, chosen, ... -> columns it comes from."""
    unused_columns: tuple[str, ...]
    num_checked: int
    """Rows that were parsed."""
    num_questions: int
    """Questions of those rows, dropped ones included: a row with several rated responses has several."""
    num_pairs: int
    """Usable questions with a chosen and a rejected response."""
    num_opened: int
    """Questions whose images were opened; of others it was checked that local files exist."""
    num_unverified: int
    """Questions whose images are in a store and were not opened."""
    num_multi_image: int
    repeated_ids: int
    dropped: Mapping[str, int]
    """Reason -> questions, among those checked."""
    problems: tuple[RowProblem, ...]
    examples: tuple[ExampleLook, ...]
    settings: Mapping[str, str]
    """Settings under `pool` or `heldout` that read this data set."""
    notes: tuple[str, ...] = ()

    @property
    def num_usable(self) -> int:
        """Number of questions that would enter the pool, among those checked."""
        return self.num_questions - sum(self.dropped.values())


@dataclass
class _RowCounts:
    """Counts over the rows that are checked."""

    num_rows: int = 0
    num_questions: int = 0
    num_pairs: int = 0
    num_opened: int = 0
    num_multi_image: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    problems: list[RowProblem] = field(default_factory=list)
    ids: Counter[str] = field(default_factory=Counter)
    roles: dict[str, set[str]] = field(default_factory=dict)
    num_unverified: int = 0
    examples: list[ExampleLook] = field(default_factory=list)
    unopened: list[ExampleLook] = field(default_factory=list)
    columns: dict[str, list[str]] = field(default_factory=dict)

    def add_columns(self, row: object) -> None:
        """Add the columns of a row with the types of their values."""
        for name, value in row.items() if isinstance(row, Mapping) else ():
            kinds = self.columns.setdefault(str(name), [])
            if (kind := kind_of(value)) not in kinds:
                kinds.append(kind)

    def place_rows(self, place: Callable[[int], str]) -> None:
        """Replace provisional names `~3` or `~3.2` of rows by their places."""

        def placed(name: str) -> str:
            index, dot, part = name.removeprefix("~").partition(".")
            return place(int(index)) + dot + part

        self.problems = [replace(problem, row=placed(problem.row)) for problem in self.problems]
        self.examples = [replace(example, row=placed(example.row)) for example in self.examples]
        self.unopened = [replace(example, row=placed(example.row)) for example in self.unopened]

    def drop(self, row: str, reason: str, detail: str) -> None:
        self.dropped[reason] += 1
        num_of_reason = sum(problem.reason == reason for problem in self.problems)
        if num_of_reason < 2 and len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(RowProblem(row=row, reason=reason, detail=detail))


def inspect(config: PoolConfig, *, seconds: float = 4.0) -> list[SourceReport]:
    """Inspect the files that a source names, one report for each format among them.

    Args:
        config: The source; `PoolConfig(source="files", path=...)` for an unknown one.
        seconds: Time spent on reading rows, about.

    Raises:
        InputError: There are no files, or one cannot be read.
    """
    note = ""
    if config.split is None and (splits := find_splits(config)):
        split = "train" if "train" in splits else splits[0]
        config = config.model_copy(update={"split": split})
        note = f"the data set has the splits {', '.join(splits)}; this is {split}"
    groups = find_groups(config)
    reports = [inspect_group(config, group, seconds=seconds / len(groups)) for group in groups]
    return [replace(report, notes=(note, *report.notes)) if note else report for report in reports]


def inspect_group(config: PoolConfig, group: FileGroup, *, seconds: float) -> SourceReport:
    """Inspect files of one container. Raises InputError as `take_sample` does."""
    begin = time.monotonic()
    sample = take_sample(config, group, seconds=seconds / 3)
    container = load_container(group.container, config.options)
    counts, folder = _RowCounts(), config.image_folder
    if folder is None:
        folder = find_image_folder(config, sample)
    resolved = config if folder == config.image_folder else config.model_copy(update={"image_folder": folder})
    is_complete = _check_rows(resolved, sample, container, counts, begin + seconds)
    columns = {name: " or ".join(k for k in kinds if k != "null") or "empty" for name, kinds in counts.columns.items()}
    used = {name if name in columns else name.partition(".")[0] for names in counts.roles.values() for name in names}
    repeated_ids = sum(count - 1 for count in counts.ids.values())
    if repeated_ids and "id" in counts.roles:
        # Rows that share an id are scored together.
        counts.roles.setdefault("group", counts.roles["id"])
    return SourceReport(
        path=config.path or "",
        format=container.title or type(container).__name__,
        format_reason=group.reason,
        num_files=len(group.files),
        ignored_files=group.ignored,
        num_rows=counts.num_rows if is_complete else max(sample.num_rows, counts.num_rows),
        is_exact=is_complete or (sample.is_exact and sample.num_rows >= counts.num_rows),
        schema=sample.schema,
        schema_title=load_schema(sample.schema).title,
        schema_reason=sample.match.reason,
        alternatives=sample.alternatives,
        columns=columns,
        roles={role: tuple(sorted(names)) for role, names in counts.roles.items()},
        unused_columns=tuple(name for name in columns if name not in used),
        num_checked=counts.num_rows,
        num_questions=counts.num_questions,
        num_pairs=counts.num_pairs,
        num_opened=counts.num_opened,
        num_unverified=counts.num_unverified,
        num_multi_image=counts.num_multi_image,
        repeated_ids=repeated_ids,
        dropped=dict(counts.dropped.most_common()),
        problems=tuple(counts.problems),
        examples=tuple((counts.examples or counts.unopened)[:_NUM_EXAMPLES]),
        settings=_settings(config, group, folder),
        notes=_notes(config, columns, used, counts),
    )


def _check_rows(
    config: PoolConfig, sample: SourceSample, container: Container, counts: _RowCounts, deadline: float
) -> bool:
    """Parse the sampled rows, or all if there is time; open the images of some. Return whether all were read."""
    reader = row_reader(config, sample.schema)
    image_deadline = time.monotonic() + _OPENED_S

    def check(value: object, id: str, folder: str) -> None:
        counts.num_rows += 1
        counts.add_columns(value)
        for question in reader.read(value, id=id, folder=folder, roles=counts.roles):
            _check_question(config, question, counts, image_deadline)

    # Rows from many places come first: if the time is over before the end, they stand for the rest.
    is_small = sample.num_rows <= 200_000 and len(sample.group.files) <= 64
    if not is_small:
        # Numbers of rows far into a file are only counted for those that are reported.
        for index, row in enumerate(sample.rows):
            check(row.value, f"~{index}", row.folder)
        counts.place_rows(lambda index: sample.rows[index].id(container))
        return False
    number = 1
    previous = None
    for piece in iterate_pieces(container, sample.group.files):
        number = number if previous == piece.file else 1
        previous, last = piece.file, -1
        for raw in container.read(piece):
            last = raw.number
            if raw.value is not BLANK:
                check(raw.value, f"{piece.file.name}:{number + raw.number}", piece.file.folder)
            if counts.num_rows % 64 == 0 and time.monotonic() > deadline:
                return False
        number += last + 1
    return True


def _check_question(config: PoolConfig, question: SourceRow, counts: _RowCounts, image_deadline: float) -> None:
    counts.num_questions += 1
    if question.problem:
        counts.drop(question.id, question.reason, question.problem)
        return
    counts.ids[question.question_id] += 1
    counts.num_multi_image += len(question.images) > 1
    is_opened = counts.num_opened < _OPENED_ROWS and time.monotonic() < image_deadline
    counts.num_opened += is_opened
    looks: list[ImageLook] = []
    error: ImageError | None = None
    for image in question.images:
        if is_opened:
            look, problem = look_at_image(config, image.uri, image.data)
            looks.append(look)
        else:
            problem = None if image.uri is None else missing_file(config, image.uri)
        error = error or problem
    if error is not None:
        counts.drop(question.id, error.reason.value, error.detail)
        if looks and len(counts.unopened) < _NUM_EXAMPLES:
            counts.unopened.append(_example(question, tuple(looks)))
        return
    is_remote = any(image.uri is not None and addresses.scheme(image.uri) for image in question.images)
    counts.num_unverified += not is_opened and is_remote
    counts.num_pairs += question.chosen is not None and question.rejected is not None
    if looks and len(counts.examples) < _NUM_EXAMPLES:
        counts.examples.append(_example(question, tuple(looks)))


def missing_file(config: PoolConfig, uri: str) -> ImageError | None:
    """Return the error of an address that is not allowed or names no local file, without opening anything."""
    try:
        check_root(uri, config)
        path = addresses.local_path(uri)
        if path is None:
            is_network = addresses.scheme(uri) in ("http", "https", "ftp")
            return ImageError(DropReason.IMAGE_MISSING, "network addresses are not fetched") if is_network else None
        return None if os.path.isfile(path) else ImageError(DropReason.IMAGE_MISSING, f"{path}: no such file")
    except ImageError as error:
        return error
    # A NUL, half a surrogate pair.
    except ValueError as error:
        return ImageError(DropReason.IMAGE_MISSING, f"{addresses.shorten(uri)}: {error}")


def look_at_image(config: PoolConfig, uri: str | None, data: bytes | None) -> tuple[ImageLook, ImageError | None]:
    """Read the size of an image from its header, without decoding it."""
    address = "in the row" if uri is None else addresses.shorten(uri)
    try:
        if data is None:
            assert uri is not None, "an image has bytes or an address"
            check_root(uri, config)
            data = images.fetch(uri, config.images)
        width, height = images.size(data, config.images, address)
        return ImageLook(address=address, width=width, height=height), None
    except ImageError as error:
        return ImageLook(address=address, problem=error.detail.removeprefix(f"{address}: ")), error


def _example(question: SourceRow, looks: tuple[ImageLook, ...]) -> ExampleLook:
    return ExampleLook(
        row=question.id,
        question_id=question.question_id,
        group=question.group,
        text=question.text,
        chosen=question.chosen,
        rejected=question.rejected,
        reference=question.reference,
        kind=question.kind,
        images=looks,
    )


# -- advice ----------------------------------------------------------------------------------------------------------


def find_image_folder(config: PoolConfig, sample: SourceSample) -> str | None:
    """Return the folder near the data file in which the images of the first rows are, if not where the rows say.

    It is one below or above the data file, or the only one beside the file's folder that has the image, as in
    `annotations/train.json` and `images/train`. None if the images are where the rows say, or nowhere near.
    """
    reader = row_reader(config.model_copy(update={"image_folder": None}), sample.schema)
    nearby: dict[str, tuple[list[str], list[str]]] = {}
    for row in sample.rows[:20]:
        for question in reader.read(row.value, id="", folder=row.folder):
            uri = question.images[0].uri if question.images else None
            if uri is None or not uri.startswith(f"{row.folder}/"):
                continue
            path = uri.removeprefix(f"{row.folder}/")
            if _exists(uri):
                return None
            if row.folder not in nearby:
                nearby[row.folder] = (_nearby_folders(row.folder), _folders_below(posixpath.dirname(row.folder)))
            near, beside = nearby[row.folder]
            if first := next((folder for folder in near if _exists(f"{folder}/{path}")), None):
                return first
            holders = [folder for folder in beside if _exists(f"{folder}/{path}")]
            if len(holders) == 1:
                return holders[0]
    return None


def _nearby_folders(folder: str) -> list[str]:
    parents = [folder]
    for _ in range(3):
        parent = posixpath.dirname(parents[-1].rstrip("/"))
        if not parent or parent == parents[-1] or parent.endswith(":/"):
            break
        parents.append(parent)
    if addresses.local_path(folder) is not None:
        return parents[1:] + _folders_below(folder)
    return parents[1:] + [f"{folder}/{name}" for name in ("images", "image", "imgs", "data")]


def _folders_below(folder: str) -> list[str]:
    """Return the folders in a local folder and in those, a few hundred at most."""
    local = addresses.local_path(folder) if folder else None
    folders: list[str] = []
    for root, names, _ in os.walk(local) if local else ():
        depth = root[len(local or "") :].count("/")
        if depth >= 2:
            names.clear()
        folders += [f"{root}/{name}" for name in sorted(names)[:50] if not name.startswith(".")]
        if len(folders) > 500:
            break
    return folders


def _exists(uri: str) -> bool:
    import pyarrow.fs

    try:
        path = addresses.local_path(uri)
        if path is not None:
            return os.path.isfile(path)
        files, inner = open_filesystem(uri)
        return bool(files.get_file_info(inner).type == pyarrow.fs.FileType.File)
    # An address may be wrong in many ways; it then names no file.
    except Exception:
        return False


def _settings(config: PoolConfig, group: FileGroup, folder: str | None) -> dict[str, str]:
    path = config.path or ""
    if len(group.files) == 1:
        file = group.files[0].uri
        path = path if absolute_address(path) == file else file if addresses.scheme(path) else _shortest(file)
    settings = {"source": FILES if config.source == FILES else config.source, "path": path or ""}
    if config.schema != AUTO:
        settings["schema"] = config.schema
    settings |= {f"columns.{name}": value for name, value in config.columns.overrides().items()}
    if folder is not None:
        settings["image_folder"] = folder if addresses.scheme(folder) else _shortest(folder)
    if config.split is not None:
        settings["split"] = config.split
    return settings


def _shortest(path: str) -> str:
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def _notes(config: PoolConfig, columns: Mapping[str, str], used: set[str], counts: _RowCounts) -> tuple[str, ...]:
    notes = []
    for name in _LABELS:
        if name in columns and name not in used:
            notes.append(f"the label {name!r} is not used; name it under columns.reference to keep it as reference")
    if counts.num_multi_image:
        notes.append(f"{counts.num_multi_image} questions have several images; engine.max_images must allow them")
    if counts.dropped.get(DropReason.IMAGE_MISSING):
        notes.append("images are missing: set image_folder to the folder that relative paths refer to")
    if counts.dropped.get(DropReason.VIDEO):
        notes.append("rows with a video are dropped: only still images are supported")
    return tuple(notes)


# -- before a run ----------------------------------------------------------------------------------------------------


def check_inputs(inputs: Mapping[str, PoolConfig], *, seconds: float = 3.0) -> dict[str, SourceReport]:
    """Inspect the inputs of a run, and raise if one cannot be used.

    Args:
        inputs: Section of the recipe (`pool`, `heldout`, ...) -> its source. Sources without files are skipped.
        seconds: Time spent on each.

    Returns:
        Section -> report.

    Raises:
        InputError: A file is missing, unreadable or of no known form; no row of a sample can be used; or held-out pairs
            are needed and there are none.
    """
    reports = {}
    for section, config in inputs.items():
        if not config.reads_files():
            continue
        try:
            groups = find_groups(config)
            if len(groups) > 1:
                take_sample(config)  # Raises the error that names the formats.
            report = inspect_group(config.model_copy(), groups[0], seconds=seconds)
        except InputError as error:
            raise InputError(str(error).replace("pool.", f"{section}.")) from error
        reports[section] = report
        _require_usable(section, config, report)
    return reports


def _require_usable(section: str, config: PoolConfig, report: SourceReport) -> None:
    place = f"{section}.path: {config.path!r}"
    first = next(iter(report.problems), None)
    reasons = ", ".join(f"{reason} {count}" for reason, count in report.dropped.items())
    if config.image_folder is None and "image_folder" in report.settings:
        raise InputError(
            f"{place}: its images are not in the folder of the file but in {report.settings['image_folder']}; "
            f"set {section}.image_folder={report.settings['image_folder']}"
        )
    if report.num_usable <= report.num_unverified and not any(not i.problem for e in report.examples for i in e.images):
        where = f"{first.row}: {first.detail}" if first else "no row"
        raise InputError(
            f"{place}: none of the first {report.num_checked} rows can be used ({reasons}). The first: {where}. "
            f"`vlgenrm inspect {config.path}` shows what is read; correct the data, or set {section}.schema, "
            f"{section}.columns or {section}.image_folder"
        )
    if config.labelled and not report.num_pairs:
        raise InputError(
            f"{place}: no row of {report.num_checked} has a chosen and a rejected response (schema {report.schema}); "
            f"give labelled pairs, or name their columns under {section}.columns"
        )
