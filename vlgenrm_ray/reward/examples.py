"""Training examples built from the selected critiques of one pair.

A pairwise judge learns from its own critiques of the pair, or, before it can write any (`rounds.cold_start`), from
critiques of each response by a pointwise judge, composed into one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from vlgenrm_ray.experts.claims import ClaimExtractor
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.verdict import A_OR_B, PAIR_VERDICTS, TIE, VERDICT_SCORES, YES_NO
from vlgenrm_ray.records import Critique, Example, ExampleKind, Preference, Side
from vlgenrm_ray.reward.rejection_sampling import Combination
from vlgenrm_ray.rewards.critique_checks import compose_sections, cut_after_verdict, cut_before_verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTemplates:
    """The judge's own prompt templates, so that training prompts equal the prompts used later."""

    critique: str
    """Prompt that asks for a rationale and a verdict."""
    direct: str
    """Prompt that asks for the verdict alone."""
    pairwise: bool = False
    """The judge is pairwise, so that its prompts show both responses."""

    @classmethod
    def load(cls, judge: JudgeConfig) -> Self:
        """Load the prompts of a judge. Raises InputError if one cannot be read."""
        names = (judge.critique_prompt, judge.verdict_prompt)
        critique, direct = (prompts.load(name, pairwise=judge.is_pairwise) for name in names)
        return cls(critique=critique, direct=direct, pairwise=judge.is_pairwise)

    def critique_prompt(self, preference: Preference, side: Side) -> str:
        """Return the prompt for a critique of one side; of a pairwise judge, of the pair with this side first."""
        return self._render(self.critique, preference, side)

    def direct_prompt(self, preference: Preference, side: Side) -> str:
        """Return the prompt for a verdict alone, as `critique_prompt`."""
        return self._render(self.direct, preference, side)

    def _render(self, template: str, preference: Preference, side: Side) -> str:
        question, first = preference.question.text, preference.response(side)
        if self.pairwise:
            return prompts.render_pair(template, question, first, preference.response(side.other))
        return prompts.render(template, question, first)


def build_examples(
    selected: Sequence[Combination],
    preference: Preference,
    templates: JudgeTemplates,
    *,
    w_direct: float,
    lambda_answer: float,
    extractor: ClaimExtractor | None = None,
) -> list[Example]:
    """Build the examples of one pair.

    Args:
        selected: Selected combinations of one pair; empty gives no examples.
        preference: The pair.
        templates: The judge's prompts.
        w_direct: Weight of the two direct verdicts of the pair; 0 leaves them out.
        lambda_answer: Weight of the chosen response as an answer to the question; 0 leaves it out.
        extractor: Reads the claims of responses to set `Example.stratum`; without it strata are empty.

    Returns:
        Each selected critique, then both direct verdicts, then the answer. The label of a critique is the verdict it
        teaches, which under `keep_all` may be wrong.
    """
    if not selected:
        return []
    round = selected[0].chosen.round
    strata = _strata(preference, templates, extractor)
    examples = [
        _critique_example(critique, other, preference, templates, strata[critique.side])
        for pair in selected
        for critique, other in ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen))
    ]
    return examples + build_pair_examples(
        preference, templates, w_direct=w_direct, lambda_answer=lambda_answer, round=round, extractor=extractor
    )


def build_pair_examples(
    preference: Preference,
    templates: JudgeTemplates,
    *,
    w_direct: float,
    lambda_answer: float,
    round: int,
    extractor: ClaimExtractor | None = None,
) -> list[Example]:
    """Build the examples of one pair that need no critique; arguments as for `build_examples`.

    Returns:
        Both direct verdicts, which are right by the pair's label, then the answer.
    """
    examples: list[Example] = []
    if w_direct:
        strata = _strata(preference, templates, extractor)
        examples += [_direct_example(preference, side, templates, w_direct, round, strata[side]) for side in Side]
    if lambda_answer:
        examples.append(
            Example(
                id=f"{preference.id}/chosen/answer",
                image=preference.question.image,
                more_images=preference.question.more_images,
                prompt=preference.question.text,
                completion=preference.chosen,
                kind=ExampleKind.ANSWER,
                label="",
                weight=lambda_answer,
                round=round,
            )
        )
    return examples


def _critique_example(
    critique: Critique, other: Critique, preference: Preference, templates: JudgeTemplates, stratum: str
) -> Example:
    """Build the example of a selected critique; `other` is the critique that it was selected with."""
    assert critique.verdict, "an unreadable critique was selected"
    completion, label = cut_after_verdict(critique.text), critique.verdict
    if templates.pairwise and critique.verdict not in PAIR_VERDICTS:
        completion, label = _compose(critique, other)
    assert completion, "a critique without a verdict was selected"
    return Example(
        id=f"{critique.id}/example",
        image=preference.question.image,
        more_images=preference.question.more_images,
        prompt=templates.critique_prompt(preference, critique.side),
        completion=completion,
        kind=ExampleKind.CRITIQUE,
        label=label,
        weight=1.0,
        round=critique.round,
        stratum=stratum,
    )


def _compose(first: Critique, second: Critique) -> tuple[str, str]:
    """Compose the critiques of both responses by a pointwise judge into one critique of the pair.

    Returns:
        The composed text and its verdict, which is that of the two critiques: the response with the higher score is
        the better one.
    """
    scores = [VERDICT_SCORES[critique.verdict or ""] for critique in (first, second)]
    word, name = A_OR_B.tie, TIE
    if scores[0] != scores[1]:
        word = A_OR_B.better if scores[0] > scores[1] else A_OR_B.worse
        name = word.casefold()
    about_first, about_second = (cut_before_verdict(critique.text) or "" for critique in (first, second))
    return compose_sections(about_first, about_second, word), name


def _direct_example(
    preference: Preference, side: Side, templates: JudgeTemplates, weight: float, round: int, stratum: str
) -> Example:
    words = A_OR_B if templates.pairwise else YES_NO
    completion = words.better if side is Side.CHOSEN else words.worse
    return Example(
        id=f"{preference.id}/{side.value}/direct",
        image=preference.question.image,
        more_images=preference.question.more_images,
        prompt=templates.direct_prompt(preference, side),
        completion=completion,
        kind=ExampleKind.DIRECT,
        label=completion.casefold(),
        weight=weight,
        round=round,
        stratum=stratum,
    )


def _strata(preference: Preference, templates: JudgeTemplates, extractor: ClaimExtractor | None) -> dict[Side, str]:
    # Both orders of a pair are trained on equally often, whatever its kind.
    return {side: "" if templates.pairwise else _stratum(preference.response(side), extractor) for side in Side}


def _stratum(response: str, extractor: ClaimExtractor | None) -> str:
    """Return kind, value and negation of the response's only claim, without its subject; "" if there are several."""
    claims = extractor.extract(response) if extractor is not None else ()
    strata = {" ".join(filter(None, (c.kind.value, c.value, "denied" if c.negated else ""))) for c in claims}
    return strata.pop() if len(strata) == 1 else ""
