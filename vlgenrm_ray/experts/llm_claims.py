"""Claims by a language model: structured output of vLLM, checked against the text and the grammar.

The model lists the claims of a text as JSON with a fixed schema. It sees no image. A listed claim counts only if

- its `span` is in the text, and names its objects in words of the vocabulary;
- the grammar reads the same statement there, affirmed or denied as the model says, if it skips the words that it does
  not know. So the model decides what unknown words mean, and the grammar everything else;
- its sentence has no colon, and no word that may deny, doubt, quote or compare (`denials` of `english.yaml`).

Other listed claims are hedged. The grammar's own claims stay, hedged where the model disagrees. Without a readable
answer the grammar's claims stand.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from vlgenrm_ray.engines.contracts import Generator, Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.experts.claims import claim_key, extract_claims, lexicon_of
from vlgenrm_ray.experts.detector import phrases_of
from vlgenrm_ray.experts.expert import ExpertPipelineConfig, ImageTask
from vlgenrm_ray.experts.lexicon import WordKind, english
from vlgenrm_ray.experts.sentences import split_sentences
from vlgenrm_ray.experts.vocabulary import Vocabulary, load_vocabulary
from vlgenrm_ray.records import Claim, ClaimKind

_MAX_CLAIMS = 32
_MAX_TOKENS = 1024
_NOUNS = (WordKind.NOUN, WordKind.NOUNS)
_PROMPT = """List the claims that a text makes about an image, as JSON.

kind: existence, count, attribute or spatial. subject: the object, in the singular, with its adjectives.
value: existence "", count the number in digits, attribute the word, spatial a relation or a place.
other: the second object of a relation, else "". negated: true if the text says that it is not so.
hedged: true if the text is not sure, asks, quotes, compares, or speaks of what is not in the image.
span: the words of the text that make the claim, copied letter by letter. Leave out opinions and guesses about feelings.

