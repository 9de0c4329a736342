"""Open-vocabulary detectors from transformers (Grounding DINO, OWLv2, OWL-ViT) behind `contracts.Detector`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.environment import resolve_device
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.records import Box

if TYPE_CHECKING:
    import PIL.Image


class ZeroShotDetector:
    """Open-vocabulary detector: it searches for the nouns of each call."""

    def __init__(self, config: DetectorConfig) -> None:
        """Load the model. Raises InputError if transformers cannot."""
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        model, device = config.model, resolve_device(config.device)
        try:
            self._processor: Any = AutoProcessor.from_pretrained(model)
            self._model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(model).to(device).eval()
        # A missing file, a foreign config and truncated weights raise different errors from model to model.
        except Exception as error:
            raise InputError(
                f"detector.model: {model!r} is no zero-shot detector ({type(error).__name__}: {error}); "
                "give a folder or hub name of Grounding DINO, OWLv2 or the like"
            ) from error
        self._min_score = config.min_score

    @property
    def labels(self) -> tuple[str, ...]:
        """See `contracts.Detector`. Empty: any noun can be detected."""
        return ()

    def detect(self, images: "Sequence[PIL.Image.Image]", nouns: Sequence[str]) -> list[tuple[Box, ...]]:
        """See `contracts.Detector`."""
        import torch

        if not nouns or not images:
            return [() for _ in images]
        texts = [list(nouns) for _ in images]
        inputs = self._processor(images=list(images), text=texts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            outputs = self._model(**inputs.to(self._model.device))
        results = self._processor.post_process_grounded_object_detection(
            outputs,
            threshold=self._min_score,
            target_sizes=[(image.height, image.width) for image in images],
            text_labels=texts,
        )
        return [_read_boxes(result, nouns, image.size) for result, image in zip(results, images, strict=True)]


def _read_boxes(result: dict[str, Any], nouns: Sequence[str], size: tuple[int, int]) -> tuple[Box, ...]:
    """Return one image's boxes, best score first, clipped to the image: these models also report boxes beyond it."""
    width, height = size
    boxes = []
    rows = zip(result["text_labels"], result["scores"].tolist(), result["boxes"].tolist(), strict=True)
    for text, score, corners in rows:
        x0, x1 = (min(max(x, 0.0), float(width)) for x in corners[0::2])
        y0, y1 = (min(max(y, 0.0), float(height)) for y in corners[1::2])
        if (noun := _find_noun(text, nouns)) and x1 - x0 >= 1 and y1 - y0 >= 1:
            boxes.append(Box(label=noun, score=score, x0=x0, y0=y0, x1=x1, y1=y1))
    return tuple(sorted(boxes, key=lambda box: -box.score))


def _find_noun(text: str, nouns: Sequence[str]) -> str:
    """Return the longest noun in a detected text. Grounding DINO reports the matched tokens, of one or more nouns."""
    padded = f" {text.lower()} "
    return max((noun for noun in nouns if f" {noun} " in padded), key=len, default="")
