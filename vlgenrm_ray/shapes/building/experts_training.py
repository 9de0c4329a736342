"""Training of the embedded world's experts: a small YOLO that detects shapes, a small CLIP that tells colours apart.

Both are trained on images of the train split and the true boxes alone, never on questions, responses or critiques.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from vlgenrm_ray.engines.detectors import DetectorConfig, yolo
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.engines.matchers.open_clip import OpenClipMatcher
from vlgenrm_ray.records import Box
from vlgenrm_ray.shapes.language import with_article
from vlgenrm_ray.shapes.render import SIDE, boxes, render
from vlgenrm_ray.shapes.scenes import COLOURS, SHAPES, Scene, Split, draw_scene_of

if TYPE_CHECKING:
    import torch

DETECTOR_SIZE = 96
"""Side of the detector's input, in pixels."""
MATCHER_SIZE = 32
"""Side of the matcher's input, in pixels."""
NOTHING = "nothing"
_NUM_TRAIN = 5000
_NUM_HELDOUT = 400


def _draw_scenes(split: Split, count: int, seed: int) -> list[Scene]:
    rng = random.Random(f"{seed}/{split}/experts")
    return [draw_scene_of(split, rng) for _ in range(count)]


# -- detector ------------------------------------------------------------------------------------------------------


def build_detector(folder: Path, seed: int, steps: int = 700) -> dict[str, float]:
    """Train the detector, write `folder/model.pt`, return its held-out metrics. About 3 minutes on one core."""
    yolo.train(
        folder / "model.pt",
        _detector_batches(seed),
        steps=steps,
        labels=SHAPES,
        scale=(0.33, 0.125, 256),
        image_size=DETECTOR_SIZE,
        learning_rate=5e-3,
        seed=seed,
    )
    detector = yolo.YoloDetector(
        DetectorConfig(model=str(folder), min_score=0.01, image_size=DETECTOR_SIZE, device="cpu")
    )
    scenes = _draw_scenes("heldout", _NUM_HELDOUT, seed)
    predictions = [detector.detect([render(scene)], SHAPES)[0] for scene in scenes]
    metrics = yolo.average_precision(predictions, [boxes(scene) for scene in scenes])
    return metrics | {"scenes": len(scenes), "steps": steps, "seed": seed}


def _detector_batches(seed: int, size: int = 32) -> Iterator[list[yolo.LabelledImage]]:
    rng = random.Random(seed)
    pool = [(render(scene), boxes(scene)) for scene in _draw_scenes("train", _NUM_TRAIN, seed)]
    while True:
        yield [_mirror(*item) if rng.random() < 0.5 else item for item in rng.sample(pool, size)]


def _mirror(image: Image.Image, labels: Sequence[Box]) -> yolo.LabelledImage:
    return ImageOps.mirror(image), [replace(box, x0=SIDE - box.x1, x1=SIDE - box.x0) for box in labels]


# -- matcher -------------------------------------------------------------------------------------------------------

NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
CAPTIONS = {
    "colour and shape": [*map(with_article, NAMES), NOTHING],
    "shape": [*map(with_article, SHAPES), NOTHING],
    "colour": [*(with_article(f"{colour} shape") for colour in COLOURS), NOTHING],
}
"""Sets of texts that the matcher learns to tell apart; each set is a separate contrastive loss."""

_ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": MATCHER_SIZE, "patch_size": 8, "width": 96, "head_width": 32, "layers": 3},
    "text_cfg": {"context_length": 8, "width": 64, "heads": 2, "layers": 1, "hf_tokenizer_name": "in this folder"},
}
_PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


def build_matcher(folder: Path, seed: int, steps: int = 1000) -> dict[str, float]:
    """Train the matcher, write it to `folder`, return its held-out metrics. About 3 minutes on one core."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    num_words = _write_tokenizer(folder)
    architecture = _ARCHITECTURE | {"text_cfg": {**_ARCHITECTURE["text_cfg"], "vocab_size": num_words}}
    config = {"model_cfg": architecture, "preprocess_cfg": _PIXELS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    name = f"local-dir:{folder}"
    model = open_clip.create_model(name, load_weights=False)
    tokenizer = open_clip.get_tokenizer(name)
    tokens = {kind: tokenizer(texts) for kind, texts in CAPTIONS.items()}

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    windows = _windows("train", _NUM_TRAIN, seed)
    model.train()
    for step in range(steps):
        crops, targets = _tensors([next(windows) for _ in range(128)])
        features = model.encode_image(crops, normalize=True)
        loss = torch.zeros(())
        for kind, texts in tokens.items():
            logits = model.logit_scale.exp() * features @ model.encode_text(texts, normalize=True).T
            loss = loss + torch.nn.functional.cross_entropy(logits, targets[kind])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.0)
        if step % 250 == 0:
            print(f"matcher step {step}/{steps} loss {loss.item():.3f}", flush=True)
    weights = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return measure_matcher(folder, seed) | {"steps": steps, "seed": seed}


Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the image."""
_INSIDE, _OUTSIDE = 0.6, 0.15
"""Shares of an object's box within a window: at least `_INSIDE` counts as shown, at most `_OUTSIDE` as not shown.
Windows with an object in between are skipped."""


