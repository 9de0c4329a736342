"""Ultralytics YOLO behind `contracts.Detector`, and the training of a small YOLO from scratch.

Ultralytics is AGPL-3.0; this is the only file that imports it. It runs without update checks, usage reports and
automatic installs, with its settings in a temporary folder, and it loads checkpoints without unpickling code.
"""

import importlib.util
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.environment import resolve_device
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


def _set_up_ultralytics() -> None:
    """Import ultralytics with the settings above, which it reads once, and undo its patch of Pillow."""
    os.environ.update(_SETTINGS)
    os.environ.setdefault("YOLO_CONFIG_DIR", str(Path(tempfile.gettempdir()) / f"vlgenrm-yolo-{os.getuid()}"))
    from PIL import Image
    from ultralytics.utils import patches

    # Ultralytics replaces `Image.open` to look for a HEIF plugin, and install it, when a file is not an image.
    Image.open = patches._image_open


class YoloDetector:
    """A trained YOLO of any kind and size, as a checkpoint or exported to ONNX.

    YOLO-World and YOLOE checkpoints search for the nouns of each call; all others, and exported ones, detect the nouns
    that they were trained or exported with.
    """

    def __init__(self, config: DetectorConfig) -> None:
        """Load the model. Raises InputError if `config.model` holds no readable checkpoint."""
        _set_up_ultralytics()
        from ultralytics import YOLO, YOLOE, YOLOWorld

        path = Path(config.model)
        weights = path / "model.pt" if path.is_dir() else path
        if not weights.is_file():
            raise InputError(f"detector.model: {path} holds no model.pt; give an ultralytics .pt file or its folder")
        _check_runtime(weights)
        device = resolve_device(config.device)
        try:
            self._model = YOLO(str(weights), task="detect")
        # Ultralytics passes on the errors of its loader for a bad file: TypeError, KeyError, UnpicklingError, ...
        except Exception as error:
            raise InputError(
                f"detector.model: {weights} is not a readable YOLO checkpoint ({type(error).__name__}: {error}); "
                "give a .pt file that ultralytics saved"
            ) from error
        self._searches_any = isinstance(self._model, YOLOWorld | YOLOE)
        self._path = weights
        self._names: dict[int, str] = {} if self._searches_any else dict(self._model.names)
        self._predict_args = {
            "conf": config.min_score,
            "iou": _NMS_IOU,
            "imgsz": config.image_size,
            "device": device,
            "verbose": False,
            "save": False,
        }

    @property
    def labels(self) -> tuple[str, ...]:
        """See `contracts.Detector`. Empty for YOLO-World and YOLOE."""
        return () if self._searches_any else tuple(self._names.values())

    def detect(self, images: "Sequence[PIL.Image.Image]", nouns: Sequence[str]) -> list[tuple[Box, ...]]:
        """See `contracts.Detector`."""
        if self._searches_any and nouns and images:
            self._set_nouns(nouns)
        classes = [index for index, name in self._names.items() if name in nouns]
        if not classes or not images:
            return [() for _ in images]
        results = self._model.predict(list(images), classes=classes, batch=len(images), **self._predict_args)
        return [tuple(self._read_box(row) for row in result.boxes.data.tolist()) for result in results]

    def _set_nouns(self, nouns: Sequence[str]) -> None:
        """Make an open-vocabulary model search for `nouns`, which its text encoder embeds."""
        if tuple(nouns) == tuple(self._names.values()):
            return
        try:
            self._model.set_classes(list(nouns))
        # The encoder is a package and a file of their own, and each of them fails in its own way.
        except Exception as error:
            raise InputError(
                f"detector.model: the text encoder of {self._path} cannot be loaded ({type(error).__name__}: {error}); "
                "YOLO-World needs CLIP ViT-B/32, YOLOE needs MobileCLIP, in the working folder or ultralytics' cache; "
                "or export the model to ONNX with its nouns"
            ) from error
        self._names = dict(enumerate(nouns))

    def _read_box(self, row: list[float]) -> Box:
        x0, y0, x1, y1, score, index = row
        return Box(label=self._names[int(index)], score=score, x0=x0, y0=y0, x1=x1, y1=y1)


