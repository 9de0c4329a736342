"""The experts asked about one image at once, as the service does; the stage asks them of many, in pools."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from vlgenrm_ray.engines.contracts import Detector, Matcher
from vlgenrm_ray.engines.detector import DetectorConfig, build_detector
from vlgenrm_ray.engines.matcher import MatcherConfig, build_matcher
from vlgenrm_ray.experts.checking import Bands, check
from vlgenrm_ray.experts.claims import extract
from vlgenrm_ray.experts.matching import MatchingConfig, glances_of, known_phrases, nouns_of, phrases_of, sightings_of
from vlgenrm_ray.experts.view import Glance, View, distinct
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.records import Box, Detection, Finding
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    import PIL.Image


class WitnessConfig(Settings):
    """Which experts, and how their word is taken."""

    vocabulary: str = "coco"
    """Name or path of the vocabulary claims are read with; see `evidence.vocabulary`."""
    detector: DetectorConfig
    matcher: MatcherConfig
    matching: MatchingConfig = MatchingConfig()
    bands: Bands = Bands()
    same_label_overlap: float = Field(default=0.5, gt=0, le=1)
    """Of two boxes of one noun that overlap more (intersection over union), the weaker is dropped."""
    any_label_overlap: float = Field(default=0.8, gt=0, le=1)
    """The same for boxes of different nouns."""
    max_side: int = Field(default=1024, ge=32)
    """Larger images are scaled down to this side, in pixels, before the experts see them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Testimony:
    """What the experts say. Boxes are in the image's own pixels."""

    width: int
    height: int
    sightings: tuple[Detection, ...]
    findings: tuple[tuple[Finding, ...], ...]
    """For each text, its claims in its order, each with the experts' verdict."""


@dataclass(frozen=True, slots=True)
class Witness:
    """A detector and a matcher that have read the vocabulary."""

    config: WitnessConfig
    vocabulary: Vocabulary
    detector: Detector
    matcher: Matcher

    @classmethod
    def build(cls, config: WitnessConfig) -> "Witness":
        """Load the experts into this process. Raises InputError for what cannot be read."""
        vocabulary = load_vocabulary(config.vocabulary)
        return cls(config, vocabulary, build_detector(config.detector), build_matcher(config.matcher))

    def testify(self, image: "PIL.Image.Image", texts: Sequence[str]) -> Testimony:
        """Look at an image once, and check every claim of every text."""
        claims = [extract(text, self.vocabulary) for text in texts]
        phrases = phrases_of(claim for some in claims for claim in some)
        view = self._look(image, known_phrases(phrases, self.vocabulary, self.detector.labels))
        findings = (tuple(check(c, view, self.vocabulary, self.config.bands) for c in some) for some in claims)
        return Testimony(width=image.width, height=image.height, sightings=view.sightings, findings=tuple(findings))

    def _look(self, image: "PIL.Image.Image", phrases: Sequence[str]) -> View:
        config, vocabulary = self.config, self.vocabulary
        shown = image.copy()
        shown.thumbnail((config.max_side, config.max_side))
        x, y = image.width / shown.width, image.height / shown.height
        (boxes,) = self.detector.detect([shown], nouns_of(phrases, vocabulary, self.detector.labels))
        kept = distinct(boxes, config.same_label_overlap, config.any_label_overlap)
        (sightings,) = sightings_of([(shown, kept)], self.matcher, vocabulary, config.matching)
        (glances,) = glances_of([shown], [phrases], self.matcher, vocabulary, config.matching)
        return View(
            image.width,
            image.height,
            tuple(replace(s, box=stretched(s.box, x, y)) for s in sightings),
            tuple(Glance(stretched(g.window, x, y), {p: g.scores[p] for p in phrases}) for g in glances),
        )


def stretched(box: Box, x: float, y: float) -> Box:
    """The box in an image `x` times as wide and `y` times as high."""
    return replace(box, x0=box.x0 * x, y0=box.y0 * y, x1=box.x1 * x, y1=box.y1 * y)
