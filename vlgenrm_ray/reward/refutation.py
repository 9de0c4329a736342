"""Whether a critique is refuted by what the experts saw: it may have the right verdict for a wrong reason."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from vlgenrm_ray.experts.checking import Thresholds, check_claim
from vlgenrm_ray.experts.claims import ClaimExtractor, VocabularyExtractor
from vlgenrm_ray.experts.evidence import ImageEvidence
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.records import Claim, ClaimKind, Critique, Truth
from vlgenrm_ray.reward.critique_text import Step, steps
from vlgenrm_ray.settings import digest


@dataclass(frozen=True)
class Evidence:
    """How a critique's steps are read and held against its preference's detections."""

    extractor: ClaimExtractor
    vocabulary: Vocabulary
    thresholds: Thresholds

    @classmethod
    def of(cls, vocabulary: str, thresholds: Thresholds) -> Self:
        """Read by the grammar, with the vocabulary of that name or path. Raises InputError."""
        words = load_vocabulary(vocabulary)
        return cls(VocabularyExtractor(words), words, thresholds)

    def fingerprint(self) -> str:
        """Of what decides whether a critique is refuted."""
        return digest([type(self.extractor).__name__, self.vocabulary.fingerprint(), self.thresholds.fingerprint()])

    def refutes(self, critique: Critique) -> bool:
        """Whether a step says something contradicted of the image, or calls a claim what the experts know it is not.

        What the response claims, which the critique repeats, may well be false; that is held against no critique. Nor
        is anything that the experts cannot tell.
        """
        preference = critique.preference
        view = ImageEvidence.from_records(preference.question.image, preference.detections, preference.window_scores)
        return any(
            Truth.CONTRADICTED in self._truths(self.extractor.extract(step.image), view)
            or self._miscalls(step, view)
            or self._overlooks(step, view)
            for step in steps(critique.text)
        )

    def _miscalls(self, step: Step, view: ImageEvidence) -> bool:
        if step.right is None:
            return False
        truths = self._truths(self.extractor.extract(step.claim), view)
        return Truth.CONTRADICTED in truths if step.right else truths == {Truth.SUPPORTED}

    def _overlooks(self, step: Step, view: ImageEvidence) -> bool:
        """Whether, where the claim is a number of things, the step lists another number of them by their places."""
        listed = {(c.subject, c.value) for c in self.extractor.extract(step.image) if _is_placed(c)}
        counted = [c for c in self.extractor.extract(step.claim) if c.kind is ClaimKind.COUNT]
        said = [
            replace(c, value=str(sum(self._fits(subject, c.subject) for subject, _ in listed)), negated=False)
            for c in counted
        ]
        return bool(listed) and Truth.CONTRADICTED in self._truths(said, view)

    def _fits(self, subject: str, wanted: str) -> bool:
        """Whether a thing called `subject` ("red circle") is one of the `wanted` ("circle", "red shape")."""
        one, other = self.vocabulary.phrase(subject), self.vocabulary.phrase(wanted)
        if one is None or other is None:
            return False
        return other.noun in ("", one.noun) and set(other.attributes) <= set(one.attributes)

    def _truths(self, claims: Iterable[Claim], view: ImageEvidence) -> set[Truth]:
        return {check_claim(claim, view, self.vocabulary, self.thresholds).truth for claim in claims}


def _is_placed(claim: Claim) -> bool:
    return claim.kind is ClaimKind.SPATIAL and not claim.other and not claim.negated
