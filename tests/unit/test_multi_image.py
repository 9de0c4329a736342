"""Questions about several images: every stage hands all of them on, in their order."""

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import factories
import pytest
from fake_experts import pipeline
from PIL import Image

from vlgenrm_ray.curation import experts
from vlgenrm_ray.curation.evidence import EvidenceConfig, EvidenceIndex, QuestionEvidence
from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.curation.pair_builders import BalanceConfig, edited_pairs, imported_pairs, verified_pairs
from vlgenrm_ray.curation.pool import PoolConfig, resolve_row
from vlgenrm_ray.curation.responses import CHOSEN, REJECTED, GeneratorConfig, generate_responses
from vlgenrm_ray.curation.sources.rows import SourceRow
from vlgenrm_ray.curation.sources.values import SourceImage
from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.evaluation.pairs import judge_pairs
from vlgenrm_ray.experts.vocabulary import load_vocabulary
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge
from vlgenrm_ray.records import Origin, Preference, Question, Side
from vlgenrm_ray.report.exports import ExportRow
from vlgenrm_ray.report.exports.llamafactory import LlamaFactory
from vlgenrm_ray.report.exports.ms_swift import MsSwift
from vlgenrm_ray.report.exports.trl import Trl
from vlgenrm_ray.reward.critiques import judge_item
from vlgenrm_ray.reward.examples import JudgeTemplates, build_examples
from vlgenrm_ray.reward.rejection_sampling import Combination
from vlgenrm_ray.rewards.image_ablation import ablate_image
from vlgenrm_ray.rewards.reward import RewardOutput

LIMITS = ImageLimits()
COLOURS = ("red", "blue", "green")


@pytest.fixture
def question(tmp_path: Path) -> Question:
    refs = []
    for number, colour in enumerate(COLOURS):
        path = tmp_path / f"{colour}.png"
        Image.new("RGB", (40 + number, 30), colour).save(path)
        refs.append(images.probe(str(path), LIMITS))
    return factories.question(image=refs[0], more_images=tuple(refs[1:]))


def colours_of(prompt: Prompt) -> tuple[str, ...]:
    names = {(255, 0, 0): "red", (0, 0, 255): "blue", (0, 128, 0): "green", (128, 128, 128): "grey"}
    return tuple(names[image.getpixel((0, 0))] for image in prompt.images)


def test_the_pool_opens_all_images_of_a_row(question: Question, tmp_path: Path) -> None:
    sources = tuple(SourceImage(uri=ref.uri) for ref in question.images)
    row = SourceRow(id="d:1", question_id="q", images=sources, text="What differs?")
    (record,) = resolve_row(row, PoolConfig(), tmp_path).records
    assert record.images == question.images


def test_generators_and_judges_see_all_images_in_order(question: Question) -> None:
    seen: list[tuple[str, ...]] = []

    def write(prompt: Prompt, chance: random.Random) -> str:
        seen.append(colours_of(prompt))
        return "A text.\nVerdict: Yes"

    config = GeneratorConfig(name="policy", n=1)
    generate_responses([question], ScriptedGenerator(write), config, first=0, seed=0, limits=LIMITS)
    judge = Judge(
        JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=1), ScriptedGenerator(write)
    )
    pair = factories.preference(question=question)
    judge_pairs(judge, [pair], limits=LIMITS, no_image_share=1.0)
    assert set(seen) == {COLOURS, ("grey",) * 3}
    assert judge_item(pair, Side.CHOSEN).images == question.images


def test_a_missing_second_image_drops_the_question(question: Question) -> None:
    lost = replace(question, more_images=(factories.image(uri="/nowhere.png"),))
    config = GeneratorConfig(name="policy", n=1)
    (unit,) = generate_responses([lost], ScriptedGenerator({}), config, first=0, seed=0, limits=LIMITS)
    assert [(d.reason, "(image 2 of 2)" in d.detail) for d in unit.dropped] == [("image_missing", True)]


