"""Reads Response. Writes Checked.

A unit is an image. Its responses are brought together, it is decoded once and looked at once, by a pool of detectors
and then by a pool of matchers; after that every claim of every response is checked against what was seen.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.curation.by_image import grouped
from vlgenrm_ray.data import flow, images
from vlgenrm_ray.data.arrow import from_row, from_table, to_table
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import Manifest, StageFolder, Unit, units_table
from vlgenrm_ray.engines.contracts import Detector, Matcher
from vlgenrm_ray.engines.detector import build_detector
from vlgenrm_ray.engines.matcher import build_matcher
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.experts.checking import Bands, check
from vlgenrm_ray.experts.claims import VocabularyExtractor
from vlgenrm_ray.experts.matching import glances_of, known_phrases, nouns_of, phrases_of, sightings_of
from vlgenrm_ray.experts.view import ANYTHING, Glance, View, distinct
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.experts.witness import WitnessConfig, stretched
from vlgenrm_ray.records import Box, Checked, ClaimKind, Detection, Dropped, Response, Truth, WindowScore

if TYPE_CHECKING:
    import PIL.Image
    import pyarrow as pa
    from ray.data import Dataset

STAGE = "experts"


class ExpertsConfig(WitnessConfig):
    """Which experts, how many of each, and how their word is taken."""

    detectors: flow.ActorPoolConfig = flow.ActorPoolConfig(num_cpus=0.5, batch_size=32)
    matchers: flow.ActorPoolConfig = flow.ActorPoolConfig(num_cpus=0.5, batch_size=32)
    limits: ImageLimits = ImageLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Glanced:
    """A glance as a row: the window, a score for each of its image's phrases in their order, and for anything."""

    box: Box
    scores: tuple[float, ...]
    anything: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One image on its way through the experts; the fields fill as it goes. Boxes are in its own pixels throughout."""

    id: str
    """The image's sha256."""
    responses: tuple[Response, ...]
    phrases: tuple[str, ...] = ()
    """Noun phrases its responses make claims about."""
    width: int = 0
    height: int = 0
    """Size of `pixels`, which may be scaled down."""
    pixels: bytes = b""
    """RGB, row by row."""
    boxes: tuple[Box, ...] = ()
    sightings: tuple[Detection, ...] = ()
    looked_for_all: bool = False
    """The detector was asked for every noun of the vocabulary: where it found nothing, it might have found anything."""
    windows: tuple[Glanced, ...] = ()
    reason: str = ""
    """Why this image's responses are dropped; "" while all is well."""
    detail: str = ""

    def image(self) -> "PIL.Image.Image":
        """The pixels as an image."""
        from PIL import Image

        return Image.frombytes("RGB", (self.width, self.height), self.pixels)

    @property
    def scale(self) -> tuple[float, float]:
        """Original pixels per pixel of `pixels`, across and down."""
        original = self.responses[0].question.image
        return original.width / self.width, original.height / self.height


# -- the four steps, without Ray -----------------------------------------------------------------------------------


def opened(id: str, responses: Sequence[Response], vocabulary: Vocabulary, config: ExpertsConfig) -> Look:
    """Read the responses' claims and the image, scaled down if need be."""
    extractor = VocabularyExtractor(vocabulary)
    claims = [claim for response in responses for claim in extractor.extract(response.text)]
    look = Look(id=id, responses=tuple(responses), phrases=phrases_of(claims))
    try:
        image = images.read(responses[0].question.image, config.limits)
    except ImageError as error:
        return replace(look, reason=error.reason, detail=error.detail)
    image.thumbnail((config.max_side, config.max_side))
    return replace(look, width=image.width, height=image.height, pixels=image.tobytes())


def detected(looks: Sequence[Look], detector: Detector, vocabulary: Vocabulary, config: ExpertsConfig) -> list[Look]:
    """Find the boxes, images that are asked the same nouns together. Phrases the detector cannot know are taken out."""
    asked = [replace(look, phrases=known_phrases(look.phrases, vocabulary, detector.labels)) for look in looks]
    groups: dict[tuple[str, ...], list[Look]] = {}
    for look in asked:
        groups.setdefault(nouns_of(look.phrases, vocabulary, detector.labels), []).append(look)
    found: dict[str, Look] = {}
    for nouns, group in groups.items():

        def detect(some: Sequence[Look], nouns: tuple[str, ...] = nouns) -> list[Look]:
            answers = detector.detect([look.image() for look in some], nouns)
            limits = config.same_label_overlap, config.any_label_overlap
            whole = set(vocabulary.nouns) <= set(nouns)
            return [
                replace(look, boxes=distinct(boxes, *limits), looked_for_all=whole)
                for look, boxes in zip(some, answers, strict=True)
            ]

        found |= {look.id: look for look in each_alone(detect, group)}
    return [found[look.id] for look in looks]


def matched(looks: Sequence[Look], matcher: Matcher, vocabulary: Vocabulary, config: ExpertsConfig) -> list[Look]:
    """Match attributes on the boxes and phrases in the windows; let the pixels go, and scale boxes to the original."""

    def match(some: Sequence[Look]) -> list[Look]:
        shown = [look.image() for look in some]
        boxes = [look.boxes for look in some]
        sightings = sightings_of(list(zip(shown, boxes, strict=True)), matcher, vocabulary, config.matching)
        glances = glances_of(shown, [look.phrases for look in some], matcher, vocabulary, config.matching)
        return [_scaled(*one) for one in zip(some, sightings, glances, strict=True)]

    return [replace(look, pixels=b"") for look in each_alone(match, looks)]