Question: {question}
Text: {text}
"""

_log = logging.getLogger(__name__)


class ListedClaim(BaseModel):
    """One claim as the language model writes it."""

    kind: Literal["existence", "count", "attribute", "spatial"]
    subject: str = Field(max_length=60)
    value: str = Field(max_length=60)
    other: str = Field(max_length=60)
    negated: bool
    hedged: bool
    span: str = Field(max_length=200)


class ListedClaims(BaseModel):
    """Answer of the language model. Its JSON schema constrains the output."""

    claims: list[ListedClaim] = Field(max_length=_MAX_CLAIMS)


class LlmClaimsExpert:
    """Replaces the claims of tasks by those of a language model and the grammar. Runs before the other experts."""

    def __init__(self, config: ExpertPipelineConfig, *, generator: Generator | None = None) -> None:
        """Start the engine of `config.claims`, unless a generator is given.

        Raises:
            ConfigError: `claims.options` are no settings of a vLLM engine.
            InputError: The model cannot be read.
        """
        self._vocabulary = load_vocabulary(config.vocabulary)
        self._generator = generator or _start_engine(config.claims.model, config.claims.options)
        self._sampling = Sampling(
            temperature=0.0, max_tokens=_MAX_TOKENS, json_schema=json.dumps(ListedClaims.model_json_schema())
        )

    def examine(self, tasks: Sequence[ImageTask]) -> list[ImageTask]:
        """Replace `claims` and `phrases`. See `Expert`."""
        texts = [
            (text, question) for task in tasks for text, question in zip(task.texts, _questions(task), strict=True)
        ]
        prompts = [Prompt(images=(), text=_PROMPT.format(question=question, text=text)) for text, question in texts]
        answers = iter(self._generator.generate(prompts, self._sampling) if prompts else [])
        return [self._with_claims(task, [parse_answer(next(answers)) for _ in task.texts]) for task in tasks]

    def _with_claims(self, task: ImageTask, listed: Sequence[ListedClaims | None]) -> ImageTask:
        claims = tuple(
            of_text if answer is None else merge_claims(text, question, of_text, answer, self._vocabulary)
            for text, question, of_text, answer in zip(task.texts, _questions(task), task.claims, listed, strict=True)
        )
        return replace(task, claims=claims, phrases=phrases_of(claim for of_text in claims for claim in of_text))


def parse_answer(answer: list[Sample] | Refusal) -> ListedClaims | None:
    """Parse the answer of the model. None if it refused, was cut, or wrote something else than the schema."""
    if isinstance(answer, Refusal):
        _log.warning("the language model refused a text (%s); the grammar reads it", answer.detail)
        return None
    try:
        return ListedClaims.model_validate_json(answer[0].text)
    except ValidationError as error:
        _log.warning("the language model's answer is not readable (%s); the grammar reads the text", error.errors()[0])
        return None


def merge_claims(
    text: str, question: str, grammar: Sequence[Claim], answer: ListedClaims, vocabulary: Vocabulary
) -> tuple[Claim, ...]:
    """Combine the claims of the grammar with those that the language model lists, by the rules of this module.

    Args:
        text: Text that makes the claims.
        question: Question that it answers; "" if there is none.
        grammar: Claims that the grammar extracts from it.
        answer: Claims that the language model lists.
        vocabulary: Vocabulary of the claims.

    Returns:
        Claims in the order of the text.
    """
    placed = [claim for listed in answer.claims if (claim := _place(listed, text, vocabulary)) is not None]
    by_model = {_statement(claim): claim for claim in placed}
    merged = [
        replace(claim, hedged=True) if _disagrees(by_model.get(_statement(claim)), claim) else claim
        for claim in grammar
    ]
    of_grammar = {_statement(claim): claim for claim in grammar}
    skipping = extract_claims(_skip_unknown_words(text, vocabulary), vocabulary, question)
    agreed = {claim_key(claim) for claim in skipping if not claim.hedged}
    for claim in placed:
        own = of_grammar.get(_statement(claim))
        if own is not None and not own.hedged:
            continue
        is_agreed = claim_key(claim) in agreed and any(_overlap(claim, other) for other in skipping)
        if is_agreed and own in merged:
            merged.remove(own)
        if is_agreed or own is None:
            merged.append(replace(claim, hedged=not is_agreed))
    unique = {(claim_key(claim), claim.start): claim for claim in merged}
    return tuple(sorted(unique.values(), key=lambda c: (c.start, c.end)))


def _overlap(a: Claim, b: Claim) -> bool:
    return a.start < b.end and b.start < a.end


def _statement(claim: Claim) -> tuple[ClaimKind, str, str, str]:
    """Return what a claim is about, whether it is affirmed, denied or hedged."""
    return (claim.kind, claim.subject, claim.value, claim.other)


def _disagrees(listed: Claim | None, claim: Claim) -> bool:
    return listed is not None and not claim.hedged and (listed.negated != claim.negated or listed.hedged)


def _place(listed: ListedClaim, text: str, vocabulary: Vocabulary) -> Claim | None:
    """Return a listed claim in canonical words at its place in the text; None if it cannot be placed."""
    start = text.find(listed.span) if listed.span.strip() else -1
    if start < 0:
        return None
    kind = ClaimKind(listed.kind)
    named = _named(listed.span, vocabulary)
    subject, other = (_canonical_phrase(phrase, vocabulary) for phrase in (listed.subject, listed.other))
    value = _canonical_value(kind, listed.value, vocabulary, is_relation=bool(listed.other))
    is_complete = subject is not None and value is not None and (other is not None or not listed.other)
    if not is_complete or not set(f"{subject} {other or ''}".split()) <= named:
        return None
    if value and value not in named:
        return None
    return Claim(
        kind=kind,
        subject=subject or "",
        text=listed.span,
        start=start,
        end=start + len(listed.span),
        value=value or "",
        other=other or "",
        negated=listed.negated,
        hedged=listed.hedged,
    )


def _named(span: str, vocabulary: Vocabulary) -> set[str]:
    """Return the canonical words of a span, single and as they are."""
    values = [word.value for word in lexicon_of(vocabulary).read(span)]
    return {part for value in values for part in (value, *value.split())}


def _canonical_phrase(phrase: str, vocabulary: Vocabulary) -> str | None:
    """Return "red car" for "the crimson automobile"; None if a word is not in the vocabulary."""
    words = lexicon_of(vocabulary).read(phrase)
    known = [word for word in words if word.kind in (*_NOUNS, WordKind.ATTRIBUTE)]
    others = {word.kind for word in words} - {*_NOUNS, WordKind.ATTRIBUTE, WordKind.A, WordKind.THE, WordKind.NUMBER}
    subject = " ".join(word.value for word in known)
    parsed = vocabulary.phrase(subject)
    return subject if parsed is not None and parsed.noun and not others else None


def _canonical_value(kind: ClaimKind, value: str, vocabulary: Vocabulary, *, is_relation: bool) -> str | None:
    if kind is ClaimKind.EXISTENCE:
        return ""
    words = lexicon_of(vocabulary).read(value)
    if kind is ClaimKind.COUNT:
        is_number = len(words) == 1 and words[0].kind is WordKind.NUMBER
        return words[0].value if is_number else None
    wanted = {ClaimKind.ATTRIBUTE: WordKind.ATTRIBUTE}.get(kind, WordKind.RELATION if is_relation else WordKind.PLACE)
    values = [word.value for word in words if word.kind is wanted]
    return values[0] if len(values) == 1 and len(words) == 1 else None


def _skip_unknown_words(text: str, vocabulary: Vocabulary) -> str:
    """Replace the words that the grammar does not know by spaces, in sentences without a word of denial."""
    characters = list(text)
    for sentence in split_sentences(text, lexicon_of(vocabulary).read(text)):
        start, end = sentence.words[0].start, sentence.words[-1].end
        # What stands before a colon may say whose words follow.
        if ":" in text[start:end] or _denials().search(text[start:end].lower()):
            continue
        for word in sentence.words:
            if word.kind is WordKind.OTHER and word.value[:1].isalpha():
                characters[word.start : word.end] = " " * (word.end - word.start)
    # A stop ends a sentence only right after a word.
    return re.sub(r"( +)([.!,;])", r"\2\1", "".join(characters))


@cache
def _denials() -> re.Pattern[str]:
    """Return the pattern of the words of `denials`, with any ending, and of marks that quote or strike out."""
    stems = "|".join(map(re.escape, english()["denials"]))
    return re.compile(rf"\b(?:{stems})|n['\u2019]t\b|-free\b|-less\b|[?\"\u201c\u2018`<>~\[{{\u2717\u274c]")


def _questions(task: ImageTask) -> Sequence[str]:
    return task.questions or [""] * len(task.texts)


def _start_engine(model: str, options: Mapping[str, Any]) -> Generator:
    from vlgenrm_ray.engines.vllm import VllmGenerator
    from vlgenrm_ray.engines.vllm_config import VllmConfig

    try:
        config = VllmConfig.model_validate({**options, "model": model})
    except ValueError as error:
        raise ConfigError(f"claims.options: {error}; they are the settings of a vLLM engine") from error
    return VllmGenerator(config)
