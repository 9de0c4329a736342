"""Training examples built from the selected critiques of one pair."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlgenrm_ray.experts.claims import ClaimExtractor
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.records import Critique, Example, ExampleKind, Preference, Side
from vlgenrm_ray.reward.critique_checks import cut_after_verdict
from vlgenrm_ray.reward.rejection_sampling import Combination


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeTemplates:
    """The judge's own prompt templates, so that training prompts equal the prompts used later."""

    critique: str
    """Prompt that asks for a rationale and a verdict."""
    direct: str
    """Prompt that asks for the verdict alone."""


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
    strata = {side: _stratum(preference.response(side), extractor) for side in Side}
    examples = [
        _critique_example(critique, preference, templates, strata[critique.side])
        for pair in selected
        for critique in (pair.chosen, pair.rejected)
    ]
    if w_direct:
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


def _critique_example(critique: Critique, preference: Preference, templates: JudgeTemplates, stratum: str) -> Example:
    completion = cut_after_verdict(critique.text)
    assert critique.verdict, "an unreadable critique was selected"
    assert completion, "a critique without a verdict was selected"
    return Example(
        id=f"{critique.id}/example",
        image=preference.question.image,
        more_images=preference.question.more_images,
        prompt=_render(templates.critique, preference, critique.side),
        completion=completion,
        kind=ExampleKind.CRITIQUE,
        label=critique.verdict,
        weight=1.0,
        round=critique.round,
        stratum=stratum,
    )


def _direct_example(
    preference: Preference, side: Side, templates: JudgeTemplates, weight: float, round: int, stratum: str
) -> Example:
    label = "yes" if side is Side.CHOSEN else "no"
    return Example(
        id=f"{preference.id}/{side.value}/direct",
        image=preference.question.image,
        more_images=preference.question.more_images,
        prompt=_render(templates.direct, preference, side),
        completion=label.capitalize(),
        kind=ExampleKind.DIRECT,
        label=label,
        weight=weight,
        round=round,
        stratum=stratum,
    )


def _stratum(response: str, extractor: ClaimExtractor | None) -> str:
    """Return kind, value and negation of the response's only claim, without its subject; "" if there are several."""
    claims = extractor.extract(response) if extractor is not None else ()
    strata = {" ".join(filter(None, (c.kind.value, c.value, "denied" if c.negated else ""))) for c in claims}
    return strata.pop() if len(strata) == 1 else ""


def _render(template: str, preference: Preference, side: Side) -> str:
    return prompts.render(template, question=preference.question.text, response=preference.response(side))
