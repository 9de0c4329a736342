"""Whether a critique is refuted by what the experts saw: it may have the right verdict for a wrong reason."""

from dataclasses import dataclass
from typing import Self

from vlgenrm_ray.evidence.checking import Bands, check_text
from vlgenrm_ray.evidence.claims import ClaimExtractor, VocabularyExtractor
from vlgenrm_ray.evidence.view import View
from vlgenrm_ray.evidence.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.records import Critique, Truth
from vlgenrm_ray.reward.critique_text import image_statements
from vlgenrm_ray.settings import digest


@dataclass(frozen=True)
class Evidence:
    """How a critique's statements about the image are read and held against its preference's sightings."""

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
        """Whether any statement after "Image:" is contradicted; what the experts cannot tell is held against nobody.

        What the response claims, which the critique repeats, is not looked at: it may well be false.
        """
        preference = critique.preference
        view = View.of(preference.question.image, preference.sightings)
        return any(
            finding.truth is Truth.CONTRADICTED
            for statement in image_statements(critique.text)
            for finding in check_text(statement, view, self.extractor, self.vocabulary, self.bands)
        )
