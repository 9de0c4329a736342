"""Pairs of a response and its rewriting: a sound one made false in one fact, or a false one put right.

As with all pairs, a statement is false only if the evidence contradicts it, and true only if it supports it.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vlgenrm_ray.curation.case import Case, told
from vlgenrm_ray.curation.edits import KIND_OF, Edit, Fact, Statement, edits, is_single, statements, without
from vlgenrm_ray.curation.witness import Standing
from vlgenrm_ray.records import Finding, Origin, Preference

_TRIES = 12
"""Changes of one fact that are put to the evidence before another fact is tried."""


def edited(case: Case) -> Iterator[Preference]:
    """Sound responses, each against itself with one fact changed so that the evidence contradicts it."""
    sound = [j for j in case.responses if case.can_be_chosen(j) and j.standing.is_sound]
    chance = case.chance("edited")
    chance.shuffle(sound)
    for judged in sound:
        found = _falsified(case, judged.text, chance)
        if found is None:
            continue
        edit, finding = found
        chosen, rejected = (judged.id, judged.text), (f"{judged.id}/e", edit.text)
        pair = case.pair(chosen, rejected, Origin.EDITED, KIND_OF[edit.fact], told(finding))
        yield replace(pair, edit_start=edit.start, edit_end=edit.end)


def _falsified(case: Case, text: str, chance: random.Random) -> tuple[Edit, Finding] | None:
    """A change of one fact that is proved false: every fact as likely as any other, in as many words as before."""
    vocabulary = case.witness.vocabulary
    options: dict[tuple[int, Fact], list[Edit]] = {}
    for at, statement in enumerate(statements(text, vocabulary)):
        for edit in edits(text, at, vocabulary):
            if len(text.split()) == len(edit.text.split()) and _is_near(statement, edit):
                options.setdefault((at, edit.fact), []).append(edit)
    keys = sorted(options)
    chance.shuffle(keys)
    for at, fact in keys:
        tries = options[at, fact]
        chance.shuffle(tries)
        # What another response was found to have made up is a plausible thing to make up, and known to be absent.
        tries.sort(key=lambda e: not any(phrase in e.text for phrase in case.witness.absent))
        for edit in tries[:_TRIES]:
            if is_single(text, at, edit, vocabulary) and case.answers(edit.text):
                standing = case.standing(edit.text)
                if standing.contradicted:
                    return edit, standing.worst
    return None


def _is_near(statement: Statement, edit: Edit) -> bool:
    """A wrong number is one off: a larger error might be told without the image."""
    return edit.fact is not Fact.NUMBER or abs(int(edit.new) - int(statement.claims[0].value)) == 1


@dataclass(frozen=True, slots=True)
class _Repair:
    """A text on its way to being right."""

    text: str
    edits: tuple[Edit, ...] = ()
    removed: int = 0
    """Statements left out."""


def repaired(case: Case) -> Iterator[Preference]:
    """Responses with something contradicted, each put right, against themselves."""
    wrong = [j for j in case.responses if j.standing.contradicted and not j.standing.unknown and j.is_whole]
    case.chance("repaired").shuffle(wrong)
    for judged in wrong:
        repair = _repaired(case, judged.text)
        if not case.standing(repair.text).is_sound or not case.answers(repair.text):
            continue
        finding = judged.standing.worst
        chosen, rejected = (f"{judged.id}/e", repair.text), (judged.id, judged.text)
        pair = case.pair(chosen, rejected, Origin.REPAIRED, finding.claim.kind, told(finding))
        if len(repair.edits) == 1 and not repair.removed:
            (edit,) = repair.edits
            # The span is one of the rejected text, which here is the text before the edit.
            end = edit.end + len(judged.text) - len(repair.text)
            pair = replace(pair, edit_start=edit.start, edit_end=end)
        yield pair


def _repaired(case: Case, text: str) -> _Repair:
    """The text with its contradicted statements put right, or left out where no single change does it."""
    repair = _Repair(text)
    for _ in statements(text, case.witness.vocabulary):
        following = _one_repaired(case, repair)
        if following is None:
            break
        repair = following
    return repair


def _one_repaired(case: Case, repair: _Repair) -> _Repair | None:
    """The first contradicted statement put right; None if nothing is contradicted."""
    vocabulary = case.witness.vocabulary
    parts = statements(repair.text, vocabulary)
    for at, statement in enumerate(parts):
        if not _standing(case, statement).contradicted:
            continue
        said = {s.meaning for i, s in enumerate(parts) if i != at}
        for edit in _corrections(case, repair.text, at):
            if is_single(repair.text, at, edit, vocabulary):
                mended = statements(edit.text, vocabulary)[at]
                if _standing(case, mended).is_sound and mended.meaning not in said and _keeps_to_it(case, mended):
                    return _Repair(edit.text, (*repair.edits, edit), repair.removed)
        return _Repair(without(repair.text, statement), repair.edits, repair.removed + 1)
    return None


def _keeps_to_it(case: Case, statement: Statement) -> bool:
    """A repair may not answer another question than the one asked."""
    return case.is_answer(case.asked.answered_by(statement.claims))


def _corrections(case: Case, text: str, at: int) -> Iterator[Edit]:
    """Changes of one fact to what was seen, in the order of `Fact`; then an attribute and its object together."""
    once = [e for e in edits(text, at, case.witness.vocabulary) if _is_seen(case, e)]
    yield from sorted(once, key=lambda e: list(Fact).index(e.fact))
    for first in once:
        if first.fact is Fact.ATTRIBUTE:
            for second in edits(first.text, at, case.witness.vocabulary):
                if second.fact is Fact.OBJECT and _is_seen(case, second):
                    yield replace(second, start=min(first.start, second.start), end=max(first.end, second.end))


def _is_seen(case: Case, edit: Edit) -> bool:
    return edit.fact not in (Fact.ATTRIBUTE, Fact.OBJECT) or edit.new in case.witness.seen


def _standing(case: Case, statement: Statement) -> Standing:
    return Standing.of(map(case.witness.finding, statement.claims), case.config.min_score)
