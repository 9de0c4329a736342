"""The VLM expert: asks another vision-language model yes/no questions about claims, for relations and attributes.

The answer is p(Yes) / (p(Yes) + p(No)) at the first token. A claim competes with those that exclude it (other colours,
the opposite relation): it is supported if the model says yes to it and no to all of them, and contradicted if it says
no to it and yes to one of them. So a model that says yes to everything decides nothing. Claims that nothing excludes
("inside", "behind") are asked in a positive and a negative form, which must agree.

Take a model of another family than the policy and the judge: one that shares their mistakes confirms them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlgenrm_ray.engines.contracts import Generator, Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.experts.expert import ExpertPipelineConfig, ImageTask
from vlgenrm_ray.experts.lexicon import OPPOSITE_RELATIONS
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary, with_article
from vlgenrm_ray.records import Claim, ClaimKind, Finding, Truth

_KINDS = (ClaimKind.ATTRIBUTE, ClaimKind.SPATIAL)
_QUESTION = "Is this statement about the image true? Statement: {} Answer with Yes or No."
_NEGATION = "Is this statement about the image false? Statement: {} Answer with Yes or No."
_SAMPLING = Sampling(temperature=0.0, max_tokens=1, tracked_words=("Yes", "No"))
_MIN_MASS = 0.5
"""Least p(Yes) + p(No) of an answer; with less the model did not answer the question."""


@dataclass(frozen=True, slots=True)
class _Query:
    """One question about a claim, and its meaning for the claim."""

    text: str
    supports: bool
    """True if a yes supports the claim, False if it tells against it."""


class VlmExpert:
    """Asks a vision-language model through vLLM. The model sees the whole image."""

    def __init__(
        self,
        config: ExpertPipelineConfig,
        *,
        kinds: Sequence[str] = _KINDS,
        sure: float = 0.8,
        generator: Generator | None = None,
        **engine: Any,
    ) -> None:
        """Start the engine, unless a generator is given.

        Args:
            config: Settings of all experts.
            kinds: Kinds of claims that are asked about.
            sure: Probability of yes, or of no, from which an answer counts.
            generator: Started engine.
            engine: Settings of a vLLM engine (`model`, `max_model_len`, `kv_cache_gib`, ...), see `VllmConfig`.

        Raises:
            ConfigError: A kind is unknown, or the engine's settings do not fit.
            InputError: The model cannot be read.
        """
        known = {kind.value for kind in ClaimKind}
        if unknown := sorted(set(map(str, kinds)) - known):
            raise ConfigError(f"vlm.kinds: {unknown[0]!r} is unknown; choose from {', '.join(sorted(known))}")
        if not 0.5 < sure <= 1:
            raise ConfigError(f"vlm.sure: {sure} must be above 0.5 and at most 1")
        self._kinds = frozenset(ClaimKind(kind) for kind in kinds)
        self._sure = sure
        self._vocabulary = load_vocabulary(config.vocabulary)
        self._generator = generator or _start_engine(engine)

    def examine(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Add findings on claims of `kinds`. See `Expert`."""
        pairs = [(i, claim) for i, task in enumerate(tasks) for claim in self._claims(task)]
        queries = [(i, claim, query) for i, claim in pairs for query in self._queries(claim)]
        images = [task.image() for task in tasks]
        prompts = [Prompt(images=(images[i],), text=query.text) for i, _, query in queries]
        samples = self._generator.generate(prompts, _SAMPLING) if prompts else []
        answers: dict[tuple[int, Claim], list[tuple[_Query, float | None]]] = {}
        for (i, claim, query), sample in zip(queries, samples, strict=True):
            answers.setdefault((i, claim), []).append((query, _p_yes(sample)))
        examined = list(tasks)
        for (i, claim), of_claim in answers.items():
            finding = self._decide(claim, of_claim)
            examined[i] = replace(examined[i], findings=(*examined[i].findings, finding))
        return examined

    def _claims(self, task: ImageTask) -> Sequence[Claim]:
        claims = (claim for of_text in task.claims for claim in of_text)
        return list(dict.fromkeys(c for c in claims if c.kind in self._kinds and not c.hedged))

    def _queries(self, claim: Claim) -> list[_Query]:
        """Return the questions about a claim. The first one asks about the claim itself."""
        statement = _sentence(state_claim(claim, self._vocabulary))
        queries = [_Query(_QUESTION.format(statement), supports=True)]
        contrasts = list(contrasting_claims(claim, self._vocabulary))
        for contrast in contrasts:
            other = _sentence(state_claim(contrast, self._vocabulary))
            queries.append(_Query(_QUESTION.format(other), supports=False))
        return queries if contrasts else [*queries, _Query(_NEGATION.format(statement), supports=False)]

    def _decide(self, claim: Claim, answers: Sequence[tuple[_Query, float | None]]) -> Finding:
        truth, score = Truth.UNKNOWN, 0.0
        readable = [p for _, p in answers if p is not None]
        if len(readable) == len(answers):
            p_claim = max(p for (query, _), p in zip(answers, readable, strict=True) if query.supports)
            p_other = max(p for (query, _), p in zip(answers, readable, strict=True) if not query.supports)
            supported, contradicted = min(p_claim, 1 - p_other), min(1 - p_claim, p_other)
            if max(supported, contradicted) >= self._sure:
                is_supported = (supported > contradicted) != claim.negated
                truth = Truth.SUPPORTED if is_supported else Truth.CONTRADICTED
                score = max(supported, contradicted)
        return Finding(claim=claim, truth=truth, expert="vlm", score=score)


