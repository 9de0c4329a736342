"""Evaluation of a tiny VLM on held-out scenes, as policy and as judge, against ground truth."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlgenrm_ray.data.images import ImageLimits, read
from vlgenrm_ray.engines.contracts import Generator, Prompt, Refusal, Sampling
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.records import PairResult, Preference, Question
from vlgenrm_ray.shapes.pairs import gold_pairs
from vlgenrm_ray.shapes.world import (
    BASIC,
    address_of,
    item_of,
    load_world,
    questions,
    response_is_true,
)

MAX_ANSWER_TOKENS = 96
"""The longest true answers are descriptions: 56 tokens in the basic world, 61 in the hard one."""


@dataclass(frozen=True, slots=True)
class SampledAnswers:
    """A question with its greedy answer and its answers at temperature 1, and the truth of each text."""

    question: Question
    greedy: str
    samples: tuple[str, ...]
    truth: dict[str, bool]


def evaluate_policy(
    generator: Generator,
    folder: Path,
    *,
    seed: int,
    count: int,
    world: str = BASIC,
    split: str = "heldout",
    num_samples: int = 1,
) -> list[SampledAnswers]:
    """Answer `count` questions of a world greedily and `num_samples` times at temperature 1."""
    drawn = list(questions(folder, seed=seed, split=split, count=count, world=world))
    prompts = [Prompt(images=(read(q.image, ImageLimits()),), text=q.text) for q in drawn]
    greedy = generator.generate(prompts, Sampling(temperature=0.0, max_tokens=MAX_ANSWER_TOKENS))
    sampling = Sampling(temperature=1.0, max_tokens=MAX_ANSWER_TOKENS, n=num_samples, seed=seed)
    sampled = generator.generate(prompts, sampling)
    answers = []
    for question, first, others in zip(drawn, greedy, sampled, strict=True):
        texts = [
            tuple(s.text.strip() for s in samples) if not isinstance(samples, Refusal) else ("",) * number
            for samples, number in ((first, 1), (others, num_samples))
        ]
        truth = {text: response_is_true(question, text) for text in {*texts[0], *texts[1]}}
        answers.append(SampledAnswers(question, texts[0][0], texts[1], truth))
    return answers


_DECODINGS: dict[str, Callable[[SampledAnswers], float]] = {
    "greedy": lambda a: float(a.truth[a.greedy]),
    "temperature_1": lambda a: sum(a.truth[text] for text in a.samples) / len(a.samples),
    "majority": lambda a: float(a.truth[Counter(a.samples).most_common(1)[0][0]]),
    "any": lambda a: float(any(a.truth[text] for text in a.samples)),
}


def policy_outcomes(answers: Sequence[SampledAnswers]) -> dict[str, list[tuple[Question, float]]]:
    """Return the value of every question, in [0, 1], by name.

    `greedy`, `temperature_1` (mean of the samples), `majority` and `any` are shares of true answers. `prior_share` is 1
    where the greedy answer is the false one that the world's language prior suggests; it has only questions for which
    there is such an answer.
    """
    values = {name: [(a.question, value(a)) for a in answers] for name, value in _DECODINGS.items()}
    values["prior_share"] = []
    for answer in answers:
        usual = load_world(address_of(answer.question.id).world).prior_answer(*item_of(answer.question.id))
        if usual is not None:
            values["prior_share"].append((answer.question, float(answer.greedy == usual)))
    return values


def evaluate_judge(
    judge: Judge[Generator], folder: Path, *, seed: int, count: int, world: str = BASIC, split: str = "heldout"
) -> list[tuple[Preference, PairResult]]:
    """Judge both sides of `count` gold pairs of a world."""
    pairs = list(gold_pairs(folder, seed=seed, split=split, count=count, world=world))
    inputs = [side for pair in pairs for side in _sides(pair)]
    judgements = judge.score(inputs)
    results = [
        PairResult(id=pair.id, preference_id=pair.id, kind=pair.kind, chosen=chosen, rejected=rejected)
        for pair, chosen, rejected in zip(pairs, judgements[::2], judgements[1::2], strict=True)
    ]
    return list(zip(pairs, results, strict=True))


def _sides(pair: Preference) -> Sequence[JudgeInput]:
    question = pair.question
    return [
        JudgeInput(id=f"{pair.id}/{side}", images=(question.image,), question=question.text, response=text)
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    ]
