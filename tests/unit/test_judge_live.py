"""Judging single responses with a live engine: the rewards of the batch path, and partial results by a deadline."""

import asyncio
import random
from dataclasses import replace

import pytest
from fake_live_generator import FakeLiveGenerator
from PIL import Image

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.records import Judgement

CONFIG = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=4)
IMAGE = Image.new("RGB", (16, 16))
INPUT = JudgeInput(id="q0/r0", images=(), question="Describe the image.", response="There is a star.")


def random_verdict(prompt: Prompt, rng: random.Random) -> str:
    return f"Claim: a star.\nVerdict: {'Yes' if rng.random() < 0.5 else 'No'}"


def score_live(
    generator: FakeLiveGenerator, *, seconds: float | None = None, config: JudgeConfig = CONFIG
) -> Judgement:
    async def run() -> Judgement:
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        return await Judge(config, generator).score_live(INPUT, (IMAGE,), deadline=deadline)

    return asyncio.run(run())


def test_live_judgement_equals_the_batch_judgement() -> None:
    scripted = ScriptedGenerator(random_verdict, confidence=0.8)
    live = score_live(FakeLiveGenerator(scripted, lambda prompt, place: 0.01 * (3 - place)))
    (batch,) = Judge(CONFIG, scripted).score([INPUT])
    assert live.num_prompt_tokens > 0
    assert replace(live, engine_s=0.0, num_prompt_tokens=0) == batch
    assert live.engine_s > 0.0
    assert (live.num_asked, len(live.critiques)) == (4, 4)
    assert live.num_tokens == sum(critique.num_tokens for critique in live.critiques) > 0


def test_critiques_finished_by_the_deadline_count_and_the_rest_is_aborted() -> None:
    generator = FakeLiveGenerator(
        ScriptedGenerator(random_verdict), lambda prompt, place: 0.0 if place in (1, 3) else 30.0
    )
    partial = score_live(generator, seconds=0.2)
    whole = score_live(FakeLiveGenerator(ScriptedGenerator(random_verdict)))
    assert partial.status == "ok"
    assert partial.critiques == (whole.critiques[1], whole.critiques[3])
    assert [critique.id for critique in partial.critiques] == ["q0/r0/c1", "q0/r0/c3"]
    assert (len(partial.critiques), partial.num_asked) == (2, 4)
    assert generator.num_aborted == 1


def test_no_critique_by_the_deadline_is_a_timeout() -> None:
    judgement = score_live(
        FakeLiveGenerator(ScriptedGenerator(random_verdict), lambda prompt, place: 30.0), seconds=0.05
    )
    assert (judgement.status, judgement.reward, judgement.num_asked) == ("timeout", None, 4)


def test_cancelling_the_caller_aborts_its_critiques() -> None:
    generator = FakeLiveGenerator(ScriptedGenerator(random_verdict), lambda prompt, place: 30.0)

    async def run() -> None:
        task = asyncio.ensure_future(Judge(CONFIG, generator).score_live(INPUT, (IMAGE,)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert generator.num_aborted == 1


def test_a_refused_prompt_has_a_status_and_no_reward() -> None:
    judgement = score_live(FakeLiveGenerator(ScriptedGenerator(random_verdict, max_chars=10)))
    assert (judgement.status, judgement.reward) == ("prompt_too_long", None)
    assert "limit 10" in judgement.detail
