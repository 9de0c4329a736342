"""The judge over a scripted generator: prompts, sampling, rewards and statuses of batches."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from vlgenrm_ray.data.images import ImageLimits, probe
from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.errors import DropReason, InputError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.records import ImageRef

CONFIG = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=4)
IMAGE = Image.new("RGB", (16, 16))


def item(id: str = "q0/r0", response: str = "There is a star.", **over: object) -> JudgeInput:
    return replace(JudgeInput(id=id, images=(IMAGE,), question="Describe the image.", response=response), **over)


def random_verdict(prompt: Prompt, rng: random.Random) -> str:
    right = rng.random() < 0.5
    return f"Claim: a star. Image: {'a star' if right else 'nothing'}.\nVerdict: {'Yes' if right else 'No'}"


class RecordingGenerator(ScriptedGenerator):
    """Records the prompts and sampling of its last call."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Sample] | Refusal]:
        self.prompts = list(prompts)
        self.sampling = sampling
        return super().generate(prompts, sampling, seeds)


def test_the_reward_is_the_mean_of_the_critiques() -> None:
    judge = Judge(CONFIG, ScriptedGenerator(random_verdict, confidence=0.8))
    (judgement,) = judge.score([item()])
    assert judgement.status == "ok"
    assert judgement.num_asked == len(judgement.critiques) == 4
    num_yes = sum(c.text.endswith("Yes") for c in judgement.critiques)
    assert judgement.reward == pytest.approx((num_yes * 0.8 + (4 - num_yes) * 0.2) / 4)
    assert judgement.verdict_mass == pytest.approx(1.0)


def test_a_judgement_does_not_depend_on_its_batch() -> None:
    judge = Judge(CONFIG, ScriptedGenerator(random_verdict))
    items = [item(f"q{i}/r0") for i in range(8)]
    together = judge.score(items)
    assert together[3:5] == judge.score(items[3:5])
    assert together[::-1] == judge.score(items[::-1])
    assert len({j.critiques for j in together}) > 1, "different ids have different seeds"
    assert together != Judge(CONFIG.model_copy(update={"seed": 1}), ScriptedGenerator(random_verdict)).score(items)


def test_unreadable_critiques_abstain() -> None:
    def often_unreadable(prompt: Prompt, rng: random.Random) -> str:
        return "Verdict: No" if rng.random() < 0.5 else "I cannot tell."

    judgements = Judge(
        CONFIG.model_copy(update={"num_critiques": 16}), ScriptedGenerator(often_unreadable, confidence=0.9)
    ).score([item()])
    assert judgements[0].reward == pytest.approx(0.1)
    assert 0 < sum(critique.p_yes is not None for critique in judgements[0].critiques) < 16
    (unreadable,) = Judge(CONFIG, ScriptedGenerator({"": "I cannot tell."})).score([item()])
    assert (unreadable.reward, unreadable.status) == (None, "unreadable_verdict")


def test_a_missing_image_affects_its_own_input_only(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    IMAGE.save(path)
    good = probe(str(path), ImageLimits())
    gone = ImageRef(uri=str(tmp_path / "b.png"), sha256="0", width=16, height=16)
    judgements = Judge(CONFIG, ScriptedGenerator({"": "Verdict: Yes"})).score(
        [item(images=(gone,)), item(images=(good,))]
    )
    assert [j.status for j in judgements] == ["image_missing", "ok"]
    assert judgements[0].reward is None


def test_several_images_keep_their_order_and_a_missing_one_affects_its_input_only(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (16, 16), (9, 0, 0)).save(path)
    there = probe(str(path), ImageLimits())
    gone = ImageRef(uri=str(tmp_path / "b.png"), sha256="0", width=16, height=16)
    engine = RecordingGenerator({"": "Verdict: Yes"}, max_images=2)
    image_lists = [(IMAGE, there), (there, IMAGE), (there, gone), (there, there, there)]
    judgements = Judge(CONFIG, engine).score([item(images=images) for images in image_lists])
    assert [j.status for j in judgements] == ["ok", "ok", "image_missing", "too_many_images"]
    assert [j.reward is None for j in judgements] == [False, False, True, True]
    reds = [[image.getpixel((0, 0))[0] for image in prompt.images] for prompt in engine.prompts]  # type: ignore[index]
    assert reds == [[0, 9], [9, 0], [9, 9, 9]]


def test_a_refused_prompt_has_a_status_and_no_reward() -> None:
    judge = Judge(CONFIG, ScriptedGenerator({"": "Verdict: Yes"}, max_chars=300))
    judgements = judge.score([item(response="long " * 100), item()])
    assert [j.status for j in judgements] == [DropReason.PROMPT_TOO_LONG, "ok"]


def test_the_direct_mode_samples_once_at_temperature_zero() -> None:
    engine = RecordingGenerator({"Is the response right?": "No"}, confidence=0.7)
    (judgement,) = Judge(CONFIG.model_copy(update={"mode": "direct"}), engine).score([item()])
    assert judgement.reward == pytest.approx(0.3)
    assert judgement.num_asked == len(judgement.critiques) == 1
    assert (engine.sampling.n, engine.sampling.temperature) == (1, 0.0)


def test_an_input_without_images_gives_a_prompt_without_images() -> None:
    engine = RecordingGenerator({"": "Verdict: Yes"})
    Judge(CONFIG, engine).critique([item(images=())])
    assert engine.prompts[0].images == ()


def test_a_hinted_critique_is_reread_without_the_hint() -> None:
    engine = RecordingGenerator({"The verdict is No": "Nothing there.\nVerdict: No", "": " Yes"}, confidence=0.9)
    judge = Judge(CONFIG, engine)
    (outcome,) = judge.critique([item(hint="No")])
    assert not isinstance(outcome, Refusal)
    assert "The verdict is No." in engine.prompts[0].text
    verdicts = judge.reread([item(), item()], [outcome[0].text, "no end"])
    assert engine.prompts[0].prefix == "Nothing there.\nVerdict:"
    assert "The verdict is" not in engine.prompts[0].text
    assert [v.p_yes for v in verdicts if not isinstance(v, Refusal)] == [pytest.approx(0.9), None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_critiques": 0}, "num_critiques"),
        ({"temperature": -0.1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 1.5}, "top_p"),
        ({"aggregator": "median"}, "aggregator"),
        ({"K": 4}, "K"),
        ({"temperature": 0.0, "num_critiques": 4}, "set num_critiques to 1, or temperature above 0"),
    ],
)
def test_invalid_settings_name_the_field(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JudgeConfig.model_validate(settings)


def test_check_finds_a_missing_prompt() -> None:
    with pytest.raises(InputError, match="no_such_prompt"):
        Judge.check(CONFIG.model_copy(update={"prompt": "no_such_prompt"}))
    without_hint = CONFIG.model_copy(update={"prompt": "answer"})
    Judge.check(without_hint)
    with pytest.raises(InputError, match="answer_hint"):
        Judge.check(without_hint, hint=True)


def test_the_prompt_with_a_hint_is_named_after_the_prompt() -> None:
    assert JudgeConfig().hint_prompt == "cot_hint"
    assert JudgeConfig(prompt="prompts/mine.v2.txt").hint_prompt == "prompts/mine.v2_hint.txt"
