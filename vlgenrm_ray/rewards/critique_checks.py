"""Checks of a critique's text: its verdict, its faithfulness to the response, and the experts' evidence.

A critique may reach the right verdict for a wrong reason. `cut_after_verdict` and `parse_steps` read the text;
`CritiqueChecker` compares it with the response (`is_faithful`) and with the experts' detections (`is_contradicted`).
The selection of a reward-model run rejects the critiques that fail; a judge trained by reinforcement learning is
rewarded by the same checks (`critique_reward`).

A critique of a pairwise judge has a section for each response, headed `Response A.` and `Response B.`.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from vlgenrm_ray.experts.checking import Thresholds, check_claim
from vlgenrm_ray.experts.claims import ClaimExtractor, VocabularyExtractor, claim_key, grammar_fingerprint
from vlgenrm_ray.experts.evidence import ImageEvidence
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.judge.verdict import PAIR_VERDICTS, strip_verdict
from vlgenrm_ray.records import Claim, ClaimKind, Critique, Preference, Truth
from vlgenrm_ray.settings import digest

_VERDICT_LABEL = re.compile(r"\bverdict\b[\s*_]*:", re.IGNORECASE)
_VERDICT_WORD = re.compile(r"[\W_]*(?:yes|no|[abc])\b", re.IGNORECASE)
_SECTION = re.compile(r"^[^\w\n]*response[ *_]{1,3}([ab])[^\w\n]*$", re.IGNORECASE | re.MULTILINE)
_MARKUP = " \t*_."
_CLAIM = re.compile(r"\bclaim[*_]*:(.*?)(?=\bimage[*_]*:|$)", re.IGNORECASE)
_IMAGE = re.compile(
    r"\bimage[*_]*:(.*?)(?=[.;][\s*_]*\b(?:right|wrong)\b|\b(?:claim|verdict)[*_]*:|$)",
    re.IGNORECASE | re.MULTILINE,
)
_ASSESSMENT = re.compile(r"[.;][\s*_]*\b(right|wrong)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CritiqueStep:
    """One line of a critique that describes the image: "Claim: ... Image: ... Right."."""

    claim: str
    """Claim of the response that the critique quotes; may be empty."""
    image: str
    """Statement about the image."""
    right: bool | None
    """True if the critique calls the claim right, False if wrong, None if it does neither."""


def cut_after_verdict(text: str) -> str | None:
    """Return the text of a critique up to and including the word of its verdict.

    None if the text has no verdict, or labels several: a judge reads the last one, but such a text is no example to
    train on.
    """
    prefix = strip_verdict(text)
    if prefix is None or len(_VERDICT_LABEL.findall(text)) > 1:
        return None
    word = _VERDICT_WORD.match(text, len(prefix))
    return text[: word.end()] if word else None


def cut_before_verdict(text: str) -> str | None:
    """Return the rationale of a critique: its text up to the label of its verdict; None as in `cut_after_verdict`."""
    if cut_after_verdict(text) is None:
        return None
    return text[: _VERDICT_LABEL.search(text).start()].rstrip(" \t\n*_#")  # type: ignore[union-attr]


def split_sections(text: str) -> tuple[str, str] | None:
    """Split a critique of a pairwise judge into what it says about response A and about response B.

    None unless it has exactly one section for each, A first.
    """
    headings = list(_SECTION.finditer(text))
    if [heading[1].casefold() for heading in headings] != ["a", "b"]:
        return None
    a, b = headings
    return text[a.end() : b.start()], text[b.end() :]


def compose_sections(rationale_a: str, rationale_b: str, verdict: str) -> str:
    """Compose a critique of a pairwise judge from rationales about each response, and a verdict."""
    return f"Response A.\n{rationale_a.strip()}\nResponse B.\n{rationale_b.strip()}\nVerdict: {verdict}"


def follows_from_steps(text: str, verdict: str) -> bool:
    """Check that the verdict of a critique is the one that its own steps lead to.

    Yes needs steps of which none calls a claim wrong, No a step that does. A pairwise verdict needs steps about both
    responses, and fewer wrong claims in the better one; a tie equally many.
    """
    if verdict not in PAIR_VERDICTS:
        steps = parse_steps(text)
        return bool(steps) and (verdict == "yes") is (not _num_wrong(steps))
    sections = split_sections(text)
    steps_of_both = [parse_steps(section) for section in sections or ()]
    if not steps_of_both or not all(steps_of_both):
        return False
    wrong_a, wrong_b = map(_num_wrong, steps_of_both)
    return {"a": wrong_a < wrong_b, "b": wrong_b < wrong_a}.get(verdict, wrong_a == wrong_b)


def _num_wrong(steps: Iterable[CritiqueStep]) -> int:
    return sum(step.right is False for step in steps)


def parse_steps(text: str) -> tuple[CritiqueStep, ...]:
    """Parse the lines that describe the image, each with the claim before it and the assessment after it."""
    return tuple(step for line in text.splitlines() for step in _parse_line(line))


def _parse_line(line: str) -> Iterator[CritiqueStep]:
    begin = 0
    for match in _IMAGE.finditer(line):
        claims = _CLAIM.findall(line, begin, match.start())
        assessment = _ASSESSMENT.match(line, match.end())
        begin = match.end()
        if image := match[1].strip(_MARKUP):
            right = assessment[1].casefold() == "right" if assessment else None
            yield CritiqueStep(claims[-1].strip(_MARKUP) if claims else "", image, right)


def is_faithful(text: str, response: str, extractor: ClaimExtractor, *, approves: bool) -> bool:
    """Check that a critique quotes only claims of the response and that its verdict follows from its steps.

    A Yes must quote every claim and call none wrong. A No must call one wrong, or quote every claim (the response may
    be true and still no answer). If the extractor finds no claim in the response, every critique passes; a claim that
    it only hedges may be quoted or left out. The margin cannot replace this check: a judge may be equally sure after a
    critique that skips half of the claims.

    Args:
        text: Critique, or the section of a pairwise one about this response.
        response: Response that it is about.
        extractor: Reads claims.
        approves: The verdict is Yes, or this response is called the better one.
    """
    response_claims = _claim_keys(extractor, response)
    if not response_claims:
        return True
    steps = parse_steps(text)
    quoted_by_step = {step: _claim_keys(extractor, step.claim) for step in steps}
    quoted: set[tuple[object, ...]] = set().union(*quoted_by_step.values())
    quoted -= _hedged_claim_keys(extractor, response) - response_claims
    if quoted - response_claims:
        return False
    calls_one_wrong = any(step.right is False and claims for step, claims in quoted_by_step.items())
    is_complete = quoted == response_claims
    return is_complete and not calls_one_wrong if approves else is_complete or calls_one_wrong


def _hedged_claim_keys(extractor: ClaimExtractor, text: str) -> set[tuple[object, ...]]:
    return {claim_key(replace(claim, hedged=False)) for claim in extractor.extract(text) if claim.hedged}


def _claim_keys(extractor: ClaimExtractor, text: str) -> set[tuple[object, ...]]:
    return {claim_key(claim) for claim in extractor.extract(text) if not claim.hedged}


@dataclass(frozen=True)
class CritiqueChecker:
    """Claim extractor, vocabulary and thresholds that critiques are checked with."""

    extractor: ClaimExtractor
    vocabulary: Vocabulary
    thresholds: Thresholds

    @classmethod
    def from_vocabulary(cls, vocabulary: str, thresholds: Thresholds) -> Self:
        """Build a checker with the grammar-based extractor for a vocabulary's name or path. Raises InputError."""
        words = load_vocabulary(vocabulary)
        return cls(VocabularyExtractor(words), words, thresholds)

    def fingerprint(self) -> str:
        """Hash of everything that decides the result of a check."""
        parts = (self.vocabulary.fingerprint(), self.thresholds.fingerprint(), grammar_fingerprint())
        return digest([type(self.extractor).__name__, *parts])

    def is_faithful(self, critique: Critique, preference: Preference) -> bool:
        """Check a critique against the claims of its response, or of both; see the function `is_faithful`."""
        first = preference.response(critique.side)
        if critique.verdict not in PAIR_VERDICTS:
            return is_faithful(critique.text, first, self.extractor, approves=critique.verdict == "yes")
        sections = split_sections(critique.text)
        if sections is None:
            return False
        about_both = ((sections[0], first, "a"), (sections[1], preference.response(critique.side.other), "b"))
        return follows_from_steps(critique.text, critique.verdict) and all(
            self._quotes_its_response(section, response, is_better=critique.verdict == letter)
            for section, response, letter in about_both
        )

    def _quotes_its_response(self, section: str, response: str, *, is_better: bool) -> bool:
        """Check one section of a pairwise critique. The better response may have wrong claims too, only fewer."""
        is_approved = is_better and not _num_wrong(parse_steps(section))
        return is_faithful(section, response, self.extractor, approves=is_approved)

    def is_contradicted(self, critique: Critique, preference: Preference) -> bool:
        """Check whether the experts' detections contradict one of the critique's own steps.

        A step is contradicted if a statement about the image is false, if a claim is called right that the experts
        contradict (or wrong that they support), or if the objects it lists do not add up to the number it discusses.
        Quoting a false claim of the response is no fault, and claims that the experts cannot decide are ignored.
        """
        evidence = ImageEvidence.from_records(
            preference.question.image,
            preference.detections,
            preference.window_scores,
            preference.nouns_searched_twice,
        )
        return any(
            Truth.CONTRADICTED in self._truths(self.extractor.extract(step.image), evidence)
            or self._is_wrong_assessment(step, evidence)
            or self._is_wrong_count(step, evidence)
            for step in parse_steps(critique.text)
        )

    def _is_wrong_assessment(self, step: CritiqueStep, evidence: ImageEvidence) -> bool:
        if step.right is None:
            return False
        truths = self._truths(self.extractor.extract(step.claim), evidence)
        return Truth.CONTRADICTED in truths if step.right else truths == {Truth.SUPPORTED}

    def _is_wrong_count(self, step: CritiqueStep, evidence: ImageEvidence) -> bool:
        """Check whether the objects listed by place contradict the number that the claim is about."""
        placements = [claim for claim in self.extractor.extract(step.image) if _is_placement(claim)]
        # What is hedged may or may not be listed.
        if any(claim.hedged for claim in placements):
            return False
        listed = {(claim.subject, claim.value) for claim in placements}
        count_claims = [c for c in self.extractor.extract(step.claim) if c.kind is ClaimKind.COUNT]
        implied_counts = [
            replace(c, value=str(sum(self._fits(subject, c.subject) for subject, _ in listed)), negated=False)
            for c in count_claims
        ]
        return bool(listed) and Truth.CONTRADICTED in self._truths(implied_counts, evidence)

    def _fits(self, subject: str, wanted: str) -> bool:
        """Check whether an object called `subject` ("red circle") is one of `wanted` ("circle", "red shape")."""
        one, other = self.vocabulary.phrase(subject), self.vocabulary.phrase(wanted)
        if one is None or other is None:
            return False
        return other.noun in ("", one.noun) and set(other.attributes) <= set(one.attributes)

    def _truths(self, claims: Iterable[Claim], evidence: ImageEvidence) -> set[Truth]:
        return {check_claim(claim, evidence, self.vocabulary, self.thresholds).truth for claim in claims}


def _is_placement(claim: Claim) -> bool:
    return claim.kind is ClaimKind.SPATIAL and not claim.other and not claim.negated
