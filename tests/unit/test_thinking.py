"""Responses of thinking policies: the answer is judged, the thinking only if the operator wants it."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from factories import rollout
from fake_live_generator import FakeLiveGenerator
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from serving_examples import item, request, service

from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.judge.chat_templates import answer_after_prompt, strip_special_tokens
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import NO_ANSWER, Judge, JudgeInput
from vlgenrm_ray.judge.thinking import judged_part, resume_thinking
from vlgenrm_ray.judge.wire import ScoreItem, Status
from vlgenrm_ray.rewards.local_judge import LocalJudgeReward

IMAGE = Image.new("RGB", (16, 16))
MARKS = {
    "DeepSeek-R1, Qwen3, GLM, Kimi K2": ("<think>\n", "\n</think>\n\n"),
    "Magistral": ("[THINK]", "[/THINK]"),
    "Kimi-VL": ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    "Seed": ("<seed:think>", "</seed:think>"),
    "Cohere": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "OpenThinker": ("<|begin_of_thought|>\n", "<|end_of_thought|>\n\n<|begin_of_solution|>"),
    "Gemma 4": ("<|channel>thought\n", "<channel|>"),
    "Harmony": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    "EXAONE": ("<thought>\n", "\n</thought>\n"),
    "prompts of GRPO": ("<reasoning>\n", "\n</reasoning>\n<answer>"),
}
ANSWER = "A red star."
THOUGHT = "The image has five points.\nSo it is a star, or a circle?"


@pytest.mark.parametrize("marks", MARKS.values(), ids=MARKS)
@pytest.mark.parametrize("end", ["", "<|im_end|>", "</s>"])
def test_the_answer_follows_the_thinking_of_every_template(marks: tuple[str, str], end: str) -> None:
    """Also after the service has removed special tokens, by which some templates mark the thinking."""
    begin, finish = marks
    answer = ANSWER + ("</answer>" if finish.endswith("<answer>") else "")
    sent = ScoreItem(question="What?", response=begin + THOUGHT + finish + answer + end).response
    assert judged_part(sent, "answer") == judged_part(sent, "required") == ANSWER
    assert THOUGHT in judged_part(sent, "whole")
    unfinished = ScoreItem(question="What?", response=begin + THOUGHT + end).response
    assert judged_part(unfinished, "answer") == judged_part(unfinished, "required") == ""
    if "<answer>" not in finish:
        opened_by_the_prompt = ScoreItem(question="What?", response=THOUGHT + finish + ANSWER).response
        assert judged_part(opened_by_the_prompt, "answer") == ANSWER


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think></think>A star.", "A star."),
        ("<think>a</think>A star.\n<think>b</think>It is red.", "A star.\nIt is red."),
        ("<think>a <think> b</think>A star.", "A star."),
        ("<think>a</think>A star.\n<think>cut off", "A star."),
        ("<think>a</think>", ""),
        ("A sign says <think> and a star.", "A sign says <think> and a star."),
        ("The tag `</think>` ends it.", "The tag `</think>` ends it."),
        ("<think>a</think><answer>A star.", "A star."),
        ("<think>a</think>First <answer>A star.</answer>", "First <answer>A star.</answer>"),
        ("A star [THINK", "A star [THINK"),
    ],
)
def test_blocks_are_removed_and_mentions_are_kept(response: str, answer: str) -> None:
    assert judged_part(response, "answer") == answer


@given(st.text(alphabet="ab <>[]|/\n\u25c1\u25b7think.", max_size=60))
def test_a_response_without_marks_is_unchanged(text: str) -> None:
    assert judged_part(text, "whole") == text
    if "think" not in text:
        assert judged_part(text, "answer") == text
        assert judged_part(text, "required") == ""


def test_a_prompt_that_opens_the_thinking_completes_the_response() -> None:
    prompt = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    deepseek = "<\uff5cbegin\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>What?<\uff5cAssistant\uff5c><think>"
    for rendered in (prompt, deepseek):
        assert judged_part(answer_after_prompt(rendered + "a star?", rendered), "answer") == ""
        assert judged_part(answer_after_prompt(rendered + "a star?</think>A star.", rendered), "answer") == "A star."
        assert resume_thinking("<think>a", rendered) == "<think>a"
    assert resume_thinking("A star.", "What does <think> mean?") == "A star."


def test_special_tokens_that_mark_thinking_are_not_lost() -> None:
    assert strip_special_tokens("[THINK]a[/THINK]b<|im_end|>") == "<think>a</think>b"
    assert strip_special_tokens("What does <reasoning> mean?") == "What does <reasoning> mean?"


def judge_input(response: str) -> JudgeInput:
    return JudgeInput(id="q0/r0", images=(IMAGE,), question="What is there?", response=response)


@pytest.mark.parametrize("unit", ["response", "sentence"])
@pytest.mark.parametrize("thinking", ["answer", "whole", "required"])
def test_a_judge_sees_what_the_operator_chose(unit: Any, thinking: Any) -> None:
    prompts: list[str] = []

    def notes(prompt: Prompt, rng: Any) -> str:
        prompts.append(prompt.text)
        return "Verdict: Yes"

    config = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", unit=unit, thinking=thinking)
    judge = Judge(config, ScriptedGenerator(notes))
    (judgement,) = judge.score([judge_input(f"<think>{THOUGHT}</think>{ANSWER} It is small.")])
    assert (judgement.status, judgement.detail) == ("ok", "")
    assert ("five points" in "".join(prompts)) == (thinking == "whole")
    assert "star" in "".join(prompts)
    (unfinished,) = judge.score([judge_input(f"<think>{THOUGHT}")])
    live = Judge(config, FakeLiveGenerator(ScriptedGenerator(notes)))
    assert asyncio.run(live.score_live(judge_input(f"<think>{THOUGHT}"), (IMAGE,))).status == unfinished.status
    assert unfinished.status == ("ok" if thinking == "whole" else "empty_text")
    if thinking != "whole":
        assert (unfinished.reward, unfinished.detail) == (None, NO_ANSWER)


def test_the_local_judge_follows_the_same_rule() -> None:
    config = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct")
    judge = Judge(config, ScriptedGenerator(lambda *_: "Verdict: Yes"))

    async def score_items(items: list[JudgeInput]) -> list[Any]:
        return judge.score([replace(item, images=()) for item in items])

    rollouts = [rollout(text="<think>a"), rollout(text="<think>a</think>b")]
    outputs = asyncio.run(LocalJudgeReward(score_items).score(rollouts))
    assert [output.status for output in outputs] == ["empty_text", "ok"]


def test_the_service_judges_the_answer_alone() -> None:
    served = service()
    replies = asyncio.run(served.score(request(item("<think>a star"), item("<think>a</think>A star.")))).items
    assert [reply.status for reply in replies] == [Status.EMPTY_TEXT, Status.OK]
    assert replies[0].detail == NO_ANSWER
    assert served.generator.num_asked == 1
