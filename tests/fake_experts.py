"""A fake detector and matcher, an expert pipeline with them, and the evidence route of a service that uses it."""

from collections.abc import Sequence

import PIL.Image

from vlgenrm_ray.engines.contracts import Detector, Matcher
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.experts.detector import DetectorExpert
from vlgenrm_ray.experts.expert import ExpertPipelineConfig
from vlgenrm_ray.experts.matcher import MatcherExpert
from vlgenrm_ray.experts.pipeline import ExpertPipeline
from vlgenrm_ray.records import Box
from vlgenrm_ray.serving.config import ServedExpertsConfig
from vlgenrm_ray.serving.experts import Examine, ExpertService, ExpertWorker
from vlgenrm_ray.serving.service import Service

CIRCLE = Box(label="circle", score=0.9, x0=5.0, y0=5.0, x1=15.0, y1=15.0)


class FakeDetector:
    """Detects the same boxes in every image; raises on an image whose top left pixel is black."""

    labels: tuple[str, ...] = ("circle", "star")

    def __init__(self, boxes: Sequence[Box] = (CIRCLE,)) -> None:
        self.boxes = tuple(boxes)
        self.calls: list[tuple[int, tuple[str, ...]]] = []

    def detect(self, images: Sequence[PIL.Image.Image], nouns: Sequence[str]) -> list[tuple[Box, ...]]:
        self.calls.append((len(images), tuple(nouns)))
        if any(one.getpixel((0, 0)) == (0, 0, 0) for one in images):
            raise RuntimeError("black")
        return [self.boxes for _ in images]


class FakeMatcher:
    """Matches the attribute "red" and the background in every image."""

    def match(self, images: Sequence[PIL.Image.Image], texts: Sequence[str]) -> list[list[float]]:
        row = [1.0 if " red " in text or text == "nothing" else 0.001 for text in texts]
        return [[w / sum(row) for w in row] for _ in images]


SERVED = ServedExpertsConfig(
    vocabulary="shapes", detector=DetectorConfig(model="none"), matcher=MatcherConfig(model="none"), max_queue=2
)


def pipeline(
    config: ExpertPipelineConfig, detector: Detector | None = None, matcher: Matcher | None = None
) -> ExpertPipeline:
    """An expert pipeline with fake models, or with the given ones."""
    detector_expert = DetectorExpert(config, detector=detector or FakeDetector())
    return ExpertPipeline(config, [detector_expert, MatcherExpert(config, matcher=matcher or FakeMatcher())])


PIPELINE = pipeline(SERVED)


def expert_service(served: Service, examine: Examine | None = None, **settings: object) -> ExpertService:
    """The experts of a service: the fake ones, or `examine`."""
    examine = examine or ExpertWorker(SERVED, served.config.images, PIPELINE).examine
    return ExpertService(SERVED.model_copy(update=settings), served.images, examine, served.metrics)
