"""Training of an embedded world's experts: a small YOLO that detects shapes, a small CLIP that tells attributes apart.

Both are trained on images of the train split and the true boxes alone, never on questions, responses or critiques.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from vlgenrm_ray.engines.detectors import DetectorConfig, yolo
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.engines.matchers.open_clip import OpenClipMatcher
from vlgenrm_ray.records import Box
from vlgenrm_ray.shapes.language import with_article
from vlgenrm_ray.shapes.render import SIDE

if TYPE_CHECKING:
    import torch

DETECTOR_SIZE = 96
"""Side of the detector's input, in pixels."""
MATCHER_SIZE = 32
"""Side of the matcher's input, in pixels."""
NOTHING = "nothing"
_NUM_TRAIN = 5000
_NUM_HELDOUT = 400


@dataclass(frozen=True, kw_only=True)
class ExpertMaterial:
    """Images, boxes and captions that the experts of a world are trained on and measured with."""

    labels: Sequence[str]
    """Nouns that the detector finds."""
    families: Mapping[str, Sequence[str]]
    """Family of attributes (colour) -> its words. An object has the word of a family as an attribute of that name."""
    heldout: str
    """Split that the experts are measured on."""
    draw_scene: Callable[[str, random.Random], Any]
    """Draws a scene of a split."""
    render: Callable[[Any], Image.Image]
    boxes: Callable[[Any], tuple[Box, ...]]
    """True box of each object of a scene, in its order."""

    @property
    def captions(self) -> dict[str, list[str]]:
        """Sets of texts that the matcher learns to tell apart; each set is a separate contrastive loss."""
        pairs = {
            f"{family} and shape": [f"{word} {label}" for word in words for label in self.labels]
            for family, words in self.families.items()
        }
        words_alone = {family: [f"{word} shape" for word in words] for family, words in self.families.items()}
        sets = pairs | {"shape": list(self.labels)} | words_alone
        return {name: [*map(with_article, texts), NOTHING] for name, texts in sets.items()}

    def captions_of(self, item: Any) -> dict[str, str]:
        """Return the caption of an object in each set of `captions`."""
        words = {family: getattr(item, family) for family in self.families}
        pairs = {f"{family} and shape": f"{word} {item.shape}" for family, word in words.items()}
        texts = pairs | {"shape": item.shape} | {family: f"{word} shape" for family, word in words.items()}
        return {name: with_article(text) for name, text in texts.items()}


def _draw_scenes(material: ExpertMaterial, split: str, count: int, seed: int) -> list[Any]:
    rng = random.Random(f"{seed}/{split}/experts")
    return [material.draw_scene(split, rng) for _ in range(count)]


# -- detector ------------------------------------------------------------------------------------------------------


def build_detector(folder: Path, material: ExpertMaterial, seed: int, steps: int = 700) -> dict[str, float]:
    """Train the detector, write `folder/model.pt`, return its held-out metrics. About 3 minutes on one core."""
    yolo.train(
        folder / "model.pt",
        _detector_batches(material, seed),
        steps=steps,
        labels=material.labels,
        scale=(0.33, 0.125, 256),
        image_size=DETECTOR_SIZE,
        learning_rate=5e-3,
        seed=seed,
    )
    detector = yolo.YoloDetector(
        DetectorConfig(model=str(folder), min_score=0.01, image_size=DETECTOR_SIZE, device="cpu")
    )
    scenes = _draw_scenes(material, material.heldout, _NUM_HELDOUT, seed)
    predictions = [detector.detect([material.render(scene)], material.labels)[0] for scene in scenes]
    metrics = yolo.average_precision(predictions, [material.boxes(scene) for scene in scenes])
    return metrics | {"scenes": len(scenes), "steps": steps, "seed": seed}


def _detector_batches(material: ExpertMaterial, seed: int, size: int = 32) -> Iterator[list[yolo.LabelledImage]]:
    rng = random.Random(seed)
    scenes = _draw_scenes(material, "train", _NUM_TRAIN, seed)
    pool = [(material.render(scene), material.boxes(scene)) for scene in scenes]
    while True:
        yield [_mirror(*item) if rng.random() < 0.5 else item for item in rng.sample(pool, size)]


def _mirror(image: Image.Image, labels: Sequence[Box]) -> yolo.LabelledImage:
    return ImageOps.mirror(image), [replace(box, x0=SIDE - box.x1, x1=SIDE - box.x0) for box in labels]


# -- matcher -------------------------------------------------------------------------------------------------------

_ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": MATCHER_SIZE, "patch_size": 8, "width": 96, "head_width": 32, "layers": 3},
    "text_cfg": {"context_length": 8, "width": 64, "heads": 2, "layers": 1, "hf_tokenizer_name": "in this folder"},
}
_PIXELS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


