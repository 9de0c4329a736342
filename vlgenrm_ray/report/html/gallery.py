"""Examples of the HTML report: held-out pairs, the worst mistakes first, and training pairs with their critiques."""

import base64
import io
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vlgenrm_ray.data import images
from vlgenrm_ray.data.arrow import from_row
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.record_index import HasId, RecordIndex
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.judge.verdict import is_right_verdict, score_name
from vlgenrm_ray.records import (
    Box,
    CheckedResponse,
    Critique,
    Finding,
    ImageRef,
    Judgement,
    PairResult,
    Preference,
    Side,
    Truth,
)
from vlgenrm_ray.report.html.run_data import SELECTED, JudgedPairs, PolicyData, RoundData

if TYPE_CHECKING:
    import PIL.Image

_NUM_MISTAKES, _NUM_RIGHT, _NUM_TRAINING = 36, 12, 48
"""Examples shown: held-out pairs ranked wrong, held-out pairs ranked right, training pairs."""
_NUM_CRITIQUES = 3
"""Critiques shown of each side."""
_NUM_SAMPLES = 12
"""Logged questions shown of a policy's training."""
_NUM_DETECTIONS, _MIN_SCORE = 12, 0.25
"""Detections drawn of an image, the surest first, and their smallest score: weak boxes would hide the image."""
_NUM_ANSWERS = 16
"""Answers shown of a logged question, the best and the worst rewards."""
_MAX_TEXT = 4000
"""Characters shown of a text; `vlgenrm trace` prints all."""
_THUMBNAIL_SIDE = 448
"""Largest side of an embedded image, in pixels. The images of a question share the area of one."""
_NUM_IMAGES = 16
"""Images shown of a question; the number of the others is stated."""
_JPEG_QUALITY = 80
_MAX_COLOURS = 4096
"""Images of at most this many colours are drawings, or grey; PNG stores most of them smaller and without artefacts."""
R = TypeVar("R", bound=HasId)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPiece:
    """A piece of a response; `mark` is the finding on the claim it states, `edit` for edited words, or ""."""

    text: str
    mark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiqueView:
    """A critique as it is shown."""

    text: str
    p_yes: float | None
    score_name: str
    """Name of `p_yes`: `p(Yes)`, or `p(A)` of a pairwise judge."""
    is_right: bool | None
    """True if the verdict is the right one; None if it could not be read."""
    decision: str
    """Result of the selection, in words; "" for held-out pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SideView:
    """One response of a pair with its critiques."""

    name: str
    pieces: tuple[TextPiece, ...]
    reward: float | None
    status: str
    """Reason for a missing reward; "" if there is one, or for training pairs."""
    critiques: tuple[CritiqueView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxView:
    """A box drawn over the image, in pixels of the original image."""

    x: float
    y: float
    width: float
    height: float
    label: str
    mark: str
    """`supported`, `contradicted`, or `seen` for detections that no finding rests on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageView:
    """An image as it is embedded, with the boxes drawn over it."""

    url: str
    """Data URL; "" if the image cannot be shown, with the reason in `error`."""
    error: str
    width: int
    """Size of the original in pixels, in which the boxes are."""
    height: int
    boxes: tuple[BoxView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleView:
    """One pair of the gallery."""

    id: str
    group: str
    """`mistake`, `undecided`, `right`, `kept`, `lost`, or `pair` before any selection."""
    kind: str
    question: str
    images: tuple[ImageView, ...]
    """All images of the question, in order."""
    sides: tuple[SideView, ...]
    note: str
    """Evidence of the label and result of the selection."""


def heldout_examples(run: Path, round: RoundData) -> list[ExampleView]:
    """Show held-out pairs of a round: mistakes by the size of the error, undecided pairs, and some right ones."""
    if round.pairs is None:
        return []
    groups = _choose_heldout(round.pairs)
    pairs = RecordIndex.build(StageFolder(run / "heldout")).read(Preference, list(groups))
    results = _read_by_id(StageFolder(round.folder / "evaluation"), PairResult, groups)
    return [
        ExampleView(
            id=id,
            group=group,
            kind=pairs[id].kind,
            question=_shorten(pairs[id].question.text),
            images=_images(pairs[id].question.images),
            sides=tuple(_judged_side(pairs[id], results[id], side) for side in Side),
            note="",
        )
        for id, group in groups.items()
        if id in results
    ]


def _choose_heldout(pairs: JudgedPairs) -> dict[str, str]:
    """Map the ids of the pairs to show to their groups, the worst mistake first."""
    difference = pairs.chosen - pairs.rejected
    is_undecided = np.isnan(difference) | (difference == 0)
    order = np.argsort(np.where(is_undecided, 0.0, difference), kind="stable")
    wrong = [int(i) for i in order if difference[i] < 0]
    undecided = [int(i) for i in np.flatnonzero(is_undecided)]
    right = [int(i) for i in order if difference[i] > 0]
    chosen = {pairs.ids[i]: "mistake" for i in wrong[: _NUM_MISTAKES - min(len(undecided), _NUM_MISTAKES // 3)]}
    chosen |= {pairs.ids[i]: "undecided" for i in undecided[: _NUM_MISTAKES // 3]}
    sample = sorted(random.Random(0).sample(right, min(_NUM_RIGHT, len(right))), key=lambda i: difference[i])
    return chosen | {pairs.ids[i]: "right" for i in sample}


def _judged_side(preference: Preference, result: PairResult, side: Side) -> SideView:
    judgement: Judgement = result.chosen if side is Side.CHOSEN else result.rejected
    return SideView(
        name=side.value,
        pieces=_shorten_pieces(_edited_pieces(preference, side)),
        reward=judgement.reward,
        status="" if judgement.reward is not None else judgement.status,
        critiques=tuple(
            CritiqueView(
                text=_shorten(critique.text.strip()),
                p_yes=critique.p_yes,
                score_name=score_name(critique.verdict),
                is_right=None if critique.verdict is None else is_right_verdict(critique.verdict, side),
                decision="",
            )
            for critique in judgement.critiques[:_NUM_CRITIQUES]
        ),
    )


def training_examples(run: Path, round: RoundData) -> list[ExampleView]:
    """Show training pairs of a round, as many kept as lost ones, spread over kinds and reasons of loss."""
    selection = StageFolder(round.folder / "selection")
    reasons = _selection_reasons(selection)
    preferences = RecordIndex.build(StageFolder(run / "preferences"))
    chosen = _choose_training(_kinds(StageFolder(run / "preferences")), reasons)
    pairs = preferences.read(Preference, chosen)
    critiques = _read_critiques(StageFolder(round.folder / "critiques"), chosen)
    shown = {critique.id for own in critiques.values() for critique in own}
    # Not all drops: a large run has millions.
    drops = {d.id: f"{d.reason.replace('_', ' ')}: {d.detail}" for d in selection.dropped() if d.id in shown}
    checked = _checked_responses(run, pairs.values())
    return [
        _training_example(pairs[id], critiques.get(id, ()), reasons[id], drops, checked) for id in chosen if id in pairs
    ]


def preference_examples(run: Path) -> list[ExampleView]:
    """Show preference pairs of every kind, those first of which the experts decided most claims.

    For a run that has selected no critiques yet.
    """
    folder = StageFolder(run / "preferences")
    kinds = _kinds(folder)
    chosen = _choose_training(kinds, dict.fromkeys(kinds, SELECTED))
    pairs = RecordIndex.build(folder).read(Preference, chosen)
    checked = _checked_responses(run, pairs.values())

    def num_decided(id: str) -> int:
        sides = (checked.get(response) for response in (pairs[id].chosen_id, pairs[id].rejected_id))
        findings = [finding for side in sides if side is not None for finding in side.findings]
        return sum(finding.truth is not Truth.UNKNOWN for finding in findings)

    return [
        replace(
            _training_example(pairs[id], (), SELECTED, {}, checked),
            group="pair",
            note="; ".join(filter(None, (pairs[id].origin.value, pairs[id].evidence))),
        )
        for id in sorted(chosen, key=num_decided, reverse=True)
    ]


def _checked_responses(run: Path, pairs: Iterable[Preference]) -> dict[str, CheckedResponse]:
    ids = [id for pair in pairs for id in (pair.chosen_id, pair.rejected_id)]
    return _read_by_id(StageFolder(run / "experts"), CheckedResponse, ids)


def _selection_reasons(selection: StageFolder) -> dict[str, str]:
    """Map each pair to `kept`, or to the reason why selection kept nothing of it."""
    reasons = {}
    for shard in selection.shards():
        for unit in selection.read_unit_index(shard).to_pylist():
            own = [drop["reason"] for drop in unit["dropped"] if drop["id"] == unit["id"]]
            reasons[unit["id"]] = own[0] if own else SELECTED
    return reasons


def _kinds(preferences: StageFolder) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for shard in preferences.shards():
        table = preferences.read_records(shard, columns=["id", "kind"])
        kinds.update(zip(table.column("id").to_pylist(), table.column("kind").to_pylist(), strict=True))
    return kinds


def _choose_training(kinds: Mapping[str, str], reasons: Mapping[str, str]) -> list[str]:
    """Draw pairs in turn from each (kind, result of selection), so that rare ones are shown too."""
    ids = sorted(id for id in reasons if id in kinds)
    random.Random(0).shuffle(ids)
    groups: dict[tuple[bool, str, str], list[str]] = {}
    for id in ids:
        groups.setdefault((reasons[id] != SELECTED, kinds[id], reasons[id]), []).append(id)
    chosen: list[str] = []
    while len(chosen) < _NUM_TRAINING and any(groups.values()):
        chosen += [group.pop() for _, group in sorted(groups.items()) if group]
    chosen = chosen[:_NUM_TRAINING]
    return sorted(chosen, key=lambda id: (reasons[id] == SELECTED, kinds[id], id))


def _training_example(
    preference: Preference,
    critiques: Sequence[Critique],
    reason: str,
    drops: Mapping[str, str],
    checked: Mapping[str, CheckedResponse],
) -> ExampleView:
    findings = {
        side: tuple(c.findings) if (c := checked.get(id)) and c.response.text == preference.response(side) else ()
        for side, id in ((Side.CHOSEN, preference.chosen_id), (Side.REJECTED, preference.rejected_id))
    }
    sides = tuple(
        SideView(
            name=side.value,
            pieces=_shorten_pieces(
                _checked_pieces(preference.response(side), findings[side]) or _edited_pieces(preference, side)
            ),
            reward=None,
            status="",
            critiques=tuple(
                _trained_critique(critique, drops)
                for critique in _selected_first(critiques, side, drops)[:_NUM_CRITIQUES]
            ),
        )
        for side in Side
    )
    result = "kept for training" if reason == SELECTED else f"lost: {reason.replace('_', ' ')}"
    return ExampleView(
        id=preference.id,
        group="kept" if reason == SELECTED else "lost",
        kind=preference.kind,
        question=_shorten(preference.question.text),
        # The experts see one image: pairs about several have no boxes.
        images=_images(
            preference.question.images, _boxes(preference, [finding for side in Side for finding in findings[side]])
        ),
        sides=sides,
        note="; ".join(filter(None, (preference.origin.value, preference.evidence, result))),
    )


def _selected_first(critiques: Sequence[Critique], side: Side, drops: Mapping[str, str]) -> list[Critique]:
    return sorted((c for c in critiques if c.side is side), key=lambda c: (c.id in drops, c.id))


def _trained_critique(critique: Critique, drops: Mapping[str, str]) -> CritiqueView:
    return CritiqueView(
        text=_shorten(critique.text.strip()),
        p_yes=critique.p_yes,
        score_name=score_name(critique.verdict),
        is_right=None if critique.verdict is None else is_right_verdict(critique.verdict, critique.side),
        decision=drops.get(critique.id, SELECTED),
    )


def _checked_pieces(text: str, findings: Sequence[Finding]) -> tuple[TextPiece, ...]:
    """Cut a text at its claims. Of overlapping claims the first keeps its place. Empty without findings."""
    pieces: list[TextPiece] = []
    position = 0
    for finding in sorted(findings, key=lambda f: (f.claim.start, f.claim.end)):
        start, end = finding.claim.start, finding.claim.end
        if not position <= start < end <= len(text):
            continue
        pieces += [TextPiece(text=text[position:start], mark=""), TextPiece(text=text[start:end], mark=finding.truth)]
        position = end
    return (*pieces, TextPiece(text=text[position:], mark="")) if pieces else ()


def _edited_pieces(preference: Preference, side: Side) -> tuple[TextPiece, ...]:
    text = preference.response(side)
    start, end = preference.edit_start, preference.edit_end
    if side is Side.CHOSEN or not 0 <= start < end <= len(text):
        return (TextPiece(text=text, mark=""),)
    parts = ((text[:start], ""), (text[start:end], "edit"), (text[end:], ""))
    return tuple(TextPiece(text=part, mark=mark) for part, mark in parts)


def _boxes(preference: Preference, findings: Sequence[Finding]) -> tuple[BoxView, ...]:
    """Boxes that findings rest on, then the other detections; a box is shown once."""
    views: dict[tuple[float, ...], BoxView] = {}
    for finding in findings:
        for box in finding.boxes:
            if finding.truth is not Truth.UNKNOWN and box.label:
                _add_box(views, box, finding.truth.value, box.label)
    surest = sorted(preference.detections, key=lambda detection: -detection.box.score)[:_NUM_DETECTIONS]
    for detection in surest:
        if detection.box.score < _MIN_SCORE:
            continue
        _add_box(views, detection.box, "seen", f"{detection.attribute} {detection.box.label}".strip())
    return tuple(views.values())


def _add_box(views: dict[tuple[float, ...], BoxView], box: Box, mark: str, label: str) -> None:
    key = (round(box.x0), round(box.y0), round(box.x1), round(box.y1))
    views.setdefault(
        key, BoxView(x=box.x0, y=box.y0, width=box.x1 - box.x0, height=box.y1 - box.y0, label=label, mark=mark)
    )


def _read_critiques(folder: StageFolder, pair_ids: Iterable[str]) -> dict[str, list[Critique]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    is_wanted = pc.field("preference_id").isin(pa.array(list(pair_ids), pa.string()))
    critiques: dict[str, list[Critique]] = {}
    for critique in _filtered(folder, Critique, is_wanted):
        critiques.setdefault(critique.preference_id, []).append(critique)
    return critiques


def _read_by_id(folder: StageFolder, cls: type[R], ids: Iterable[str]) -> dict[str, R]:
    """Read the records with these ids that exist."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_wanted = pc.field("id").isin(pa.array(list(ids), pa.string()))
    return {record.id: record for record in _filtered(folder, cls, is_wanted)}


def _filtered(folder: StageFolder, cls: type[R], is_wanted: Any) -> Iterator[R]:
    for shard in folder.shards():
        yield from (from_row(cls, row) for row in folder.read_records(shard, filters=is_wanted).to_pylist())


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    """One logged question of a policy's training with some of its answers, the best reward first."""

    step: int
    question: str
    images: tuple[ImageView, ...]
    answers: tuple[Mapping[str, Any], ...]


def policy_samples(policy: PolicyData) -> list[SampleView]:
    """Show logged questions evenly spaced over the training."""
    lines = policy.samples
    if len(lines) > _NUM_SAMPLES:
        lines = [lines[i * (len(lines) - 1) // (_NUM_SAMPLES - 1)] for i in range(_NUM_SAMPLES)]
    views = []
    for line in lines:
        answers = sorted(line["answers"], key=lambda a: -1.0 if a["reward"] is None else a["reward"], reverse=True)
        if len(answers) > _NUM_ANSWERS:
            answers = answers[: _NUM_ANSWERS // 2] + answers[-_NUM_ANSWERS // 2 :]
        texts = ("text", "critique")
        uris = [line["image"], *line.get("more_images", ())]
        views.append(
            SampleView(
                step=line["step"],
                question=_shorten(line["question"]),
                images=_images([ImageRef(uri=uri, sha256="", width=0, height=0) for uri in uris]),
                answers=tuple(answer | {name: _shorten(answer[name]) for name in texts} for answer in answers),
            )
        )
    return views


def _shorten(text: str) -> str:
    """Leave out the middle of a text that is longer than `_MAX_TEXT`: a critique's verdict stands at its end."""
    if len(text) <= _MAX_TEXT:
        return text
    half = _MAX_TEXT // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters left out) ... {text[-half:]}"


def _shorten_pieces(pieces: Sequence[TextPiece]) -> tuple[TextPiece, ...]:
    """Cut pieces off where their texts reach `_MAX_TEXT` characters."""
    shown, room = [], _MAX_TEXT
    for piece in pieces:
        if len(piece.text) > room:
            num_left_out = sum(len(p.text) for p in pieces) - _MAX_TEXT
            shown.append(replace(piece, text=piece.text[:room]))
            return (*shown, TextPiece(text=f" ... ({num_left_out:,} characters left out)", mark=""))
        shown.append(piece)
        room -= len(piece.text)
    return tuple(shown)


def _images(refs: Sequence[ImageRef], boxes: tuple[BoxView, ...] = ()) -> tuple[ImageView, ...]:
    """Show the images of a question, with boxes on the first. Together they are not larger than one alone."""
    shown = refs[:_NUM_IMAGES]
    side = int(_THUMBNAIL_SIDE / len(shown) ** 0.5)
    views = [_image_view(ref, side, () if number else boxes) for number, ref in enumerate(shown)]
    if num_others := len(refs) - len(shown):
        views.append(ImageView(url="", error=f"{num_others} more images", width=0, height=0))
    return tuple(views)


def _image_view(ref: ImageRef, side: int, boxes: tuple[BoxView, ...]) -> ImageView:
    """Embed a copy of an image, of at most `side` pixels, or the reason why there is none. Opens no remote address."""
    if "://" in ref.uri:
        return ImageView(url="", error="image at a remote address", width=ref.width, height=ref.height)
    limits = ImageLimits()
    try:
        image = images.decode(images.fetch(ref.uri, limits), limits, ref.uri)
    except ImageError as error:
        return ImageView(url="", error=error.detail, width=ref.width, height=ref.height)
    is_drawn = image.getcolors(_MAX_COLOURS) is not None
    image.thumbnail((side, side))
    encoded = {"jpeg": _encode(image, "JPEG", quality=_JPEG_QUALITY)}
    if is_drawn:
        encoded["png"] = _encode(image, "PNG", optimize=True)
    # A grey photograph has few colours too, and would be several times as large as PNG.
    kind = "png" if is_drawn and len(encoded["png"]) <= 2 * len(encoded["jpeg"]) else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"
    return ImageView(url=url, error="", width=ref.width, height=ref.height, boxes=boxes)


def _encode(image: "PIL.Image.Image", format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()
