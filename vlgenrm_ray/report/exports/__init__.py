"""Export of a run's records as data sets for other trainers.

    preferences   pairs for DPO and reward models
    critiques     judgements with a label (right or wrong verdict), for KTO and verifiers
    examples      the selected training examples, for supervised fine-tuning

Each format is one small file. To add one, write a class with `write(rows, out, name)` (see `ExportFormat`) and a line
in `FORMATS`, or name it by an import path `package.module:Name`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal, Protocol, get_args

from vlgenrm_ray import config, plugins
from vlgenrm_ray.data import images
from vlgenrm_ray.data.arrow import from_row
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.record_index import RecordIndex
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.verdict import PAIR_VERDICTS, is_right_verdict
from vlgenrm_ray.records import Critique, Example, ImageRef, Preference
from vlgenrm_ray.reward.examples import JudgeTemplates

Content = Literal["preferences", "critiques", "examples"]

FORMATS = {
    "llamafactory": "vlgenrm_ray.report.exports.llamafactory:LlamaFactory",
    "ms-swift": "vlgenrm_ray.report.exports.ms_swift:MsSwift",
    "trl": "vlgenrm_ray.report.exports.trl:Trl",
}
"""Format -> import path of its class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRow:
    """One row of a data set, independent of its format. All rows of an export have the same optional fields."""

    id: str
    image: ImageRef
    """Image with an absolute path or URI."""
    prompt: str
    response: str
    """The chosen response of a pair, or the only response."""
    rejected: str | None = None
    """The rejected response of a pair."""
    label: bool | None = None
    """True if the response is desirable; only for critiques."""
    more_images: tuple[ImageRef, ...] = ()
    """Images after the first, in order."""

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """All images, in order."""
        return (self.image, *self.more_images)


class ExportFormat(Protocol):
    """Writer of one data format. The class is created without arguments."""

    embeds_images: bool
    """True if the images are part of the file, so that they need not be copied."""

    def write(self, rows: Iterable[ExportRow], out: Path, name: str) -> Path:
        """Write the rows into the folder `out` as the data set `name`; return the file."""
        ...


def export(
    run: Path, content: str, format: str, out: Path, *, round: int | None = None, copy_images: bool = False
) -> tuple[Path, int]:
    """Export records of a run.

    Args:
        run: Run folder.
        content: `preferences`, `critiques` or `examples`.
        format: Key of `FORMATS`, or an import path.
        out: Folder to write; created if missing.
        round: Round of critiques and examples; default: the latest one.
        copy_images: Copy the images to `<out>/images`, unless the format embeds them; otherwise rows refer to the
            images of the run or of the user.

    Returns:
        The file written, and its number of rows.

    Raises:
        InputError: The run lacks the stage, has no rows, or content or format are unknown.
    """
    if content not in get_args(Content):
        raise InputError(f"--what {content!r}: unknown; choose from {', '.join(get_args(Content))}")
    try:
        plugins.check_name(format, FORMATS)
    except ValueError as error:
        raise InputError(f"--format {error}") from None
    writer: ExportFormat = plugins.load(format, FORMATS, "--format")()
    out.mkdir(parents=True, exist_ok=True)
    num_rows = 0

    def rows() -> Iterator[ExportRow]:
        nonlocal num_rows
        for row in _read_rows(run, content, round):
            num_rows += 1
            yield _copy_images(row, out / "images") if copy_images and not writer.embeds_images else row

    path = writer.write(rows(), out, content)
    if not num_rows:
        raise InputError(f"{run}: the run has no {content} to export")
    return path, num_rows


def _read_rows(run: Path, content: str, round: int | None) -> Iterator[ExportRow]:
    if content == "preferences":
        for preference in _stage(run / "preferences").records(Preference):
            yield ExportRow(
                id=preference.id,
                image=preference.question.image,
                more_images=preference.question.more_images,
                prompt=preference.question.text,
                response=preference.chosen,
                rejected=preference.rejected,
            )
        return
    folder = run / f"round-{_latest_round(run) if round is None else round}"
    if content == "examples":
        for example in _stage(folder / "selection").records(Example):
            yield ExportRow(
                id=example.id,
                image=example.image,
                more_images=example.more_images,
                prompt=example.prompt,
                response=example.completion,
            )
        return
    yield from _read_critiques(_stage(folder / "critiques"), _stage(run / "preferences"), _judge(run))


def _read_critiques(critiques: StageFolder, source: StageFolder, judge: JudgeConfig) -> Iterator[ExportRow]:
    index = RecordIndex.build(source)
    # The first round of a pairwise judge may have critiques of single responses.
    templates_of = cache(lambda kind: JudgeTemplates.load(judge.with_kind(kind)))
    for shard in critiques.shards():
        ids = critiques.read_unit_index(shard).column("id").to_pylist()
        preferences = index.read(Preference, ids)
        for row in critiques.read_records(shard).to_pylist():
            critique = from_row(Critique, row)
            if critique.verdict is None:
                continue
            preference = preferences[critique.preference_id]
            templates = templates_of("pairwise" if critique.verdict in PAIR_VERDICTS else "pointwise")
            yield ExportRow(
                id=critique.id,
                image=preference.question.image,
                more_images=preference.question.more_images,
                prompt=templates.critique_prompt(preference, critique.side),
                response=critique.text,
                label=is_right_verdict(critique.verdict, critique.side),
            )


def _stage(path: Path) -> StageFolder:
    folder = StageFolder(path)
    if folder.manifest() is None:
        raise InputError(f"{path}: no finished stage; finish the run first, or give another run folder or --round")
    return folder


def _latest_round(run: Path) -> int:
    manifests = run.glob("round-*/selection/manifest.json")
    rounds = [int(path.parent.parent.name.removeprefix("round-")) for path in manifests]
    if not rounds:
        raise InputError(f"{run}: no round with a finished selection; finish the run first")
    return max(rounds)


def _judge(run: Path) -> JudgeConfig:
    return config.load(run / "config.yaml").judge


def _copy_images(row: ExportRow, folder: Path) -> ExportRow:
    limits = ImageLimits()
    first, *others = (
        images.keep(images.portable(images.verify(ref, limits), limits, ref.uri), folder, limits) for ref in row.images
    )
    return replace(row, image=first, more_images=tuple(others))
