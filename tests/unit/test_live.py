"""The judge over a generator of many callers: the same rewards as the local judge's, and what a deadline leaves."""

import asyncio
import random

import pytest
from PIL import Image

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import LiveScripted, ScriptedGenerator
from vlgenrm_ray.judge.inquiry import Inquiry, Item, JudgeConfig
from vlgenrm_ray.judge.judge import Judge
from vlgenrm_ray.judge.live import Judged, judge

CONFIG = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=4)
PICTURE = Image.new("RGB", (16, 16))
ITEM = Item(id="q0/r0", images=(), question="Describe the image.", response="There is a star.")


def wavers(prompt: Prompt, chance: random.Random) -> str:
    return f"Claim: a star.\nVerdict: {'Yes' if chance.random() < 0.5 else 'No'}"


def live(generator: LiveScripted, *, seconds: float | None = None, config: JudgeConfig = CONFIG) -> Judged:
    async def run() -> Judged:
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        return await judge(Inquiry(config), generator, ITEM, (PICTURE,), deadline=deadline)

    return asyncio.run(run())


def test_it_judges_as_the_local_judge_does() -> None:
    scripted = ScriptedGenerator(wavers, confidence=0.8)
    judged = live(LiveScripted(scripted, lambda prompt, place: 0.01 * (3 - place)))
    assert judged.judgement == Judge(CONFIG, scripted).score([ITEM])[0]
    assert (judged.num_asked, len(judged.p_yes)) == (4, 4)
    assert judged.num_tokens > 0


def test_what_is_finished_by_the_deadline_counts_and_the_rest_is_aborted() -> None:
    generator = LiveScripted(ScriptedGenerator(wavers), lambda prompt, place: 0.0 if place in (1, 3) else 30.0)
    judged = live(generator, seconds=0.2)
    whole = live(LiveScripted(ScriptedGenerator(wavers)))
    assert judged.judgement.status == "ok"
    assert judged.judgement.critiques == (whole.judgement.critiques[1], whole.judgement.critiques[3])
    assert (judged.judgement.num_critiques, judged.num_asked) == (2, 4)
    assert generator.num_aborted == 1


def test_nothing_finished_by_the_deadline_is_a_timeout() -> None:
    judged = live(LiveScripted(ScriptedGenerator(wavers), lambda prompt, place: 30.0), seconds=0.05)
    assert (judged.judgement.status, judged.judgement.reward) == ("timeout", None)


def test_a_caller_that_goes_away_takes_its_work_along() -> None:
    generator = LiveScripted(ScriptedGenerator(wavers), lambda prompt, place: 30.0)

    async def run() -> None:
        task = asyncio.ensure_future(judge(Inquiry(CONFIG), generator, ITEM, (PICTURE,)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert generator.num_aborted == 1


def test_a_refusal_has_a_status_and_no_reward() -> None:
    judged = live(LiveScripted(ScriptedGenerator(wavers, max_chars=10)))
    assert (judged.judgement.status, judged.judgement.reward) == ("prompt_too_long", None)
