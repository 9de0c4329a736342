"""A detector and a matcher of straw, and a witness made of them, for unit tests."""

from collections.abc import Sequence

import PIL.Image

from vlgenrm_ray.engines.detector import DetectorConfig
from vlgenrm_ray.engines.matcher import MatcherConfig
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.experts.witness import Witness
from vlgenrm_ray.records import Box
from vlgenrm_ray.serving.config import ServedExperts
from vlgenrm_ray.serving.examiner import Examiner
from vlgenrm_ray.serving.experts import Ask, Evidence
from vlgenrm_ray.serving.service import Service

CIRCLE = Box(label="circle", score=0.9, x0=5.0, y0=5.0, x1=15.0, y1=15.0)


class Finder:
    """A detector that finds the same boxes in every image and fails where the top left pixel is black."""

    labels: tuple[str, ...] = ("circle", "star")

    def __init__(self, boxes: Sequence[Box] = (CIRCLE,)) -> None:
        self.boxes = tuple(boxes)
        self.calls: list[tuple[int, tuple[str, ...]]] = []

    def detect(self, images: Sequence[PIL.Image.Image], nouns: Sequence[str]) -> list[tuple[Box, ...]]:
        self.calls.append((len(images), tuple(nouns)))
        if any(one.getpixel((0, 0)) == (0, 0, 0) for one in images):
            raise RuntimeError("black")
        return [self.boxes for _ in images]


class Redmatcher:
    """A matcher that sees red everywhere, and nothing else."""

    def match(self, images: Sequence[PIL.Image.Image], texts: Sequence[str]) -> list[list[float]]:
        row = [1.0 if " red " in text or text == "nothing" else 0.001 for text in texts]
        return [[w / sum(row) for w in row] for _ in images]


SERVED = ServedExperts(
    vocabulary="shapes", detector=DetectorConfig(model="none"), matcher=MatcherConfig(model="none"), max_queue=2
)
WITNESS = Witness(SERVED, load_vocabulary("shapes"), Finder(), Redmatcher())


def evidence(served: Service, ask: Ask | None = None, **more: object) -> Evidence:
    """A service's evidence, of the straw witness or of whatever `ask` says."""
    asked = ask or Examiner(WITNESS, served.config.images).look
    return Evidence(SERVED.model_copy(update=more), served.images, asked, served.metrics)