def _check_runtime(weights: Path) -> None:
    if weights.suffix == ".onnx" and importlib.util.find_spec("onnxruntime") is None:
        raise InputError(
            f"detector.model: {weights} needs the package onnxruntime, which is not installed; "
            "`pip install onnxruntime`, or onnxruntime-gpu for CUDA, on every node"
        )


LabelledImage = tuple["PIL.Image.Image", Sequence[Box]]
"""An image with its true boxes, for training."""


def train(
    path: Path,
    batches: Iterable[Sequence[LabelledImage]],
    *,
    steps: int,
    labels: Sequence[str],
    scale: tuple[float, float, int],
    image_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train a YOLO11 from scratch: AdamW under a one-cycle schedule, one step per batch.

    Args:
        path: Checkpoint to write: the moving average of the weights, in half precision.
        batches: At least `steps` batches of images with their boxes.
        steps: Optimizer steps.
        labels: Nouns; every box's label is one of them.
        scale: Depth, width and maximum number of channels, as in the model files of ultralytics.
        image_size: Side that images are letterboxed to, in pixels.
        learning_rate: Peak learning rate.
        seed: Seed of the initial weights.
    """
    _set_up_ultralytics()
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
        losses, loss_items = model.loss(_make_batch(batch, labels, image_size))
        losses.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update(model)
        if step % 100 == 0:
            print(
                f"detector step {step}/{steps}",
                {name: round(float(v), 3) for name, v in loss_items.items()},
                flush=True,
            )
    best = average.ema.half()
    best.criterion = None
    best.args = {"imgsz": image_size, "task": "detect"}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": best, "train_args": best.args}, path)


def _make_batch(batch: Sequence[LabelledImage], labels: Sequence[str], size: int) -> dict[str, "torch.Tensor"]:
    """Build the input of ultralytics' loss: images in [0, 1], boxes as centre and size in fractions of the image."""
    import torch
    from ultralytics.data.augment import LetterBox

    letterbox = LetterBox((size, size), auto=False)
    pixels = np.stack([letterbox(image=np.asarray(image)) for image, _ in batch])
    rows = [
        (i, labels.index(box.label), *_centre_and_size(box, image.size))
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


def _centre_and_size(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = size
    return (
        (box.x0 + box.x1) / 2 / width,
        (box.y0 + box.y1) / 2 / height,
        (box.x1 - box.x0) / width,
        (box.y1 - box.y0) / height,
    )


def average_precision(predicted: Sequence[Sequence[Box]], expected: Sequence[Sequence[Box]]) -> dict[str, float]:
    """Compute mAP of predicted boxes, image by image.

    Returns:
        `map50` at IoU 0.5, and `map50_95` averaged over the IoU thresholds 0.5, 0.55, ..., 0.95 (as COCO does).
    """
    _set_up_ultralytics()
    from ultralytics.utils.metrics import ap_per_class

    labels = sorted({box.label for boxes in expected for box in boxes})
    thresholds = np.linspace(0.5, 0.95, 10)
    hits = [_match_boxes(p, e, thresholds) for p, e in zip(predicted, expected, strict=True)]
    results: Any = ap_per_class(
        np.concatenate(hits),
        np.array([b.score for boxes in predicted for b in boxes]),
        np.array([labels.index(b.label) if b.label in labels else len(labels) for boxes in predicted for b in boxes]),
        np.array([labels.index(b.label) for boxes in expected for b in boxes]),
        names=dict(enumerate(labels)),
    )
    precision = results[5]
    return {"map50": float(precision[:, 0].mean()), "map50_95": float(precision.mean())}


def _match_boxes(
    predicted: Sequence[Box], expected: Sequence[Box], thresholds: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Mark the predicted boxes, best first, that match an expected box which no better one has matched.

    Returns:
        Array of shape (predicted boxes, IoU thresholds).
    """
    hits = np.zeros((len(predicted), len(thresholds)), dtype=bool)
    for j, threshold in enumerate(thresholds):
        unmatched = list(expected)
        for i, box in enumerate(predicted):
            best = max((e for e in unmatched if e.label == box.label), key=box.iou, default=None)
            if best is not None and box.iou(best) >= threshold:
                unmatched.remove(best)
                hits[i, j] = True
    return hits
