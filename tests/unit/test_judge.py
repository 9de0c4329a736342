"""The judge over a scripted generator: what it asks, and what it makes of the answers."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from vlgenrm_ray.data.images import ImageLimits, probe
from vlgenrm_ray.engines.contracts import Prompt, Refused, Sample, Sampling
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.errors import DropReason, InputError
from vlgenrm_ray.judge.judge import Judge, JudgeConfig, JudgeInput
from vlgenrm_ray.records import ImageRef

CONFIG = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", hint_prompt="shapes_cot_hint", num_critiques=4)
PICTURE = Image.new("RGB", (16, 16))


def item(id: str = "q0/r0", response: str = "There is a star.", **over: object) -> JudgeInput:
    return replace(JudgeInput(id=id, images=(PICTURE,), question="Describe the image.", response=response), **over)


def wavers(prompt: Prompt, chance: random.Random) -> str:
    right = chance.random() < 0.5
    return f"Claim: a star. Image: {'a star' if right else 'nothing'}.\nVerdict: {'Yes' if right else 'No'}"


class Watched(ScriptedGenerator):
    """Keeps what it was asked."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[list[Sample] | Refused]:
        self.asked = list(prompts)
        self.sampling = sampling
        return super().generate(prompts, sampling, seeds)


def test_the_reward_is_the_mean_of_the_critiques() -> None:
    judge = Judge(CONFIG, ScriptedGenerator(wavers, confidence=0.8))
    (judged,) = judge.score([item()])
    assert judged.status == "ok"
    assert judged.num_asked == len(judged.critiques) == 4
    said_yes = sum(c.text.endswith("Yes") for c in judged.critiques)
    assert judged.reward == pytest.approx((said_yes * 0.8 + (4 - said_yes) * 0.2) / 4)
    assert judged.verdict_mass == pytest.approx(1.0)


def test_an_item_is_judged_alike_in_whatever_batch() -> None:
    judge = Judge(CONFIG, ScriptedGenerator(wavers))
    items = [item(f"q{i}/r0") for i in range(8)]
    together = judge.score(items)
    assert together[3:5] == judge.score(items[3:5])
    assert together[::-1] == judge.score(items[::-1])
    assert len({j.critiques for j in together}) > 1, "different ids must not all share their chances"
    assert together != Judge(CONFIG.model_copy(update={"seed": 1}), ScriptedGenerator(wavers)).score(items)


def test_unreadable_critiques_abstain() -> None:
    def mumbles(prompt: Prompt, chance: random.Random) -> str:
        return "Verdict: No" if chance.random() < 0.5 else "I cannot tell."

    judged = Judge(CONFIG.model_copy(update={"num_critiques": 16}), ScriptedGenerator(mumbles, confidence=0.9)).score(
        [item()]
    )
    assert judged[0].reward == pytest.approx(0.1)
    assert 0 < sum(critique.p_yes is not None for critique in judged[0].critiques) < 16
    (silent,) = Judge(CONFIG, ScriptedGenerator({"": "I cannot tell."})).score([item()])
    assert (silent.reward, silent.status) == (None, "unreadable_verdict")


def test_a_broken_image_harms_its_own_item_only(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PICTURE.save(path)
    good = probe(str(path), ImageLimits())
    gone = ImageRef(uri=str(tmp_path / "b.png"), sha256="0", width=16, height=16)
    judged = Judge(CONFIG, ScriptedGenerator({"": "Verdict: Yes"})).score([item(images=(gone,)), item(images=(good,))])
    assert [j.status for j in judged] == ["image_missing", "ok"]
    assert judged[0].reward is None


def test_several_images_are_shown_in_order_and_one_that_is_gone_harms_its_item(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (16, 16), (9, 0, 0)).save(path)
    there = probe(str(path), ImageLimits())
    gone = ImageRef(uri=str(tmp_path / "b.png"), sha256="0", width=16, height=16)
    engine = Watched({"": "Verdict: Yes"}, max_images=2)
    shown = [(PICTURE, there), (there, PICTURE), (there, gone), (there, there, there)]
    judged = Judge(CONFIG, engine).score([item(images=images) for images in shown])
    assert [j.status for j in judged] == ["ok", "ok", "image_missing", "too_many_images"]
    assert [j.reward is None for j in judged] == [False, False, True, True]
    reds = [[image.getpixel((0, 0))[0] for image in prompt.images] for prompt in engine.asked]  # type: ignore[index]
    assert reds == [[0, 9], [9, 0], [9, 9, 9]]


def test_what_the_engine_refuses_has_a_status_and_no_reward() -> None:
    judge = Judge(CONFIG, ScriptedGenerator({"": "Verdict: Yes"}, max_chars=300))
    judged = judge.score([item(response="long " * 100), item()])
    assert [j.status for j in judged] == [DropReason.PROMPT_TOO_LONG, "ok"]


def test_direct_mode_asks_once_without_chance() -> None:
    engine = Watched({"Is the response right?": "No"}, confidence=0.7)
    (judged,) = Judge(CONFIG.model_copy(update={"mode": "direct"}), engine).score([item()])
    assert judged.reward == pytest.approx(0.3)
    assert judged.num_asked == len(judged.critiques) == 1
    assert (engine.sampling.n, engine.sampling.temperature) == (1, 0.0)


def test_without_an_image_the_question_is_asked_blind() -> None:
    engine = Watched({"": "Verdict: Yes"})
    Judge(CONFIG, engine).critique([item(images=())])
    assert engine.asked[0].images == ()


def test_a_hint_is_told_and_a_written_rationale_is_read_without_it() -> None:
    engine = Watched({"The verdict is No": "Nothing there.\nVerdict: No", "": " Yes"}, confidence=0.9)
    judge = Judge(CONFIG, engine)
    (outcome,) = judge.critique([item(hint="No")])
    assert not isinstance(outcome, Refused)
    assert "The verdict is No." in engine.asked[0].text
    verdicts = judge.reread([item(), item()], [outcome[0].text, "no end"])
    assert engine.asked[0].prefix == "Nothing there.\nVerdict:"
    assert "The verdict is" not in engine.asked[0].text
    assert [v.p_yes for v in verdicts if not isinstance(v, Refused)] == [pytest.approx(0.9), None]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_critiques": 0}, "num_critiques"),
        ({"temperature": -0.1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"min_mass": 1.5}, "min_mass"),
        ({"aggregator": "median"}, "aggregator"),
        ({"K": 4}, "K"),
        ({"temperature": 0.0, "num_critiques": 4}, "set num_critiques to 1, or temperature above 0"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        JudgeConfig.model_validate(settings)


def test_a_missing_prompt_is_found_before_any_engine_starts() -> None:
    with pytest.raises(InputError, match="no_such_prompt"):
        Judge.check(CONFIG.model_copy(update={"hint_prompt": "no_such_prompt"}))
