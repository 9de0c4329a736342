"""The experts stage with the models of the embedded world: verdicts, grouping by image, drops, resuming."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vlgenrm_ray.curation import by_image, experts
from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.experts.expert import MatchingConfig
from vlgenrm_ray.experts.pipeline import ExpertPipeline
from vlgenrm_ray.records import CheckedResponse, ClaimKind, Question, Response, Truth
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.shapes.language import HORIZONTAL, VERTICAL, count_clause, sentence
from vlgenrm_ray.shapes.questions import describe, existence
from vlgenrm_ray.shapes.scenes import COLOURS, SHAPES, Scene
from vlgenrm_ray.shapes.truth import holds
from vlgenrm_ray.shapes.world import questions, scene_of

CONFIG = ExpertsConfig(
    vocabulary="shapes",
    detector=DetectorConfig(model=str(pack_path("detector")), image_size=96),
    matcher=MatcherConfig(model=str(pack_path("matcher")), template="{}"),
    matching=MatchingConfig(grids=(3,)),
)


def statements(scene: Scene, rng: random.Random) -> Iterator[str]:
    """One true and one false sentence of each kind of claim, as far as the scene has them."""
    names = sorted({thing.name for thing in scene.objects})
    absent = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in names]
    thing, other = rng.choice(scene.objects), rng.choice(scene.objects)
    empty = [cell for cell in range(9) if scene.at(cell) is None]
    yield existence(thing.name, True)
    yield existence(thing.name, False)
    absent_name = rng.choice(absent)
    yield existence(absent_name, True)
    yield existence(absent_name, False)
    noun = rng.choice([thing.shape, f"{thing.colour} shape", rng.choice(SHAPES)])
    number = len(scene.matching(noun))
    yield sentence(count_clause(noun, number))
    yield sentence(count_clause(noun, rng.choice([n for n in range(4) if n != number])))
    # "The star" means one: of two stars of two colours nothing definite is said.
    for sole in [t for t in scene.objects if len(scene.matching(t.shape)) == 1]:
        yield f"The {sole.shape} is {sole.colour}."
        yield f"The {sole.shape} is {rng.choice([c for c in COLOURS if c != sole.colour])}."
    yield describe([(thing.name, thing.cell)])
    yield describe([(thing.name, rng.choice(empty)), (absent_name, thing.cell)])
    # Of things in one column neither is left nor right: nothing definite is said of those either.
    beside = HORIZONTAL if thing.column != other.column else ()
    for relation in (*beside, *(VERTICAL if thing.row != other.row else ())):
        yield f"The {thing.name} is {relation} the {other.name}."


def make_unit(question: Question, texts: list[str]) -> Unit[Response]:
    responses = (
        Response(id=f"{question.id}/r{i}", question=question, text=text, sampler="test") for i, text in enumerate(texts)
    )
    return Unit(id=question.id, records=tuple(responses))


def test_definite_verdicts_of_the_experts_of_the_pack_are_right(tmp_path: Path) -> None:
    rng = random.Random(0)
    asked_questions = list(questions(tmp_path, seed=5, split="heldout", count=30))
    units = [make_unit(q, list(statements(scene_of(q.id), rng))) for q in asked_questions]
    pipeline = ExpertPipeline.build(CONFIG)
    rows = [experts.open_image(u.id, u.records, pipeline, CONFIG.images) for u in units]
    verdicts: Counter[tuple[ClaimKind, Truth, bool]] = Counter()
    for row in experts.examine_images(rows, pipeline):
        for record in experts.check_responses(row, pipeline).records:
            for finding in record.findings:
                verdicts[finding.claim.kind, finding.truth, holds(scene_of(record.id), finding.claim)] += 1
    for kind in set(ClaimKind) - {ClaimKind.TEXT}:
        right = verdicts[kind, Truth.SUPPORTED, True] + verdicts[kind, Truth.CONTRADICTED, False]
        wrong = verdicts[kind, Truth.SUPPORTED, False] + verdicts[kind, Truth.CONTRADICTED, True]
        unknown = verdicts[kind, Truth.UNKNOWN, True] + verdicts[kind, Truth.UNKNOWN, False]
        print(f"{kind}: {right} right, {wrong} wrong, {unknown} unknown")
        assert right + wrong + unknown >= 50
        assert right / (right + wrong) >= 0.95, kind
        assert right / (right + wrong + unknown) >= 0.8, kind


@pytest.mark.usefixtures("ray_local")
def test_every_response_is_checked_once_in_whatever_shard_it_lies(tmp_path: Path, run_folder: Path) -> None:
    rng = random.Random(1)
    asked_questions = list(questions(tmp_path / "images", seed=6, split="train", count=12))
    gone = replace(asked_questions[3], image=replace(asked_questions[3].image, uri=str(tmp_path / "gone.png")))
    asked_questions[3] = gone
    # A second question about the first image, in another shard.
    again = replace(asked_questions[0], id=f"{asked_questions[0].id}-again")
    source = StageFolder(run_folder / "responses")
    source.begin("f", {})
    units = {q.id: make_unit(q, list(statements(scene_of(q.id), rng))[:4]) for q in asked_questions}
    write_units(source, Response, [units[q.id] for q in asked_questions[:6]])
    write_units(source, Response, [*(units[q.id] for q in asked_questions[6:]), make_unit(again, ["Nothing to say."])])
    source.finish(seconds=0)
    assert by_image.count_images(source)[1] == [asked_questions[0].image.sha256]

    target = StageFolder(run_folder / "experts")
    manifest = experts.run(CONFIG, source=source, target=target)

    checked = {record.id: record for record in target.records(CheckedResponse)}
    dropped_ids = {drop.id for drop in target.dropped()}
    assert dropped_ids == {f"{gone.id}/r{i}" for i in range(4)}
    assert set(checked) | dropped_ids == {r.id for unit in units.values() for r in unit.records} | {f"{again.id}/r0"}
    assert not set(checked) & dropped_ids
    assert checked[f"{again.id}/r0"].findings == ()
    assert checked[f"{again.id}/r0"].detections == checked[f"{asked_questions[0].id}/r0"].detections != ()
    assert manifest.rows_in == 12
    assert manifest.dropped == {"image_missing": 4}
    assert manifest.metrics["responses_without_claims"] == 1
    assert sum(manifest.metrics["findings"]["existence"].values()) == 11 * 4

    # What a killed run left behind is finished, and the result is the same.
    target.manifest_path.unlink()
    target.shards()[0].unlink()
    assert experts.run(CONFIG, source=source, target=target).data_hash == manifest.data_hash
