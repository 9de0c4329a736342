"""What the selected critiques of a pair become: the training examples of the next model."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlgenrm_ray.experts.claims import ClaimExtractor
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.records import Critique, Example, ExampleKind, Preference, Side
from vlgenrm_ray.reward.combinations import Combination
from vlgenrm_ray.reward.critique_text import cut_after_verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Templates:
    """The judge's own prompts, so that what is trained is what is later asked."""

    critique: str
    direct: str


def examples(
    kept: Sequence[Combination],
    templates: Templates,
    *,
    w_direct: float,
    lambda_answer: float,
    extractor: ClaimExtractor | None = None,
) -> list[Example]:
    """Examples of one pair: each kept critique; once per pair both direct verdicts, and the chosen response.

    The label of a critique is the verdict it teaches (under `keep_all` not always the right one). Parts of
    weight 0 are left out. Nothing kept gives nothing. With an `extractor` judgements have their stratum.
    """
    if not kept:
        return []
    preference, number = kept[0].chosen.preference, kept[0].chosen.round
    strata = {side: _stratum(preference.response(side), extractor) for side in Side}
    made = [_critique(c, templates, strata[c.side]) for pair in kept for c in (pair.chosen, pair.rejected)]
    if w_direct:
        made += [_direct(preference, side, templates, w_direct, number, strata[side]) for side in Side]
    if lambda_answer:
        made.append(
            Example(
                id=f"{preference.id}/chosen/answer",
                image=preference.question.image,
                prompt=preference.question.text,
                completion=preference.chosen,
                kind=ExampleKind.ANSWER,
                label="",
                weight=lambda_answer,
                round=number,
            )
        )
    return made


def _critique(critique: Critique, templates: Templates, stratum: str) -> Example:
    preference = critique.preference
    completion = cut_after_verdict(critique.text)
    assert critique.verdict, "an unreadable critique was kept"
    assert completion, "a critique without a verdict was kept"
    return Example(
        id=f"{critique.id}/example",
        image=preference.question.image,
        prompt=_render(templates.critique, preference, critique.side),
        completion=completion,
        kind=ExampleKind.CRITIQUE,
        label=critique.verdict,
        weight=1.0,
        round=critique.round,
        stratum=stratum,
    )


def _direct(
    preference: Preference, side: Side, templates: Templates, weight: float, number: int, stratum: str
) -> Example:
    label = "yes" if side is Side.CHOSEN else "no"
    return Example(
        id=f"{preference.id}/{side.value}/direct",
        image=preference.question.image,
        prompt=_render(templates.direct, preference, side),
        completion=label.capitalize(),
        kind=ExampleKind.DIRECT,
        label=label,
        weight=weight,
        round=number,
        stratum=stratum,
    )


def _stratum(response: str, extractor: ClaimExtractor | None) -> str:
    """The kind, value and sense of the one thing a response says; its subject ("red circle") left out."""
    claims = extractor.extract(response) if extractor is not None else ()
    said = {" ".join(filter(None, (c.kind.value, c.value, "denied" if c.negated else ""))) for c in claims}
    return said.pop() if len(said) == 1 else ""


def _render(template: str, preference: Preference, side: Side) -> str:
    return prompts.render(template, question=preference.question.text, response=preference.response(side))
