"""Builders of preference pairs: `imported_pairs`, `verified_pairs`, `edited_pairs`, `repaired_pairs`.

Each yields the pairs of one question, best first, or a `RejectedPair` that says why there is none. All follow one rule:
a statement is false only if the evidence contradicts it and true only if the evidence supports it. An `unknown`
finding makes it neither.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pydantic import Field

from vlgenrm_ray.curation.edits import (
    CLAIM_KINDS,
    Edit,
    Fact,
    Statement,
    changes_one_statement,
    propose_edits,
    remove_phrase,
    remove_sentence,
    split_statements,
)
from vlgenrm_ray.curation.evidence import QuestionEvidence, RejectedPair, ResponseEvidence, format_finding
from vlgenrm_ray.curation.responses import CHOSEN, REJECTED
from vlgenrm_ray.errors import DropReason
from vlgenrm_ray.records import Finding, Origin, Preference
from vlgenrm_ray.settings import Settings

FLIPPED = "flipped: "
"""Prefix of the evidence of an imported pair whose sides were exchanged."""
_MAX_TRIES = 12
"""Edits of one fact that are checked before another fact is tried."""


class BalanceConfig(Settings):
    """Limits on the difference in length between two sides, in characters. They keep length from revealing the label.

    RLAIF-V (arXiv 2405.17220) drops pairs until chosen and rejected are equally long on average over the whole set;
    here it is done per pair and per image, so that the stream need not wait for the whole set.
    """

    max_gap: float = Field(default=0.5, ge=0)
    """Largest difference within a pair, as a fraction of the longer side."""
    free_gap: int = Field(default=12, ge=0)
    """Differences up to this many characters are always accepted: "no" against "three" in a short answer."""
    max_mean_gap: float = Field(default=0.2, ge=0)
    """Largest mean of chosen minus rejected over the pairs of an image, as a fraction of their mean length."""


def has_similar_length(a: str, b: str, config: BalanceConfig) -> bool:
    """Return True if two texts are similar enough in length to form a pair."""
    longer = max(len(a), len(b))
    return abs(len(a) - len(b)) <= max(config.free_gap, config.max_gap * longer)


# -- pairs of existing responses ---------------------------------------------------------------------------------------


def verified_pairs(question: QuestionEvidence, balance: BalanceConfig) -> Iterator[Preference]:
    """Pair sampled responses: the best with the worst, the second best with the second worst, and so on.

    The best response has the most supported claims. The worst one for it has the largest share of contradicted claims
    among the responses of similar length, or among all if there are none; ties go to the nearest length.
    """
    sampled = [r for r in question.responses if r.checked.response.sampler not in (CHOSEN, REJECTED)]
    good = [r for r in sampled if question.can_be_chosen(r)]
    good.sort(key=lambda r: (-len(r.summary.supported), len(r.summary.unknown), r.id))
    bad = [r for r in sampled if r.summary.contradicted]
    for best in good:
        if not bad:
            return
        similar = [r for r in bad if has_similar_length(best.text, r.text, balance)]
        worst = min(similar or bad, key=lambda r: (*_badness(r), abs(len(r.text) - len(best.text)), r.id))
        bad.remove(worst)
        finding = worst.summary.worst
        yield question.make_pair(
            (best.id, best.text),
            (worst.id, worst.text),
            Origin.VERIFIED,
            finding.claim.kind,
            format_finding(finding),
        )


def _badness(response: ResponseEvidence) -> tuple[float, int]:
    summary = response.summary
    num_claims = len(summary.supported) + len(summary.contradicted) + len(summary.unknown)
    return (-len(summary.contradicted) / num_claims, -len(summary.contradicted))


def imported_pairs(question: QuestionEvidence, balance: BalanceConfig) -> Iterator[Preference | RejectedPair]:
    """Keep, flip or reject the pair that the question came with. Yields at most one."""
    by_side = {r.checked.response.sampler: r for r in question.responses}
    chosen, rejected = by_side.get(CHOSEN), by_side.get(REJECTED)
    if chosen is None or rejected is None:
        return
    sides = ((chosen.id, chosen.text), (rejected.id, rejected.text))
    if chosen.text == rejected.text:
        yield RejectedPair(DropReason.NO_CONTRAST, "chosen and rejected are the same text")
    elif chosen.summary.contradicted:
        finding = chosen.summary.worst
        # A pair is flipped only if its rejected side meets the requirements of every chosen response.
        if question.can_be_chosen(rejected):
            evidence = f"{FLIPPED}{format_finding(finding)}"
            yield question.make_pair(*sides[::-1], Origin.IMPORTED, finding.claim.kind, evidence)
        else:
            yield RejectedPair(DropReason.CONTRADICTED_CHOSEN, format_finding(finding))
    elif rejected.summary.contradicted:
        finding = rejected.summary.worst
        yield question.make_pair(*sides, Origin.IMPORTED, finding.claim.kind, format_finding(finding))
    elif question.config.keep_unknown:
        yield question.make_pair(*sides, Origin.IMPORTED, "", "as imported: nothing is known against either side")
    else:
        yield RejectedPair(DropReason.NO_EVIDENCE, "nothing is known against either side of the imported pair")


# -- pairs of a response and its edit ----------------------------------------------------------------------------------


def edited_pairs(question: QuestionEvidence, balance: BalanceConfig) -> Iterator[Preference]:
    """Pair each fully supported response with itself, one fact changed so that the evidence contradicts it."""
    supported = [r for r in question.responses if question.can_be_chosen(r) and r.summary.is_fully_supported]
    rng = question.make_rng("edited")
    rng.shuffle(supported)
    for response in supported:
        falsified = _falsify(question, response.text, rng)
        if falsified is None:
            continue
        edit, finding = falsified
        chosen, rejected = (response.id, response.text), (f"{response.id}/e", edit.text)
        pair = question.make_pair(chosen, rejected, Origin.EDITED, CLAIM_KINDS[edit.fact], format_finding(finding))
        yield replace(pair, edit_start=edit.start, edit_end=edit.end)


def _falsify(question: QuestionEvidence, text: str, rng: random.Random) -> tuple[Edit, Finding] | None:
    """Change one fact so that the evidence contradicts it. All facts are equally likely; the number of words stays."""
    vocabulary = question.index.vocabulary
    options: dict[tuple[int, Fact], list[Edit]] = {}
    for i, statement in enumerate(split_statements(text, vocabulary, question.question_text)):
        for edit in propose_edits(text, i, vocabulary, question.question_text):
            if len(text.split()) == len(edit.text.split()) and _is_plausible(statement, edit):
                options.setdefault((i, edit.fact), []).append(edit)
    keys = sorted(options)
    rng.shuffle(keys)
    for i, fact in keys:
        candidates = _shuffle(question, options[i, fact], fact, rng)
        # A phrase that another response made up is a plausible error, and its absence is known.
        candidates.sort(key=lambda edit: not any(phrase in edit.text for phrase in question.index.absent_phrases))
        for edit in candidates[:_MAX_TRIES]:
            if changes_one_statement(text, i, edit, vocabulary, question.question_text) and question.text_is_answer(
                edit.text
            ):
                summary = question.summarise(edit.text)
                if summary.contradicted:
                    return edit, summary.worst
    return None


def _shuffle(question: QuestionEvidence, edits: list[Edit], fact: Fact, rng: random.Random) -> list[Edit]:
    """Return edits in random order; wrong objects that often occur with those of the image tend to come first."""
    cooccurrence = question.index.cooccurrence
    if fact is not Fact.OBJECT or cooccurrence is None:
        rng.shuffle(edits)
        return edits
    nouns = question.index.detected_words
    order = cooccurrence.shuffle(sorted({edit.new for edit in edits}), nouns, rng)
    return sorted(edits, key=lambda edit: order.index(edit.new))


def _is_plausible(statement: Statement, edit: Edit) -> bool:
    """Accept a wrong number only if it is one off: a larger error might be recognised without the image."""
    return edit.fact is not Fact.NUMBER or abs(int(edit.new) - int(statement.claims[0].value)) == 1


@dataclass(frozen=True, slots=True)
class _Repair:
    """A text under repair."""

    text: str
    edits: tuple[Edit, ...] = ()
    num_removed: int = 0
    """Statements removed."""


def repaired_pairs(question: QuestionEvidence, balance: BalanceConfig) -> Iterator[Preference]:
    """Pair each contradicted response, as the rejected side, with its corrected text."""
    wrong = [r for r in question.responses if r.summary.contradicted and not r.summary.unknown and r.is_complete]
    question.make_rng("repaired").shuffle(wrong)
    for response in wrong:
        repair = _repair(question, response.text)
        if not question.summarise(repair.text).is_fully_supported or not question.text_is_answer(repair.text):
            continue
        finding = response.summary.worst
        chosen, rejected = (f"{response.id}/e", repair.text), (response.id, response.text)
        pair = question.make_pair(chosen, rejected, Origin.REPAIRED, finding.claim.kind, format_finding(finding))
        if len(repair.edits) == 1 and not repair.num_removed:
            (edit,) = repair.edits
            # The span refers to the rejected text, which here is the text before the edit.
            end = edit.end + len(response.text) - len(repair.text)
            pair = replace(pair, edit_start=edit.start, edit_end=end)
        yield pair


def _repair(question: QuestionEvidence, text: str) -> _Repair:
    """Correct the contradicted statements of a text, or remove those that no single edit corrects."""
    repair = _Repair(text)
    for _ in split_statements(text, question.index.vocabulary, question.question_text):
        following = _repair_first(question, repair)
        if following is None:
            break
        repair = following
    return repair


def _repair_first(question: QuestionEvidence, repair: _Repair) -> _Repair | None:
    """Correct or remove the first contradicted statement. Return None if nothing is contradicted."""
    vocabulary = question.index.vocabulary
    statements = split_statements(repair.text, vocabulary, question.question_text)
    for i, statement in enumerate(statements):
        if not question.summarise_claims(statement.claims).contradicted:
            continue
        without = _remove_phrase(question, repair.text, i)
        removed = _Repair(without or remove_sentence(repair.text, statement), repair.edits, repair.num_removed + 1)
        other_meanings = {s.meaning for j, s in enumerate(statements) if j != i}
        for edit in _propose_corrections(question, repair.text, i):
            if changes_one_statement(repair.text, i, edit, vocabulary, question.question_text):
                corrected = split_statements(edit.text, vocabulary, question.question_text)[i]
                is_supported = question.summarise_claims(corrected.claims).is_fully_supported
                # The repair must not answer another question, nor repeat another statement.
                if is_supported and corrected.meaning not in other_meanings and question.is_answer(corrected.claims):
                    # "A fork and a bowl" instead of "a fork, no giraffe and a bowl".
                    if edit.fact is Fact.PRESENCE and without and question.text_is_answer(without):
                        return removed
                    return _Repair(edit.text, (*repair.edits, edit), repair.num_removed)
        return removed
    return None


def _remove_phrase(question: QuestionEvidence, text: str, index: int) -> str | None:
    """Return the text without the words of a statement. None if what remains would not say all the rest."""
    vocabulary = question.index.vocabulary
    statements = split_statements(text, vocabulary, question.question_text)
    others = [statement.meaning for i, statement in enumerate(statements) if i != index]
    for shorter in remove_phrase(text, statements[index]) if others else ():
        remaining = split_statements(shorter, vocabulary, question.question_text)
        if [statement.meaning for statement in remaining] == others:
            return shorter
    return None


def _propose_corrections(question: QuestionEvidence, text: str, index: int) -> Iterator[Edit]:
    """Yield edits of one fact to detected words, in the order of `Fact`, then of an attribute with its object."""
    vocabulary = question.index.vocabulary
    single = [e for e in propose_edits(text, index, vocabulary, question.question_text) if _is_detected(question, e)]
    yield from sorted(single, key=lambda e: list(Fact).index(e.fact))
    for first in single:
        if first.fact is Fact.ATTRIBUTE:
            for second in propose_edits(first.text, index, vocabulary, question.question_text):
                if second.fact is Fact.OBJECT and _is_detected(question, second):
                    yield replace(second, start=min(first.start, second.start), end=max(first.end, second.end))


def _is_detected(question: QuestionEvidence, edit: Edit) -> bool:
    return edit.fact not in (Fact.ATTRIBUTE, Fact.OBJECT) or edit.new in question.index.detected_words
