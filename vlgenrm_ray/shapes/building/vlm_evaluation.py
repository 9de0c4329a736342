"""Evaluation of the tiny VLM on held-out scenes, as policy and as judge, against ground truth."""

from collections.abc import Sequence
from pathlib import Path

from vlgenrm_ray.data.images import ImageLimits, read
from vlgenrm_ray.engines.contracts import Generator, Prompt, Refusal, Sampling
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.records import PairResult, Preference, Question
from vlgenrm_ray.shapes.pairs import gold_pairs
from vlgenrm_ray.shapes.world import questions, response_is_true

MAX_ANSWER_TOKENS = 96
"""The longest true answer, a description of five objects, has 56 tokens."""


def evaluate_policy(generator: Generator, folder: Path, *, seed: int, count: int) -> list[tuple[Question, bool]]:
    """Answer `count` held-out questions at temperature 1; return each with the truth of its answer."""
    drawn = list(questions(folder, seed=seed, split="heldout", count=count))
    prompts = [Prompt(images=(read(q.image, ImageLimits()),), text=q.text) for q in drawn]
    outcomes = generator.generate(prompts, Sampling(temperature=1.0, max_tokens=MAX_ANSWER_TOKENS, seed=seed))
    return [
        (question, not isinstance(samples, Refusal) and response_is_true(question, samples[0].text))
        for question, samples in zip(drawn, outcomes, strict=True)
    ]


def evaluate_judge(judge: Judge[Generator], folder: Path, *, seed: int, count: int) -> list[PairResult]:
    """Judge both sides of `count` held-out gold pairs."""
    pairs = list(gold_pairs(folder, seed=seed, split="heldout", count=count))
    inputs = [side for pair in pairs for side in _sides(pair)]
    judgements = judge.score(inputs)
    return [
        PairResult(id=pair.id, preference_id=pair.id, kind=pair.kind, chosen=chosen, rejected=rejected)
        for pair, chosen, rejected in zip(pairs, judgements[::2], judgements[1::2], strict=True)
    ]


def _sides(pair: Preference) -> Sequence[JudgeInput]:
    question = pair.question
    return [
        JudgeInput(id=f"{pair.id}/{side}", images=(question.image,), question=question.text, response=text)
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    ]
