"""Detectors and matchers satisfy their contracts; models that cannot be loaded are named."""

import os
import pickle
import random
import string
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from vlgenrm_ray.data.images import ImageError, ImageLimits, decode
from vlgenrm_ray.engines.contracts import Detector
from vlgenrm_ray.engines.detectors import DetectorConfig, build_detector
from vlgenrm_ray.engines.matchers import MatcherConfig, build_matcher
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.shapes.render import boxes, render
from vlgenrm_ray.shapes.scenes import COLOURS, SHAPES, draw_scene_of

YOLO = DetectorConfig(model=str(pack_path("detector")), image_size=96, min_score=0.01)
CLIP = MatcherConfig(model=str(pack_path("matcher")), template="{}")


def check_detector(detector: Detector, images: Sequence[Image.Image], nouns: Sequence[str]) -> int:
    """Detect, check the result against the contract, and return the number of boxes."""
    boxes_of_images = detector.detect(images, nouns)
    assert len(boxes_of_images) == len(images)
    for image, image_boxes in zip(images, boxes_of_images, strict=True):
        assert list(image_boxes) == sorted(image_boxes, key=lambda box: -box.score)
        for box in image_boxes:
            assert box.label in nouns
            assert 0 <= box.x0 < box.x1 <= image.width
            assert 0 <= box.y0 < box.y1 <= image.height
    return sum(map(len, boxes_of_images))


def test_the_detector_of_the_pack_detects_shapes_in_unseen_scenes() -> None:
    from vlgenrm_ray.engines.detectors.yolo import average_precision

    rng = random.Random(9)
    scenes = [draw_scene_of("test", rng) for _ in range(80)]
    scene_images = [render(scene) for scene in scenes]
    detector = build_detector(YOLO)
    assert detector.labels == SHAPES
    assert check_detector(detector, scene_images[:3], SHAPES) >= 3
    assert check_detector(detector, [scene_images[0], scene_images[1].resize((100, 50))], ["star", "unicorn"]) >= 0
    assert check_detector(detector, scene_images[:2], ["unicorn"]) == 0
    assert detector.detect([], SHAPES) == []
    predicted = [of_image for i in range(0, 80, 20) for of_image in detector.detect(scene_images[i : i + 20], SHAPES)]
    assert average_precision(predicted, [boxes(scene) for scene in scenes])["map50"] >= 0.95


def test_ultralytics_does_not_patch_pillow() -> None:
    import PIL.Image

    build_detector(YOLO)
    assert PIL.Image.open.__module__ == "PIL.Image"
    with pytest.raises(ImageError, match="damaged, or not an image"):
        decode(b"no image", ImageLimits())


def test_ultralytics_stays_quiet_and_offline(capfd: pytest.CaptureFixture[str]) -> None:
    detector = build_detector(YOLO)
    detector.detect([Image.new("RGB", (64, 64))], SHAPES)
    from ultralytics.utils import AUTOINSTALL, ONLINE, SETTINGS_FILE

    assert (ONLINE, AUTOINSTALL) == (False, False)
    assert Path(os.environ["YOLO_CONFIG_DIR"]) in Path(SETTINGS_FILE).parents
    assert capfd.readouterr().out == ""


def test_the_matcher_of_the_pack_recognises_colours_and_rows_sum_to_one() -> None:
    matcher = build_matcher(CLIP)
    rng = random.Random(10)
    crops, names = [], []
    for scene in (draw_scene_of("test", rng) for _ in range(40)):
        image = render(scene)
        for thing, box in zip(scene.objects, boxes(scene), strict=True):
            crops.append(image.crop((box.x0, box.y0, box.x1, box.y1)))
            names.append(thing)
    right = 0
    for shape in SHAPES:
        mine = [(crop, thing.colour) for crop, thing in zip(crops, names, strict=True) if thing.shape == shape]
        texts = [f"{'an' if c == 'orange' else 'a'} {c} {shape}" for c in COLOURS]
        rows = matcher.match([crop for crop, _ in mine], texts)
        turned = matcher.match([crop for crop, _ in mine], texts[::-1])
        for row, back, (_, colour) in zip(rows, turned, mine, strict=True):
            assert sum(row) == pytest.approx(1, abs=1e-4)
            assert row == pytest.approx(back[::-1], abs=1e-4)
            right += COLOURS[row.index(max(row))] == colour
    assert right / len(names) >= 0.95
    assert matcher.match([], ["a star"]) == []
    assert matcher.match(crops[:1], []) == [[]]


class HarmfulPickle:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)

    def __init__(self, path: str) -> None:
        self.path = path


@pytest.mark.parametrize("kind", ["missing", "empty", "garbage", "harmful"])
def test_an_unreadable_detector_is_named_and_runs_no_code(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if kind != "missing":
        folder.mkdir()
    if kind == "garbage":
        (folder / "model.pt").write_bytes(b"not a model")
    if kind == "harmful":
        (folder / "model.pt").write_bytes(pickle.dumps({"model": HarmfulPickle(str(tmp_path / "ran"))}))
    with pytest.raises(InputError, match=r"detector\.model: .*model.*; give a"):
        build_detector(DetectorConfig(model=str(folder)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["missing", "empty", "no weights"])
def test_an_unreadable_matcher_is_named(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if kind != "missing":
        folder.mkdir()
    if kind == "no weights":
        config = (pack_path("matcher") / "open_clip_config.json").read_text()
        (folder / "open_clip_config.json").write_text(config)
    with pytest.raises(InputError, match=r"matcher\.model: .*model.*; give a folder"):
        build_matcher(MatcherConfig(model=str(folder)))


def test_an_unreadable_zero_shot_detector_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"detector\.model: .* is no zero-shot detector"):
        build_detector(DetectorConfig(kind="zero_shot", model=str(tmp_path)))


def test_a_missing_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match=r"device: 'cuda:0', but this process sees no GPU; use 'auto'"):
        build_detector(YOLO.model_copy(update={"device": "cuda:0"}))


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_without_exactly_one_placeholder_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="exactly once"):
        MatcherConfig(model="x", template=template)


