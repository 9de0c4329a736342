"""Judging held-out pairs with a scripted judge: results, the blank image, drops, metrics."""

import random
from pathlib import Path

import factories
import pytest
from PIL import Image

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.evaluation.pairs import NO_IMAGE, accuracy_gain, is_in_share, judge_pairs, pair_metrics
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge
from vlgenrm_ray.records import ImageRef, PairResult, Preference

LIMITS = ImageLimits()


@pytest.fixture
def red(tmp_path: Path) -> ImageRef:
    path = tmp_path / "red.png"
    Image.new("RGB", (40, 30), (255, 0, 0)).save(path)
    return images.probe(str(path), LIMITS)


def truthful(prompt: Prompt, chance: random.Random) -> str:
    """Judge "Yes, ..." as right if the image is red; without an image judge everything as wrong."""
    (image,) = prompt.images
    sees_red = image.getpixel((0, 0)) == (255, 0, 0)
    return "Claim: x. Image: y. Right.\nVerdict: " + ("Yes" if sees_red and "Response: Yes" in prompt.text else "No")


def judge(script: object = truthful) -> Judge:
    config = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=2)
    return Judge(config, ScriptedGenerator(script))


def pair(id: str, image: ImageRef, **over: object) -> Preference:
    return factories.preference(id, question=factories.question(image=image), **over)


def test_a_pair_is_judged_with_its_image_and_without(red: ImageRef) -> None:
    (unit,) = judge_pairs(judge(), [pair("q/p0", red)], limits=LIMITS, no_image_share=1.0)
    with_image, without_image = unit.records
    assert (with_image.id, without_image.id) == ("q/p0", f"q/p0{NO_IMAGE}")
    assert with_image.chosen.reward == pytest.approx(0.9)
    assert with_image.rejected.reward == pytest.approx(0.1)
    assert without_image.chosen.reward == without_image.rejected.reward == pytest.approx(0.1)
    assert len(with_image.chosen.critiques) == 2
    assert unit.num_tokens > 0


def test_a_missing_image_drops_its_pair_alone(red: ImageRef) -> None:
    missing = factories.image(uri="/nowhere.png")
    units = judge_pairs(judge(), [pair("q/p0", red), pair("q/p1", missing), pair("q/p2", red)], limits=LIMITS)
    assert [u.id for u in units] == ["q/p0", "q/p1", "q/p2"]
    assert [len(u.records) for u in units] == [1, 0, 1]
    (dropped,) = units[1].dropped
    assert (dropped.stage, dropped.id, dropped.reason) == ("evaluation", "q/p1", "image_missing")


def test_a_judge_without_readable_verdicts_scores_one_half_with_coverage_0(red: ImageRef) -> None:
    pairs = [pair("q/p0", red), pair("q/p1", red)]
    units = judge_pairs(judge({"Question": "I cannot say."}), pairs, limits=LIMITS)
    metrics = pair_metrics([r for u in units for r in u.records], pairs)
    assert metrics["pairwise_accuracy"] == 0.5
    assert metrics["verdict_coverage"] == 0.0
    assert metrics["auroc"] is None
    assert units[0].records[0].chosen.status == "unreadable_verdict"


def test_baselines_are_not_part_of_the_accuracy(red: ImageRef) -> None:
    pairs = [pair("q/p0", red), pair("q/p1", red, chosen="Yes, there is a red circle on it.")]
    units = judge_pairs(judge(), pairs, limits=LIMITS, no_image_share=1.0)
    metrics = pair_metrics([r for u in units for r in u.records], pairs)
    assert (metrics["num_pairs"], metrics["pairwise_accuracy"]) == (2, 1.0)
    assert metrics["baselines"]["no_image"]["num_pairs"] == 2
    assert metrics["baselines"]["no_image"]["pairwise_accuracy"] == 0.5
    # "Yes, there is a red circle." is as long as "No, there is no red circle."
    assert metrics["baselines"]["longer"]["value"] == 0.75


def test_judging_alone_or_together_is_the_same(red: ImageRef) -> None:
    def random_verdict(prompt: Prompt, chance: random.Random) -> str:
        return f"Verdict: {chance.choice(['Yes', 'No'])}"

    pairs = [pair(f"q/p{i}", red) for i in range(6)]
    together = judge_pairs(judge(random_verdict), pairs, limits=LIMITS)
    alone = [judge_pairs(judge(random_verdict), [p], limits=LIMITS)[0] for p in pairs]
    assert together == alone
    assert len({u.records[0].chosen.reward for u in together}) > 1


def test_a_share_grows_with_its_size() -> None:
    ids = [f"q{i}/gold" for i in range(2000)]
    quarter, half = ({i for i in ids if is_in_share(i, share)} for share in (0.25, 0.5))
    assert quarter < half
    assert 400 < len(quarter) < 600
    assert not any(is_in_share(i, 0.0) for i in ids)
    assert all(is_in_share(i, 1.0) for i in ids)


def test_the_gain_between_two_evaluations_uses_results_with_image_only(tmp_path: Path, red: ImageRef) -> None:
    pairs = [pair(f"q/p{i}", red) for i in range(20)]
    folders = []
    for name, script in (("before", {"Question": "Verdict: No"}), ("after", truthful)):
        folder = StageFolder(tmp_path / name)
        folder.begin("settings", {})
        units: list[Unit[PairResult]] = judge_pairs(judge(script), pairs, limits=LIMITS, no_image_share=0.5)
        write_units(folder, PairResult, units)
        folders.append(folder)
    gain = accuracy_gain(*folders)
    assert (gain.value, gain.num) == (0.5, 20)
