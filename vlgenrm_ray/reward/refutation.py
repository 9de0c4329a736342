"""Whether a critique is refuted by what the experts saw: it may have the right verdict for a wrong reason."""

from dataclasses import dataclass
from typing import Self

from vlgenrm_ray.evidence.checking import Bands, check_text
from vlgenrm_ray.evidence.claims import ClaimExtractor, VocabularyExtractor
from vlgenrm_ray.evidence.view import View
from vlgenrm_ray.evidence.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.records import Critique, Truth
from vlgenrm_ray.reward.critique_text import Step, steps
from vlgenrm_ray.settings import digest


@dataclass(frozen=True)
class Evidence:
    """How a critique's steps are read and held against its preference's sightings."""

    extractor: ClaimExtractor
    vocabulary: Vocabulary
    bands: Bands

    @classmethod
    def of(cls, vocabulary: str, bands: Bands) -> Self:
        """Read by the grammar, with the vocabulary of that name or path. Raises InputError."""
        words = load_vocabulary(vocabulary)
        return cls(VocabularyExtractor(words), words, bands)

    def fingerprint(self) -> str:
        """Of what decides whether a critique is refuted."""
        return digest([type(self.extractor).__name__, self.vocabulary.fingerprint(), self.bands.fingerprint()])

    def refutes(self, critique: Critique) -> bool:
        """Whether a step says something contradicted of the image, or calls a claim what the experts know it is not.

        What the response claims, which the critique repeats, may well be false; that is held against no critique. Nor
        is anything that the experts cannot tell.
        """
        preference = critique.preference
        view = View.of(preference.question.image, preference.sightings)
        return any(
            Truth.CONTRADICTED in self._truths(step.image, view) or self._miscalls(step, view)
            for step in steps(critique.text)
        )

    def _miscalls(self, step: Step, view: View) -> bool:
        if step.right is None:
            return False
        truths = self._truths(step.claim, view)
        return Truth.CONTRADICTED in truths if step.right else truths == {Truth.SUPPORTED}

    def _truths(self, text: str, view: View) -> set[Truth]:
        return {f.truth for f in check_text(text, view, self.extractor, self.vocabulary, self.bands)}