def grounding_dino(folder: Path) -> None:
    """A Grounding DINO of a few thousand random weights."""
    import transformers as t

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "a", "dog", "traffic", "light"]
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    image = {"image_size": 64, "embed_dim": 16, "depths": [1] * 4, "num_heads": [2] * 4, "window_size": 4}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 10, "max_text_len": 16}
    config = t.GroundingDinoConfig(
        backbone_config=t.SwinConfig(out_features=["stage2", "stage3", "stage4"], **image),
        text_config={"model_type": "bert", "vocab_size": len(words), **text},
        d_model=32,
        **layers,
        **heads,
    )
    t.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    tokenizer = t.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    pixels = t.GroundingDinoImageProcessor(size={"height": 64, "width": 64})
    t.GroundingDinoProcessor(image_processor=pixels, tokenizer=tokenizer).save_pretrained(folder)


def owlv2(folder: Path) -> None:
    """An OWLv2 of a few thousand random weights."""
    import transformers as t

    letters = string.ascii_lowercase
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1, "pad_token_id": 0}
    config = t.Owlv2Config(
        text_config={**small, **ends, "vocab_size": len(pieces), "max_position_embeddings": 16},
        vision_config={**small, "image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    t.Owlv2ForObjectDetection(config).save_pretrained(folder)
    tokenizer = t.CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    pixels = t.Owlv2ImageProcessor(size={"height": 64, "width": 64})
    t.Owlv2Processor(image_processor=pixels, tokenizer=tokenizer).save_pretrained(folder)


@pytest.mark.parametrize("make", [grounding_dino, owlv2])
def test_zero_shot_detectors_of_transformers_satisfy_the_contract(make: object, tmp_path: Path) -> None:
    import torch

    assert callable(make)
    torch.manual_seed(0)
    make(tmp_path)
    detector = build_detector(DetectorConfig(kind="zero_shot", model=str(tmp_path), min_score=0.01))
    assert detector.labels == ()
    plain_images = [Image.new("RGB", (120, 80), "red"), Image.new("RGB", (50, 90), "blue")]
    number = check_detector(detector, plain_images, ["dog", "traffic light"])
    # Random weights: OWLv2's boxes have no height and are dropped, Grounding DINO's stay.
    assert number > 0 or make is owlv2
    assert detector.detect(plain_images, []) == [(), ()]


# -- ultralytics: exported and open-vocabulary models ------------------------------------------------------------------


def test_an_onnx_model_without_onnxruntime_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *args: None if name == "onnxruntime" else find_spec(name, *args)
    )
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"needs the package onnxruntime.*pip install onnxruntime"):
        build_detector(DetectorConfig(model=str(tmp_path / "model.onnx")))


@pytest.mark.parametrize("architecture", ["yolov8-world.yaml", "yoloe-11.yaml"])
def test_yolo_world_and_yoloe_search_for_the_nouns_of_each_call(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights; the text encoder, which is a download, is replaced by random embeddings."""
    import torch
    from ultralytics import YOLO
    from ultralytics.nn.tasks import WorldModel, YOLOEModel

    YOLO(architecture, task="detect").save(tmp_path / "model.pt")
    config = DetectorConfig(model=str(tmp_path), image_size=96, min_score=0.0001)
    detector = build_detector(config)
    assert detector.labels == ()
    image = Image.new("RGB", (90, 60), "red")
    with monkeypatch.context() as offline:
        for model in (WorldModel, YOLOEModel):
            offline.setattr(model, "get_text_pe", lambda self, text, **_: (_ for _ in ()).throw(OSError("no encoder")))
        with pytest.raises(
            InputError, match=r"the text encoder of .*model\.pt cannot be loaded \(OSError: no encoder\)"
        ):
            detector.detect([image], ["cup"])
    for model in (WorldModel, YOLOEModel):
        monkeypatch.setattr(model, "get_text_pe", lambda self, text, **_: torch.randn(1, len(text), 512))
    num_boxes = check_detector(detector, [image], ["cup", "red bus"])
    assert num_boxes + check_detector(detector, [image], ["unicorn"]) > 0
    assert detector.detect([image], []) == [()]


@pytest.mark.skipif("VLGENRM_REAL_DATA" not in os.environ, reason="VLGENRM_REAL_DATA is unset")
def test_a_real_onnx_detector_finds_the_objects_of_real_photographs() -> None:
    root = Path(os.environ["VLGENRM_REAL_DATA"])
    model = root / "detector" / "nanodet_g_coco80.onnx"
    detector = build_detector(DetectorConfig(model=str(model), image_size=416, min_score=0.3))
    assert len(detector.labels) == 80
    paths = sorted((root / "photos" / "coco128_train" / "images").glob("*.jpg"))[:8]
    images = [Image.open(path).convert("RGB") for path in paths]
    assert check_detector(detector, images, detector.labels) >= 8
