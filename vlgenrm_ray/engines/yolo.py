"""Ultralytics YOLO behind `contracts.Detector`, and the training of a small one.

Ultralytics is AGPL-3.0: this is the only file that imports it. It is kept quiet and to itself: no update checks, no
usage reports, no automatic installs, its settings in a temporary folder, and checkpoints read without unpickling code.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.records import Box

if TYPE_CHECKING:
    import PIL.Image
    import torch

_SETTINGS = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",
}
_NMS_IOU = 0.5


def _set_up() -> None:
    """Import ultralytics, by settings that it reads once, and leave Pillow as it was."""
    os.environ.update(_SETTINGS)
    os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(tempfile.gettempdir()) / f"vlgenrm-yolo-{os.getuid()}"))
    from PIL import Image
    from ultralytics.utils import patches

    # It replaces Pillow's, to look for a HEIF plugin (and install it) whenever a file is no image.
    Image.open = patches._image_open


class YoloDetector:
    """A trained YOLO of any size. It knows the nouns it was trained on and no others."""

    def __init__(self, path: Path, *, min_score: float, image_size: int, device: str) -> None:
        """Raises InputError if `path` holds no readable checkpoint."""
        _set_up()
        from ultralytics import YOLO

        weights = path / "model.pt" if path.is_dir() else path
        if not weights.is_file():
            raise InputError(f"detector.model: {path} holds no model.pt; give an ultralytics .pt file or its folder")
        try:
            self._model = YOLO(str(weights), task="detect")
        # Ultralytics answers a bad file with whatever its loader met: TypeError, KeyError, UnpicklingError, ...
        except Exception as error:
            raise InputError(
                f"detector.model: {weights} is not a readable YOLO checkpoint ({type(error).__name__}: {error}); "
                "give a .pt file that ultralytics saved"
            ) from error
        self._names: dict[int, str] = self._model.names
        self._arguments = {
            "conf": min_score,
            "iou": _NMS_IOU,
            "imgsz": image_size,
            "device": device,
            "verbose": False,
            "save": False,
        }

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._names.values())

    def detect(self, images: "Sequence[PIL.Image.Image]", nouns: Sequence[str]) -> list[tuple[Box, ...]]:
        """See `contracts.Detector`."""
        wanted = [number for number, name in self._names.items() if name in nouns]
        if not wanted or not images:
            return [() for _ in images]
        results = self._model.predict(list(images), classes=wanted, batch=len(images), **self._arguments)
        return [tuple(self._box(row) for row in result.boxes.data.tolist()) for result in results]

    def _box(self, row: list[float]) -> Box:
        x0, y0, x1, y1, score, number = row
        return Box(label=self._names[int(number)], score=score, x0=x0, y0=y0, x1=x1, y1=y1)


Labelled = tuple["PIL.Image.Image", Sequence[Box]]


def train(
    path: Path,
    batches: Iterable[Sequence[Labelled]],
    *,
    steps: int,
    labels: Sequence[str],
    scale: tuple[float, float, int],
    image_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train a YOLO11 from scratch and write the checkpoint `path`.

    `scale` is its depth, width and most channels, as in ultralytics' model files. Every batch is one step of AdamW
    under a one-cycle schedule; what is saved is the moving average of the weights, in half precision.
    """
    _set_up()
    import torch
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load
    from ultralytics.utils.torch_utils import ModelEMA

    torch.manual_seed(seed)
    architecture = yaml_model_load("yolo11n.yaml") | {"scales": {"n": list(scale)}, "nc": len(labels)}
    model = DetectionModel(architecture, nc=len(labels), verbose=False)
    model.args = get_cfg()
    model.names = dict(enumerate(labels))
    average = ModelEMA(model, decay=0.998, tau=200)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.15)
    model.train()
    for step, batch in zip(range(steps), batches, strict=False):
        losses, parts = model.loss(_tensors(batch, labels, image_size))
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update(model)
        if step % 100 == 0:
            print(f"detector step {step}/{steps}", {name: round(float(v), 3) for name, v in parts.items()}, flush=True)
    best = average.ema.half()
    best.criterion = None
    best.args = {"imgsz": image_size, "task": "detect"}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": best, "train_args": best.args}, path)


def _tensors(batch: Sequence[Labelled], labels: Sequence[str], size: int) -> dict[str, "torch.Tensor"]:
    """A batch as ultralytics' loss takes it: images in [0, 1], boxes as centre and size in fractions of the image."""
    import torch
    from ultralytics.data.augment import LetterBox

    letterbox = LetterBox((size, size), auto=False)
    pixels = np.stack([letterbox(image=np.asarray(image)) for image, _ in batch])
    rows = [
        (i, labels.index(box.label), *_centred(box, image.size))
        for i, (image, boxes) in enumerate(batch)
        for box in boxes
    ]
    table = torch.tensor(rows, dtype=torch.float32)
    return {
        "img": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255,
        "batch_idx": table[:, 0],
        "cls": table[:, 1],
        "bboxes": table[:, 2:],
    }


def _centred(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    return (
        (box.x0 + box.x1) / 2 / width,
        (box.y0 + box.y1) / 2 / height,
        (box.x1 - box.x0) / width,
        (box.y1 - box.y0) / height,
    )


def average_precision(found: Sequence[Sequence[Box]], true: Sequence[Sequence[Box]]) -> dict[str, float]:
    """mAP at IoU 0.5, and averaged over 0.5 to 0.95, of detections against true boxes, image by image."""
    _set_up()
    from ultralytics.utils.metrics import ap_per_class

    labels = sorted({box.label for boxes in true for box in boxes})
    thresholds = np.linspace(0.5, 0.95, 10)
    hits = [_hits(f, t, thresholds) for f, t in zip(found, true, strict=True)]
    results: Any = ap_per_class(
        np.concatenate(hits),
        np.array([b.score for boxes in found for b in boxes]),
        np.array([labels.index(b.label) if b.label in labels else len(labels) for boxes in found for b in boxes]),
        np.array([labels.index(b.label) for boxes in true for b in boxes]),
        names=dict(enumerate(labels)),
    )
    precision = results[5]
    return {"map50": float(precision[:, 0].mean()), "map50_95": float(precision.mean())}


def _hits(found: Sequence[Box], true: Sequence[Box], thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """For each detection, best first, and each threshold: does it hit a true box that none before it has hit?"""
    hit = np.zeros((len(found), len(thresholds)), dtype=bool)
    for j, threshold in enumerate(thresholds):
        free = list(true)
        for i, box in enumerate(found):
            best = max((t for t in free if t.label == box.label), key=lambda t: overlap(box, t), default=None)
            if best is not None and overlap(box, best) >= threshold:
                free.remove(best)
                hit[i, j] = True
    return hit


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - common)


def versions() -> Mapping[str, str]:
    """Version of the vendor, for manifests."""
    from importlib.metadata import version

    return {"ultralytics": version("ultralytics")}
