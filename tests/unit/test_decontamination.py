"""Images of benchmarks are found among those to train on, in any size and encoding, and dropped with a reason."""

import hashlib
import io
import json
import random
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import image, question, response
from fake_experts import pipeline

from vlgenrm_ray.curation import experts
from vlgenrm_ray.curation.decontamination import DecontaminationConfig, build_index, normalise, perceptual_hash
from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.errors import DropReason, InputError

LIMITS = ImageLimits()


def draw(seed: int, side: int = 160) -> PIL.Image.Image:
    """An image with some random ellipses."""
    rng = random.Random(seed)
    drawn = PIL.Image.new("RGB", (side, side), (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
    draw = PIL.ImageDraw.Draw(drawn)
    for _ in range(12):
        x, y, r = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.3)
        corners = [(v * side) for v in (x - r, y - r, x + r, y + r)]
        draw.ellipse(corners, fill=(rng.randrange(256), rng.randrange(256), rng.randrange(256)))
    return drawn


def save(folder: Path, seed: int, name: str = "") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / (name or f"{seed}.png")
    draw(seed).save(path)
    return path


def index(*paths: Path, max_distance: int = 4) -> object:
    return build_index(DecontaminationConfig(benchmarks=tuple(map(str, paths)), max_distance=max_distance), LIMITS)


def variants(original: PIL.Image.Image) -> dict[str, PIL.Image.Image]:
    buffer = io.BytesIO()
    original.save(buffer, "JPEG", quality=60)
    return {
        "same": original,
        "jpeg": PIL.Image.open(io.BytesIO(buffer.getvalue())),
        "smaller": original.resize((90, 90)),
        "larger": original.resize((333, 333)),
        "grey": original.convert("L").convert("RGB"),
    }


def test_an_image_is_found_again_in_other_sizes_and_encodings_and_others_are_not(tmp_path: Path) -> None:
    for seed in range(20):
        save(tmp_path, seed)
    benchmarks = index(tmp_path)
    for seed in range(20):
        for name, variant in variants(draw(seed)).items():
            assert benchmarks.find(variant, ["What is this?"]) == str(tmp_path / f"{seed}.png"), name
    assert [benchmarks.find(draw(seed), ["What is this?"]) for seed in range(100, 160)] == [""] * 60


def test_the_same_question_makes_a_more_distant_image_the_same(tmp_path: Path) -> None:
    save(tmp_path, 3)
    rows = [{"image": "3.png", "question": "<image>\nHow many discs are there?"}]
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, rows)))
    benchmarks = index(tmp_path / "bench.jsonl", max_distance=0)
    cropped = draw(3).crop((4, 4, 158, 158))
    distance = int(perceptual_hash(cropped) ^ perceptual_hash(draw(3))).bit_count()
    assert 0 < distance <= 12
    assert benchmarks.find(cropped, ["Describe the image."]) == ""
    assert benchmarks.find(cropped, ["Describe the image.", "how many discs  are there"]) == str(tmp_path / "3.png")
    assert benchmarks.find(draw(50), ["How many discs are there?"]) == "", "a question alone is none"
    assert normalise("<image> Is it\n RED?") == "is it red"


def test_benchmarks_are_read_as_folders_arrays_lines_and_parquet(tmp_path: Path) -> None:
    data = save(tmp_path, 1).read_bytes()
    save(tmp_path / "images", 2)
    (tmp_path / "array.json").write_text(json.dumps([{"image": "images/2.png", "query": "A?"}, {"image": "gone.png"}]))
    pq.write_table(pa.table({"image": [{"bytes": data, "path": "x.png"}], "question": ["B?"]}), tmp_path / "b.parquet")
    (tmp_path / "lists.jsonl").write_text(json.dumps({"image": ["images/2.png", "1.png"], "text": "C?"}))
    assert len(index(tmp_path / "images").hashes) == 1
    assert index(tmp_path / "array.json").find(draw(2), []) == str(tmp_path / "images" / "2.png")
    assert index(tmp_path / "b.parquet").find(draw(1), [])
    assert len(index(tmp_path / "lists.jsonl").hashes) == 2
    assert len(index(tmp_path / "lists.jsonl", tmp_path / "images").hashes) == 2, "each image once"


def test_a_benchmark_without_images_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bench.json").write_text('[{"image": "gone.png", "question": "A?"}]')
    with pytest.raises(InputError, match=r"bench\.json: none of its 1 images can be read"):
        index(tmp_path / "bench.json")
    with pytest.raises(InputError, match="cannot be read"):
        index(tmp_path / "nothing.json")
    save(tmp_path, 1)
    (tmp_path / "bench.json").write_text('[{"image": "gone.png"}, {"image": "1.png"}]')
    index(tmp_path / "bench.json")
    assert "1 images cannot be read and are not compared" in caplog.text


def test_responses_about_a_benchmark_image_are_dropped_with_the_reason(tmp_path: Path) -> None:
    bench, train = save(tmp_path / "bench", 1), save(tmp_path / "train", 1)
    draw(1).save(train, "JPEG")
    config = ExpertsConfig(
        vocabulary="shapes",
        detector=DetectorConfig(model="none"),
        matcher=MatcherConfig(model="none"),
        decontamination=DecontaminationConfig(benchmarks=(str(bench.parent),)),
    )
    experts_of = pipeline(config)
    benchmarks = build_index(config.decontamination, config.images)
    sha256 = hashlib.sha256(train.read_bytes()).hexdigest()
    ref = image(uri=str(train), sha256=sha256, width=160, height=160)
    answers = [response(f"q0/r{i}", question=question(image=ref), text="A circle.") for i in range(2)]
    row = experts.open_image(sha256, answers, experts_of, config.images, benchmarks)
    (examined,) = experts.examine_images([row], experts_of)
    unit = experts.check_responses(examined, experts_of)
    assert unit.records == ()
    assert [(d.id, d.reason) for d in unit.dropped] == [(a.id, DropReason.BENCHMARK_IMAGE) for a in answers]
    assert str(bench) in unit.dropped[0].detail
    clean = experts.open_image(sha256, answers, experts_of, config.images)
    assert not clean.task.drop_reason
