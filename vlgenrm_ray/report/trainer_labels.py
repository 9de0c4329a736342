"""Labels for trainers: any data set of images and questions -> the rows and columns that a trainer's reward needs.

Most trainers pass one field of the data set on to the reward, but neither image nor question (see `judge.label`). This
module reads a data set in any format of `curation.sources` and writes it in the trainer's own, with that field.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray.curation.sources import SourceConfig
from vlgenrm_ray.curation.sources.container import BLANK, load_container
from vlgenrm_ray.curation.sources.rows import Columns, SourceRow
from vlgenrm_ray.curation.sources.sample import FILES, iterate_pieces, row_reader, take_sample
from vlgenrm_ray.curation.sources.values import SourceImage
from vlgenrm_ray.data import addresses, images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.label import write_label

_PLACEHOLDER = "<image>"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRow:
    """One question with its label."""

    question: str
    images: tuple[str, ...]
    """Absolute paths or addresses, or data URLs if images are embedded."""
    reference: str | None
    label: str
    """Question, images and reference as the JSON text that the reward reads."""
    number: int

    @property
    def prompt(self) -> str:
        """Question with a placeholder for each image before it."""
        return _PLACEHOLDER * len(self.images) + self.question


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFormat:
    """Rows of one trainer."""

    suffix: str
    """`jsonl` or `parquet`."""
    row: Callable[[LabelledRow], Mapping[str, Any]]
    hint: str
    """Settings by which the trainer finds the columns."""


def _openrlhf(row: LabelledRow) -> Mapping[str, Any]:
    return {"prompt": row.question, "label": row.label}


def _slime(row: LabelledRow) -> Mapping[str, Any]:
    return {"prompt": row.prompt, "images": list(row.images), "label": row.label}


def _verl(row: LabelledRow) -> Mapping[str, Any]:
    return {
        "data_source": "vlgenrm",
        "prompt": [{"role": "user", "content": row.prompt}],
        "images": [{"image": image} for image in row.images],
        "ability": "vqa",
        "reward_model": {"style": "rule", "ground_truth": row.label},
        "extra_info": {"index": row.number, "question": row.question, "answer": row.reference or ""},
    }


def _easyr1(row: LabelledRow) -> Mapping[str, Any]:
    return {"problem": row.prompt, "images": list(row.images), "answer": row.label}


def _ms_swift(row: LabelledRow) -> Mapping[str, Any]:
    messages = [{"role": "user", "content": row.prompt}]
    return {"messages": messages, "images": list(row.images), "solution": row.reference or ""}


def _roll(row: LabelledRow) -> Mapping[str, Any]:
    return {"prompt": row.prompt, "image": list(row.images), "ground_truth": row.label}


def _trl(row: LabelledRow) -> Mapping[str, Any]:
    return {"prompt": [{"role": "user", "content": row.question}], "images": list(row.images)}


FORMATS: Mapping[str, TrainerFormat] = {
    "easyr1": TrainerFormat(
        suffix="jsonl", row=_easyr1, hint="data.prompt_key=problem data.image_key=images data.answer_key=answer"
    ),
    "ms-swift": TrainerFormat(suffix="jsonl", row=_ms_swift, hint="--dataset FILE"),
    "openrlhf": TrainerFormat(
        suffix="jsonl",
        row=_openrlhf,
        hint="--data.input_key prompt --data.label_key label; gateway /get_reward",
    ),
    "roll": TrainerFormat(suffix="jsonl", row=_roll, hint="the reward worker reads ground_truth"),
    "slime": TrainerFormat(
        suffix="jsonl", row=_slime, hint="--input-key prompt --label-key label, --multimodal-keys for the images"
    ),
    "trl": TrainerFormat(suffix="jsonl", row=_trl, hint="load_dataset('json', data_files=FILE)"),
    "verl": TrainerFormat(
        suffix="parquet", row=_verl, hint="data.train_files=FILE data.prompt_key=prompt data.image_key=images"
    ),
}
"""Trainer -> its format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelResult:
    """Account of one data set."""

    path: Path
    num_rows: int
    dropped: Mapping[str, int]
    """Reason of rows left out -> number of rows."""
    first_problem: str
    """Row and reason of the first row left out; "" if there is none."""
    hint: str


