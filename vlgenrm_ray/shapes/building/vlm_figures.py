"""What the tiny VLM can do on scenes it never saw: as policy, and as judge. Measured against ground truth."""

from collections.abc import Sequence
from pathlib import Path

from vlgenrm_ray.data.images import ImageLimits, read
from vlgenrm_ray.engines.contracts import Generator, Prompt, Refused, Sampling
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.records import PairResult, Preference, Question
from vlgenrm_ray.shapes.pairs import gold_pairs
from vlgenrm_ray.shapes.world import questions, response_is_true

MAX_ANSWER = 96
"""Tokens; the longest true answer, a description of five things, has 56."""


def answered(generator: Generator, folder: Path, *, seed: int, count: int) -> list[tuple[Question, bool]]:
    """`count` held-out questions, the kinds in turn, and whether the policy's answer at temperature 1 is true."""
    asked = list(questions(folder, seed=seed, split="heldout", count=count))
    prompts = [Prompt(images=(read(q.image, ImageLimits()),), text=q.text) for q in asked]
    sampled = generator.generate(prompts, Sampling(temperature=1.0, max_tokens=MAX_ANSWER, seed=seed))
    return [
        (question, not isinstance(samples, Refused) and response_is_true(question, samples[0].text))
        for question, samples in zip(asked, sampled, strict=True)
    ]


def judged(judge: Judge[Generator], folder: Path, *, seed: int, count: int) -> list[PairResult]:
    """`count` held-out gold pairs, the kinds in turn, both sides judged."""
    pairs = list(gold_pairs(folder, seed=seed, split="heldout", count=count))
    items = [item for pair in pairs for item in _sides(pair)]
    judgements = judge.score(items)
    return [
        PairResult(id=pair.id, preference=pair, chosen=chosen, rejected=rejected)
        for pair, chosen, rejected in zip(pairs, judgements[::2], judgements[1::2], strict=True)
    ]


def _sides(pair: Preference) -> Sequence[JudgeInput]:
    question = pair.question
    return [
        JudgeInput(id=f"{pair.id}/{side}", images=(question.image,), question=question.text, response=text)
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    ]