def _windows(split: Split, count: int, seed: int) -> Iterator[tuple[Image.Image, dict[str, float]]]:
    """Yield random crops endlessly, each with the names of its objects and their shares of the total object area."""
    rng = random.Random(f"{seed}/windows")
    pool = [(render(scene), _named_boxes(scene)) for scene in _draw_scenes(split, count, seed)]
    while True:
        image, objects = rng.choice(pool)
        window = rng.choice((_around_object, _grid_tile, _random_window))(rng, [box for _, box in objects])
        shares = {box: _share(box, window) for _, box in objects}
        if any(_OUTSIDE < share < _INSIDE for share in shares.values()):
            continue
        areas: dict[str, float] = {}
        for name, box in objects:
            if shares[box] >= _INSIDE:
                areas[name] = areas.get(name, 0.0) + (box.x1 - box.x0) * (box.y1 - box.y0)
        crop = image.resize((MATCHER_SIZE, MATCHER_SIZE), Image.Resampling.BILINEAR, box=window)
        yield crop, {name: area / sum(areas.values()) for name, area in areas.items()}


def _named_boxes(scene: Scene) -> list[tuple[str, Box]]:
    return [(o.name, box) for o, box in zip(scene.objects, boxes(scene), strict=True)]


def _around_object(rng: random.Random, objects: Sequence[Box]) -> Rectangle:
    box = rng.choice(objects)
    width, height = box.x1 - box.x0, box.y1 - box.y0
    x0, x1 = (x + rng.uniform(-0.1, 0.1) * width for x in (box.x0, box.x1))
    y0, y1 = (y + rng.uniform(-0.1, 0.1) * height for y in (box.y0, box.y1))
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(SIDE)), min(y1, float(SIDE))


def _grid_tile(rng: random.Random, objects: Sequence[Box]) -> Rectangle:
    parts = rng.choice((2, 3, 3, 3))
    side = SIDE / parts
    column, row = rng.randrange(parts), rng.randrange(parts)
    return column * side, row * side, (column + 1) * side, (row + 1) * side


def _random_window(rng: random.Random, objects: Sequence[Box]) -> Rectangle:
    width, height = (rng.uniform(0.15, 1.0) * SIDE for _ in range(2))
    x0, y0 = rng.uniform(0, SIDE - width), rng.uniform(0, SIDE - height)
    return x0, y0, x0 + width, y0 + height


def _share(box: Box, window: Rectangle) -> float:
    """Return the share of a box's area that lies in a window."""
    width = max(min(box.x1, window[2]) - max(box.x0, window[0]), 0.0)
    height = max(min(box.y1, window[3]) - max(box.y0, window[1]), 0.0)
    return width * height / ((box.x1 - box.x0) * (box.y1 - box.y0))


def _tensors(
    batch: Sequence[tuple[Image.Image, dict[str, float]]],
) -> tuple["torch.Tensor", dict[str, "torch.Tensor"]]:
    """Convert crops to pixels in [-1, 1], and to the target distribution over each set of captions."""
    import numpy as np
    import torch

    pixels = np.stack([np.asarray(crop, dtype=np.float32) for crop, _ in batch]) / 127.5 - 1
    targets = {kind: torch.zeros(len(batch), len(texts)) for kind, texts in CAPTIONS.items()}
    for row, (_, shares) in enumerate(batch):
        for name, share in shares.items() or [("", 1.0)]:
            colour, _, shape = name.partition(" ")
            words = {"colour and shape": name, "shape": shape, "colour": f"{colour} shape"}
            for kind, texts in CAPTIONS.items():
                caption = with_article(words[kind]) if name else NOTHING
                targets[kind][row, texts.index(caption)] += share
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), targets


def _write_tokenizer(folder: Path) -> int:
    """Write a word-level tokenizer of the captions in the form open_clip expects; return its vocabulary size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for texts in CAPTIONS.values() for text in texts for word in text.split()})
    # open_clip takes the text feature at the largest id of a sequence, so the end token has the largest id.
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unknown>", *words, "<start>", "<end>"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<start>", vocabulary["<start>"]), ("<end>", vocabulary["<end>"])]
    core.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unknown>", bos_token="<start>", eos_token="<end>"
    )
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def measure_matcher(folder: Path, seed: int) -> dict[str, float]:
    """Measure held-out accuracy: colour of an object, shape of an object, content of a grid tile."""
    model = OpenClipMatcher(MatcherConfig(model=str(folder), template="{}", device="cpu"))
    rng = random.Random(f"{seed}/measure")
    correct: dict[str, list[bool]] = {"colour": [], "shape": [], "tile": []}
    for scene in _draw_scenes("heldout", _NUM_HELDOUT, seed):
        image = render(scene)
        for o, box in zip(scene.objects, boxes(scene), strict=True):
            crop = image.crop(_around_object(rng, [box]))
            colours = [with_article(f"{colour} {o.shape}") for colour in COLOURS]
            shapes = [with_article(f"{o.colour} {shape}") for shape in SHAPES]
            correct["colour"].append(_best(model, crop, colours) == with_article(o.name))
            correct["shape"].append(_best(model, crop, shapes) == with_article(o.name))
        for cell in range(9):
            x, y = cell % 3 * SIDE // 3, cell // 3 * SIDE // 3
            occupant = scene.at(cell)
            best = _best(model, image.crop((x, y, x + SIDE // 3, y + SIDE // 3)), CAPTIONS["colour and shape"])
            correct["tile"].append(best == (with_article(occupant.name) if occupant else NOTHING))
    accuracy = {f"{name}_accuracy": sum(hits) / len(hits) for name, hits in correct.items()}
    return accuracy | {"crops": len(correct["colour"]), "tiles": len(correct["tile"]), "scenes": _NUM_HELDOUT}


def _best(model: OpenClipMatcher, crop: Image.Image, texts: Sequence[str]) -> str:
    (scores,) = model.match([crop], texts)
    return texts[scores.index(max(scores))]