def write_labels(
    data: str,
    trainer: str,
    out: Path,
    *,
    image_column: str | None = None,
    question_column: str | None = None,
    reference_column: str | None = None,
    image_folder: str | None = None,
    embed: bool = False,
) -> LabelResult:
    """Write a data set for a trainer, with labels that hold question and images.

    Args:
        data: File, folder or pattern in any format that `vlgenrm inspect` recognises.
        trainer: Key of `FORMATS`.
        out: File to write; its suffix is set to that of the format.
        image_column: Column of the images; default: recognised.
        question_column: Column of the questions; default: recognised.
        reference_column: Column of the reference answers; default: recognised, if there is one.
        image_folder: Folder of relative image paths; default: that of the data file.
        embed: Put the images themselves into the label, for a service that cannot read the files. Otherwise paths are
            written, which the service must be allowed to read (`vlgenrm serve --image-root`).

    Raises:
        InputError: The data cannot be read, the trainer is unknown, or no row can be used.
    """
    if trainer not in FORMATS:
        raise InputError(f"trainer {trainer!r}: choose one of {', '.join(FORMATS)}")
    columns = Columns(image=image_column, question=question_column, reference=reference_column)
    config = SourceConfig(source=FILES, path=data, columns=columns, image_folder=image_folder)
    trainer_format = FORMATS[trainer]
    target = out.with_suffix(f".{trainer_format.suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    dropped: Counter[str] = Counter()
    problems: list[str] = []
    num_rows = 0

    def rows() -> Iterator[Mapping[str, Any]]:
        nonlocal num_rows
        for number, row in enumerate(_read_questions(config)):
            try:
                labelled = _label(row, number, embed=embed)
            except ImageError as error:
                dropped[error.reason.value] += 1
                problems.append(f"{row.id}: {error.detail}")
            except InputError as error:
                dropped[row.reason] += 1
                problems.append(f"{row.id}: {error}")
            else:
                num_rows += 1
                yield trainer_format.row(labelled)

    write = _write_parquet if trainer_format.suffix == "parquet" else _write_json_lines
    write(rows(), target)
    if not num_rows:
        raise InputError(f"{data}: no row can be used; {problems[0] if problems else 'it has none'}")
    return LabelResult(
        path=target,
        num_rows=num_rows,
        dropped=dict(dropped),
        first_problem=problems[0] if problems else "",
        hint=trainer_format.hint,
    )


def _read_questions(config: SourceConfig) -> Iterator[SourceRow]:
    """Yield the questions of all rows; a malformed row has a `problem`."""
    sample = take_sample(config)
    container = load_container(sample.group.container, config.options)
    reader = row_reader(config, sample.schema)
    for piece in iterate_pieces(container, sample.group.files):
        for raw in container.read(piece):
            if raw.value is not BLANK:
                yield from reader.read(raw.value, id=f"{piece.file.name}:{raw.number + 1}", folder=piece.file.folder)


def _label(row: SourceRow, number: int, *, embed: bool) -> LabelledRow:
    """Label a question. Raise InputError for a malformed row, ImageError for an image that cannot be read."""
    if row.problem:
        raise InputError(row.problem)
    references = tuple(_reference(image, embed=embed) for image in row.images)
    return LabelledRow(
        question=row.text,
        images=references,
        reference=row.reference,
        label=write_label(question=row.text, images=references, reference=row.reference),
        number=number,
    )


def _reference(image: SourceImage, *, embed: bool) -> str:
    limits = ImageLimits()
    if image.data is not None:
        # Bytes have no address that another machine could open.
        images.size(image.data, limits)
        return images.data_url(image.data)
    assert image.uri is not None, "a row without a problem has images"
    if embed:
        data = images.fetch(image.uri, limits)
        images.size(data, limits, image.uri)
        return images.data_url(data)
    path = addresses.local_path(image.uri)
    if path is not None:
        images.size(images.fetch(image.uri, limits), limits, image.uri)
        return str(Path(path).absolute())
    return image.uri


def _write_json_lines(rows: Iterator[Mapping[str, Any]], target: Path) -> None:
    with target.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(rows: Iterator[Mapping[str, Any]], target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for batch in _batches(rows, 1024):
        table = pa.Table.from_pylist(list(batch))
        writer = writer or pq.ParquetWriter(target, table.schema)
        writer.write_table(table.cast(writer.schema))
    if writer is not None:
        writer.close()


def _batches(rows: Iterator[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