def _scaled(look: Look, sightings: Sequence[Detection], glances: Sequence[Glance]) -> Look:
    return replace(
        look,
        boxes=tuple(stretched(box, *look.scale) for box in look.boxes),
        sightings=tuple(replace(s, box=stretched(s.box, *look.scale)) for s in sightings),
        windows=tuple(
            Glanced(
                box=stretched(g.window, *look.scale),
                scores=tuple(g.scores[p] for p in look.phrases),
                anything=g.scores[ANYTHING] if look.looked_for_all else 1.0,
            )
            for g in glances
        ),
    )


def checked(look: Look, vocabulary: Vocabulary, bands: Bands) -> Unit[Checked]:
    """Check every claim of every response. A response without a claim has no findings; it is not dropped."""
    if look.reason:
        lost = [Dropped(stage=STAGE, id=r.id, reason=look.reason, detail=look.detail) for r in look.responses]
        return Unit(id=look.id, dropped=tuple(lost))
    original = look.responses[0].question.image
    glances = tuple(Glance(w.box, dict(zip(look.phrases, w.scores, strict=True))) for w in look.windows)
    windows = tuple(WindowScore(box=w.box, anything=w.anything) for w in look.windows)
    view = View(original.width, original.height, look.sightings, glances)
    extractor = VocabularyExtractor(vocabulary)
    records = [
        Checked(
            id=response.id,
            response=response,
            findings=tuple(check(claim, view, vocabulary, bands) for claim in extractor.extract(response.text)),
            sightings=look.sightings,
            windows=windows,
        )
        for response in look.responses
    ]
    return Unit(id=look.id, records=tuple(records))


def each_alone(call: Callable[[Sequence[Look]], list[Look]], looks: Sequence[Look]) -> list[Look]:
    """`call` on those that are well. If it fails, on each of them alone, so that one bad image harms no other.

    An engine that fails on every one of several is broken: its error goes up.
    """
    well = [look for look in looks if not look.reason]
    try:
        done = call(well) if well else []
    except Exception:
        done = []
        for look in well:
            try:
                done += call([look])
            # Whatever an engine raises on one image: it is recorded with the image.
            except Exception as error:
                done.append(replace(look, reason=DropReason.ENGINE_ERROR, detail=f"{type(error).__name__}: {error}"))
        if len(well) > 1 and all(look.reason for look in done):
            raise
    results = {look.id: look for look in done}
    return [results.get(look.id, look) for look in looks]


# -- Ray -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Open:
    config: ExpertsConfig

    def __call__(self, rows: "pa.Table") -> "Iterator[pa.Table]":
        vocabulary = load_vocabulary(self.config.vocabulary)
        for row in rows.to_pylist():
            responses = [from_row(Response, response) for response in row["responses"]]
            yield to_table(Look, [opened(row["id"], responses, vocabulary, self.config)])


class _Detect:
    def __init__(self, config: ExpertsConfig) -> None:
        self.config = config
        self.vocabulary = load_vocabulary(config.vocabulary)
        self.detector = build_detector(config.detector)

    def __call__(self, looks: "pa.Table") -> "pa.Table":
        return to_table(Look, detected(from_table(Look, looks), self.detector, self.vocabulary, self.config))


class _Match:
    def __init__(self, config: ExpertsConfig) -> None:
        self.config = config
        self.vocabulary = load_vocabulary(config.vocabulary)
        self.matcher = build_matcher(config.matcher)

    def __call__(self, looks: "pa.Table") -> "pa.Table":
        return to_table(Look, matched(from_table(Look, looks), self.matcher, self.vocabulary, self.config))


@dataclass(frozen=True)
class _Check:
    config: ExpertsConfig

    def __call__(self, looks: "pa.Table") -> "pa.Table":
        vocabulary = load_vocabulary(self.config.vocabulary)
        units = [checked(look, vocabulary, self.config.bands) for look in from_table(Look, looks)]
        return units_table(Checked, units)


def run(config: ExpertsConfig, *, source: StageFolder, target: StageFolder) -> Manifest:
    """Check the responses of `source` into `target`. See `flow.run` for what it raises."""
    inputs = {"responses": source.data_hash()}
    load_vocabulary(config.vocabulary)
    rows, total = grouped(source)

    def work(rows: "Dataset") -> "Dataset":
        opened = rows.map_batches(_Open(config), **flow.LIGHT, batch_size=config.detectors.batch_size)
        boxed = opened.map_batches(_Detect, fn_constructor_args=(config,), **config.detectors.map_batches_args())
        seen = boxed.map_batches(_Match, fn_constructor_args=(config,), **config.matchers.map_batches_args())
        return seen.map_batches(_Check(config), **flow.LIGHT)

    return flow.run(
        target, rows, work, total=total, fingerprint=config.fingerprint(), inputs=inputs, metrics=findings_by_kind
    )


def findings_by_kind(folder: StageFolder) -> Mapping[str, Any]:
    """How many claims of each kind were found supported, contradicted and unknown, and how many responses had none."""
    import pyarrow.parquet as pq

    path = "records.list.element.findings.list.element."
    counts: Counter[tuple[str, str]] = Counter()
    silent = 0
    for shard in folder.shards():
        records = pq.ParquetFile(shard).read(columns=[path + "truth", path + "claim.kind"]).column("records")
        found = records.combine_chunks().flatten().field("findings")
        silent += sum(n == 0 for n in found.value_lengths().to_pylist())
        findings = found.flatten()
        kinds = findings.field("claim").field("kind").to_pylist()
        counts.update(zip(kinds, findings.field("truth").to_pylist(), strict=True))
    return {
        "findings": {kind: {t: counts[kind, t] for t in Truth} for kind in ClaimKind},
        "responses_without_claims": silent,
    }