def _start_engine(settings: dict[str, Any]) -> Generator:
    from vlgenrm_ray.engines.vllm import VllmGenerator
    from vlgenrm_ray.engines.vllm_config import VllmConfig

    try:
        config = VllmConfig.model_validate(settings)
    except ValueError as error:
        raise ConfigError(f"vlm: {error}; its options are those of a vLLM engine, kinds and sure") from error
    if not config.model:
        raise ConfigError("vlm.model: there is none; give a model folder or hub name")
    return VllmGenerator(config)


def _p_yes(samples: list[Sample] | Refusal) -> float | None:
    """Return p(Yes) / (p(Yes) + p(No)) of an answer; None if the engine refused or the model did not answer."""
    if isinstance(samples, Refusal) or not samples[0].tokens:
        return None
    probabilities = samples[0].tokens[0].tracked_probabilities
    mass = probabilities["Yes"] + probabilities["No"]
    return probabilities["Yes"] / mass if mass >= _MIN_MASS else None


def _sentence(statement: str) -> str:
    return f"{statement[:1].upper()}{statement[1:]}."


def state_claim(claim: Claim, vocabulary: Vocabulary) -> str:
    """Return a claim, as if it were not negated, as a sentence: "the dog is left of the red car"."""
    if claim.kind is ClaimKind.EXISTENCE:
        return f"there is {with_article(claim.subject)} in the image"
    if claim.kind is ClaimKind.COUNT:
        is_one = claim.value == "1"
        noun = claim.subject if is_one else vocabulary.plural(claim.subject)
        return f"the number of {noun} in the image is {claim.value}"
    if claim.kind is ClaimKind.ATTRIBUTE:
        return f"the {claim.subject} is {claim.value}"
    if claim.kind is ClaimKind.TEXT:
        return f'the {claim.subject} in the image says "{claim.value}"'
    if claim.other:
        return f"the {claim.subject} is {claim.value} the {claim.other}"
    return f"there is {with_article(claim.subject)} at the {claim.value} of the image"


def contrasting_claims(claim: Claim, vocabulary: Vocabulary) -> Iterator[Claim]:
    """Yield the claims that cannot be true together with a claim: other colours, the opposite relation."""
    if claim.kind is ClaimKind.ATTRIBUTE:
        for word in vocabulary.attributes.get(_family(claim, vocabulary), ()):
            if word != claim.value:
                yield replace(claim, value=word)
    elif claim.other and claim.value in OPPOSITE_RELATIONS:
        yield replace(claim, value=OPPOSITE_RELATIONS[claim.value])


def _family(claim: Claim, vocabulary: Vocabulary) -> str:
    return next((name for name, words in vocabulary.attributes.items() if claim.value in words), "")
