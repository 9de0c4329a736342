"""Thinking of policies: the part of a response that is its answer.

A thinking policy reasons before it answers: `<think>The shape has five points.</think>A star.` A user sees the answer,
so the answer is what a judge should judge, unless the operator wants the reasoning judged as well.

`normalize_thinking` replaces the marks that are special tokens of a chat template by `<think>` and `</think>`, before
special tokens are removed from a text. `judged_part` returns what is judged. Known marks:

- `<think>` (DeepSeek-R1, Qwen3, GLM, Kimi K2, Hunyuan, MiniMax), `<thinking>`, `<thought>`, `<reasoning>`
- `[THINK]` (Magistral), `\u25c1think\u25b7` (Kimi-VL), `<seed:think>` (Seed), `<|START_THINKING|>` (Cohere),
  `<|begin_of_thought|>` (OpenThinker), `<|channel>thought` (Gemma 4), `<|channel|>analysis` (Harmony)

Some templates open the thinking in the prompt, so that a response has only its end. Without any mark, a response that
was cut off while thinking cannot be told from an answer: `required` is for policies that always think.
"""

import re
from typing import Literal

Thinking = Literal["answer", "whole", "required"]
"""Part of a response that is judged: see `JudgeConfig.thinking`."""

_TOKENS = re.compile(
    r"(?P<open>\[THINK\]|\u25c1think\u25b7|<seed:think>|<\|(?:START_THINKING|begin_of_thought)\|>|<\|channel>thought\b"
    r"|<\|channel\|>(?:analysis|commentary)[^<>]{0,64}<\|message\|>)"
    r"|\[/THINK\]|\u25c1/think\u25b7|</seed:think>|<\|(?:END_THINKING|end_of_thought)\|>|<channel\|>"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final[^<>]{0,64}<\|message\|>"
)
_NAME = "(?:think|thinking|thoughts?|reasoning)"
# At the start of a line, where templates and models write it; quoted tags are words of the answer.
_BEGIN = re.compile(rf"^[ \t]*<{_NAME}>", re.IGNORECASE | re.MULTILINE)
_PROMPT_END = re.compile(rf"<{_NAME}>\s*\Z", re.IGNORECASE)
_END = re.compile(rf"(?<![`\"'])</{_NAME}>", re.IGNORECASE)
_ANSWER = re.compile(r"\s*<answer>(?P<answer>.*?)(?:</answer>\s*)?\Z", re.IGNORECASE | re.DOTALL)


def normalize_thinking(text: str) -> str:
    """Replace the marks of thinking that are special tokens by `<think>` and `</think>`; other texts are unchanged."""
    return _TOKENS.sub(lambda token: "<think>" if token["open"] else "</think>", text)


def resume_thinking(response: str, prompt: str) -> str:
    """Return a response with the `<think>` that its rendered prompt ends with, as DeepSeek-R1's does."""
    opened = _PROMPT_END.search(normalize_thinking(prompt)) is not None
    # Models may repeat the mark.
    return f"<think>{response}" if opened and not _BEGIN.match(normalize_thinking(response)) else response


def judged_part(response: str, thinking: Thinking) -> str:
    """Return the part of a response that is judged.

    Args:
        response: The policy's response.
        thinking: `answer`: the response without its thinking, "" if the thinking has no end. `whole`: the response.
            `required`: as `answer`, and "" if the response has no end of a thinking.

    Returns:
        The part, unchanged if the response has no thinking. An `<answer>` tag around the whole answer is removed.
    """
    if thinking == "whole" or (thinking == "answer" and not any(sign in response for sign in "<[\u25c1")):
        return response
    text = normalize_thinking(response)
    begin, end = _BEGIN.search(text), _END.search(text)
    if end is None:
        if thinking == "required":
            return ""
        return response if begin is None else text[: begin.start()].strip()
    # The prompt opened the first thinking if there is no mark before its end.
    place = end.end() if begin is None or end.start() < begin.start() else 0
    parts = []
    while (begin := _BEGIN.search(text, place)) is not None:
        parts.append(text[place : begin.start()])
        end = _END.search(text, begin.end())
        place = len(text) if end is None else end.end()
    answer = "".join([*parts, text[place:]]).strip()
    tagged = _ANSWER.fullmatch(answer)
    return answer if tagged is None or "<answer>" in tagged["answer"] else tagged["answer"].strip()