def build_matcher(folder: Path, material: ExpertMaterial, seed: int, steps: int = 1000) -> dict[str, float]:
    """Train the matcher, write it to `folder`, return its held-out metrics. About 3 minutes on one core."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    captions = material.captions
    num_words = _write_tokenizer(folder, captions)
    architecture = _ARCHITECTURE | {"text_cfg": {**_ARCHITECTURE["text_cfg"], "vocab_size": num_words}}
    config = {"model_cfg": architecture, "preprocess_cfg": _PIXELS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    name = f"local-dir:{folder}"
    model = open_clip.create_model(name, load_weights=False)
    tokenizer = open_clip.get_tokenizer(name)
    tokens = {kind: tokenizer(texts) for kind, texts in captions.items()}

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    windows = _windows(material, seed)
    model.train()
    for step in range(steps):
        crops, targets = _tensors(material, captions, [next(windows) for _ in range(128)])
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
    return measure_matcher(folder, material, seed) | {"steps": steps, "seed": seed}


Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the image."""
_INSIDE, _OUTSIDE = 0.6, 0.15
"""Shares of an object's box within a window: at least `_INSIDE` counts as shown, at most `_OUTSIDE` as not shown.
Windows with an object in between are skipped."""


CropWithObjects = tuple[Image.Image, list[tuple[Any, float]]]
"""A crop, with the objects that it shows and their shares of the total area of these objects."""


def _windows(material: ExpertMaterial, seed: int) -> Iterator[CropWithObjects]:
    """Yield random crops of train-split scenes endlessly."""
    rng = random.Random(f"{seed}/windows")
    scenes = _draw_scenes(material, "train", _NUM_TRAIN, seed)
    pool = [(material.render(scene), list(zip(scene.objects, material.boxes(scene), strict=True))) for scene in scenes]
    while True:
        image, objects = rng.choice(pool)
        window = rng.choice((_around_object, _grid_tile, _random_window))(rng, [box for _, box in objects])
        shares = [_share(box, window) for _, box in objects]
        if any(_OUTSIDE < share < _INSIDE for share in shares):
            continue
        shown = [
            (item, (box.x1 - box.x0) * (box.y1 - box.y0))
            for (item, box), share in zip(objects, shares, strict=True)
            if share >= _INSIDE
        ]
        total = sum(area for _, area in shown)
        crop = image.resize((MATCHER_SIZE, MATCHER_SIZE), Image.Resampling.BILINEAR, box=window)
        yield crop, [(item, area / total) for item, area in shown]


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
    material: ExpertMaterial, captions: Mapping[str, Sequence[str]], batch: Sequence[CropWithObjects]
) -> tuple["torch.Tensor", dict[str, "torch.Tensor"]]:
    """Convert crops to pixels in [-1, 1], and to the target distribution over each set of captions."""
    import numpy as np
    import torch

    pixels = np.stack([np.asarray(crop, dtype=np.float32) for crop, _ in batch]) / 127.5 - 1
    targets = {kind: torch.zeros(len(batch), len(texts)) for kind, texts in captions.items()}
    for row, (_, shown) in enumerate(batch):
        for item, share in shown:
            for kind, caption in material.captions_of(item).items():
                targets[kind][row, captions[kind].index(caption)] += share
        if not shown:
            for kind, texts in captions.items():
                targets[kind][row, texts.index(NOTHING)] = 1.0
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), targets


def _write_tokenizer(folder: Path, captions: Mapping[str, Sequence[str]]) -> int:
    """Write a word-level tokenizer of the captions in the form open_clip expects; return its vocabulary size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for texts in captions.values() for text in texts for word in text.split()})
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


def measure_matcher(folder: Path, material: ExpertMaterial, seed: int) -> dict[str, float]:
    """Measure held-out accuracy: attributes of an object, shape of an object, content of a grid tile."""
    model = OpenClipMatcher(MatcherConfig(model=str(folder), template="{}", device="cpu"))
    rng = random.Random(f"{seed}/measure")
    first_family = next(iter(material.families))
    texts = material.captions[f"{first_family} and shape"]
    correct: dict[str, list[bool]] = {name: [] for name in (*material.families, "shape", "tile")}
    for scene in _draw_scenes(material, material.heldout, _NUM_HELDOUT, seed):
        image = material.render(scene)
        for item, box in zip(scene.objects, material.boxes(scene), strict=True):
            crop = image.crop(_around_object(rng, [box]))
            for family, words in material.families.items():
                of_family = [with_article(f"{word} {item.shape}") for word in words]
                correct[family].append(
                    _best(model, crop, of_family) == material.captions_of(item)[f"{family} and shape"]
                )
            word = getattr(item, first_family)
            shapes = [with_article(f"{word} {label}") for label in material.labels]
            correct["shape"].append(_best(model, crop, shapes) == with_article(f"{word} {item.shape}"))
        for cell in range(9):
            x, y = cell % 3 * SIDE // 3, cell // 3 * SIDE // 3
            occupant = scene.at(cell)
            best = _best(model, image.crop((x, y, x + SIDE // 3, y + SIDE // 3)), texts)
            wanted = material.captions_of(occupant)[f"{first_family} and shape"] if occupant else NOTHING
            correct["tile"].append(best == wanted)
    accuracy = {f"{name}_accuracy": sum(hits) / len(hits) for name, hits in correct.items()}
    return accuracy | {"crops": len(correct["shape"]), "tiles": len(correct["tile"]), "scenes": _NUM_HELDOUT}


def _best(model: OpenClipMatcher, crop: Image.Image, texts: Sequence[str]) -> str:
    (scores,) = model.match([crop], texts)
    return texts[scores.index(max(scores))]