def test_training_examples_have_all_images(question: Question) -> None:
    pair = factories.preference(question=question)
    sides = {side: factories.critique(f"q0/p0/{side}/c0", side=side) for side in Side}
    combination = Combination(chosen=sides[Side.CHOSEN], rejected=sides[Side.REJECTED], margin=1.0)
    templates = JudgeTemplates(critique="{question} {response}", direct="{question} {response}")
    examples = build_examples([combination], pair, templates, w_direct=1.0, lambda_answer=1.0)
    assert {example.images for example in examples} == {question.images}


def test_experts_say_nothing_of_several_images(question: Question) -> None:
    """They see the first image alone: what a response says of another one would be contradicted."""
    config = ExpertsConfig(
        vocabulary="shapes", detector=DetectorConfig(model="none"), matcher=MatcherConfig(model="none"), max_side=60
    )
    steps = pipeline(config)
    sides = [
        factories.response(f"q0/r{i}", question=question, text=text, sampler=sampler)
        for i, (text, sampler) in enumerate((("There is a red circle.", CHOSEN), ("There is a star.", REJECTED)))
    ]
    row = experts.open_image(question.image.sha256, sides, steps, LIMITS)
    (examined,) = experts.examine_images([row], steps)
    checked = experts.check_responses(examined, steps).records
    assert [(c.findings, c.detections, c.window_scores) for c in checked] == [((), (), ())] * 2
    index = EvidenceIndex(checked, load_vocabulary("shapes"), config.thresholds)
    evidence = QuestionEvidence.from_responses(checked, index, EvidenceConfig(), 0)
    (pair,) = imported_pairs(evidence, BalanceConfig())
    assert isinstance(pair, Preference)
    assert (pair.origin, pair.question.images) == (Origin.IMPORTED, question.images)
    assert not [*verified_pairs(evidence, BalanceConfig()), *edited_pairs(evidence, BalanceConfig())]


def test_an_ablation_blanks_all_images(question: Question) -> None:
    class Recorder:
        def image_dependent_part(self) -> "Recorder":
            return self

        async def score(self, rollouts: list[object]) -> list[RewardOutput]:
            self.shown = [rollout.question.images for rollout in rollouts]  # type: ignore[attr-defined]
            return [RewardOutput(reward=0.5, status="ok") for _ in rollouts]

    reward = Recorder()
    answer = factories.rollout(question=question, reward=1.0, status="ok")
    asyncio.run(ablate_image(reward, [answer], 1))  # type: ignore[arg-type]
    ((*blank,),) = reward.shown
    assert [image.width for image in blank] == [40, 41, 42]
    assert all(image.uri.startswith("data:") for image in blank)


def test_a_run_with_several_images_can_be_moved(question: Question, tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "pool")
    folder.begin("settings", {})
    single = factories.question("q1", image=question.image)
    write_units(folder, Question, [Unit(id=q.id, records=(q,)) for q in (question, single)])
    folder.finish(seconds=0.0)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in [*tmp_path.glob("*.png"), tmp_path / "pool"]:
        path.rename(moved / path.name)
    first, second = sorted(StageFolder(moved / "pool").records(Question), key=lambda q: q.id)
    assert [ref.uri for ref in first.images] == [str(moved / f"{colour}.png") for colour in COLOURS]
    assert second.more_images == ()


def test_exports_hold_all_images(question: Question, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    row = ExportRow(
        id="x",
        image=question.image,
        more_images=question.more_images,
        prompt="What differs?",
        response="A",
        rejected="B",
    )
    for writer in (LlamaFactory(), MsSwift()):
        line = json.loads(writer.write([row], tmp_path, "rows").read_text())
        assert len(line["images"]) == 3
        assert line["messages"][0]["content"] == "<image><image><image>What differs?"
    (exported,) = pq.read_table(Trl().write([row], tmp_path, "rows")).to_pylist()
    assert len(exported["images"]) == 3
