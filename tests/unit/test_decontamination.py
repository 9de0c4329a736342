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
from vlgenrm_ray.curation.decontamination import (
    BenchmarkIndex,
    DecontaminationConfig,
    build_index,
    normalise,
    perceptual_hash,
)
from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.errors import DropReason, InputError
from vlgenrm_ray.evaluation.benchmark_run import BenchmarkTask, shown_images

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


def index(*paths: Path, max_distance: int = 4) -> BenchmarkIndex:
    benchmarks = tuple(map(str, paths))
    built = build_index(DecontaminationConfig(benchmarks=benchmarks, max_distance=max_distance), LIMITS)
    assert built is not None
    return built


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


def recipe_index(config: DecontaminationConfig, *paths: Path) -> BenchmarkIndex | None:
    return build_index(config, LIMITS, {"pope": [(str(path), "Is it red?") for path in paths]})


def test_the_recipe_s_benchmarks_are_compared_unless_others_or_none_are_stated(tmp_path: Path) -> None:
    own, other = save(tmp_path / "own", 1), save(tmp_path / "other", 2)
    inherited = recipe_index(DecontaminationConfig(), own)
    assert inherited is not None
    assert (inherited.find(draw(1), []), inherited.find(draw(2), [])) == (str(own), "")
    stated = recipe_index(DecontaminationConfig(benchmarks=(str(other.parent),)), own)
    assert stated is not None
    assert (stated.find(draw(1), []), stated.find(draw(2), [])) == ("", str(other))
    assert recipe_index(DecontaminationConfig(benchmarks=()), own) is None
    assert recipe_index(DecontaminationConfig()) is None, "a benchmark of texts alone"
    assert build_index(DecontaminationConfig(), LIMITS) is None, "a recipe without benchmarks"


def test_a_recipe_s_benchmark_without_its_images_names_the_switch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pope: none of its 1 images .*benchmarks to \[\]"):
        recipe_index(DecontaminationConfig(), tmp_path / "gone.png")


def test_images_of_a_recipe_s_benchmarks_are_listed_from_files_and_from_bytes(tmp_path: Path) -> None:
    data = save(tmp_path, 1).read_bytes()
    rows = [{"question_id": i, "image": "1.png", "text": f"Is it {i}?", "label": "no"} for i in range(2)]
    (tmp_path / "pope.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pair = {"id": "a", "query": "What?", "response": ["x", "y"], "human_ranking": [0, 1], "image": {"bytes": data}}
    pq.write_table(pa.Table.from_pylist([pair]), tmp_path / "vl.parquet")
    tasks = [
        BenchmarkTask(name="pope", data=tmp_path / "pope.jsonl"),
        BenchmarkTask(name="vl_rewardbench", data=tmp_path / "vl.parquet"),
    ]
    shown = shown_images(tasks, None)
    assert shown["pope"] == [(str(tmp_path / "1.png"), "Is it 0?"), (str(tmp_path / "1.png"), "Is it 1?")]
    assert shown["vl_rewardbench"] == [(data, "What?")]
    built = build_index(DecontaminationConfig(), LIMITS, shown)
    assert built is not None
    assert built.find(draw(1), []) == str(tmp_path / "1.png")
