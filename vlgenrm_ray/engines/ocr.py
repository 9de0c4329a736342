"""OCR by RapidOCR behind `contracts.TextReader`. Its models (PP-OCR, Apache-2.0) come with the package."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlgenrm_ray.engines.contracts import TextLine
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.records import Box

if TYPE_CHECKING:
    import PIL.Image


class RapidOcrReader:
    """Finds and reads lines of Latin and Chinese text."""

    def __init__(self, *, threads: int = 1, min_score: float = 0.5) -> None:
        """Load the models. Raises InputError if the package is missing.

        Args:
            threads: CPU threads.
            min_score: Lines that are read with less confidence are discarded.
        """
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise InputError(
                f"ocr: the packages rapidocr and onnxruntime are needed ({error}); `pip install rapidocr onnxruntime` "
                "on every node"
            ) from error
        parameters = {
            "Global.log_level": "error",
            "Global.text_score": min_score,
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        self._engine: Any = RapidOCR(params=parameters)

    def read(self, images: "Sequence[PIL.Image.Image]") -> list[tuple[TextLine, ...]]:
        """See `contracts.TextReader`."""
        return [self._read_one(image) for image in images]

    def _read_one(self, image: "PIL.Image.Image") -> tuple[TextLine, ...]:
        # The engine takes BGR, as OpenCV does.
        result = self._engine(np.asarray(image)[:, :, ::-1])
        if result.txts is None:
            return ()
        rows = zip(result.txts, result.scores, result.boxes.tolist(), strict=True)
        return tuple(TextLine(text=text, box=_bounding_box(corners, float(score))) for text, score, corners in rows)


def _bounding_box(corners: Sequence[Sequence[float]], score: float) -> Box:
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return Box(label="text", score=score, x0=min(xs), y0=min(ys), x1=max(xs), y1=max(ys))
