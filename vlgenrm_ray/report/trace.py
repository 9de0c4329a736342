"""One record's life as text: from its question to the checkpoint it trained, with all that lost on the way."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlgenrm_ray.records import (
    Box,
    CheckedResponse,
    Critique,
    Finding,
    Judgement,
    PairResult,
    Preference,
    Question,
    Response,
)
from vlgenrm_ray.report.life import Life, RoundLife, belongs, gather

_INDENT = 4


def trace(run: Path, id: str, width: int = 80) -> str:
    """The life of the record `id` in a run folder, in lines of at most `width` columns; its own lines begin with ">".

    A question shows all that came of it, a response the pairs made of it, a pair (or anything below one) both its
    responses and every critique, kept or lost. Raises InputError, naming the nearest ids, for one the run lacks.
    """
    life = gather(run, id)
    return "\n".join(line.rstrip() for line in _Page(life, id, width).lines())


@dataclass(frozen=True)
class _Page:
    life: Life
    id: str
    width: int

    def lines(self) -> Iterator[str]:
        preferences = self._preferences()
        responses = self._responses(preferences)
        if self.life.question is not None:
            yield from self._question(self.life.question)
        if responses:
            yield from ("", "RESPONSES, AND WHAT THE EXPERTS SAY OF EACH CLAIM")
            checked = {c.id: c for c in self.life.checked}
            for response in responses:
                yield from self._response(response, checked.get(response.id))
        if preferences:
            yield from ("", "PREFERENCES")
            for preference in preferences:
                yield from self._preference(preference)
        for made in self.life.rounds:
            yield from self._round(made, preferences)
        yield from self._dropped({p.id for p in preferences})

    # -- what is shown -----------------------------------------------------------------------------------------------

    def _preferences(self) -> list[Preference]:
        """The pairs the asked record lies in, comes from or leads to."""
        everything = list(self.life.preferences)
        if inside := [p for p in everything if belongs(self.id, p.id)]:
            return inside
        if below := [r.id for r in self.life.responses if belongs(self.id, r.id)]:
            return [p for p in everything if any(belongs(i, below[0]) for i in (p.chosen_id, p.rejected_id))]
        return everything

    def _responses(self, preferences: list[Preference]) -> list[Response]:
        """The responses those pairs were made of; all of them where the question itself was asked for."""
        if below := [r for r in self.life.responses if belongs(self.id, r.id)]:
            return below
        if self.life.question is not None and self.id == self.life.question.id:
            return list(self.life.responses)
        sides = [i for p in preferences for i in (p.chosen_id, p.rejected_id)]
        return [r for r in self.life.responses if any(belongs(i, r.id) for i in sides)]

    # -- how it is shown ---------------------------------------------------------------------------------------------

    def _put(self, level: int, text: str, id: str = "") -> Iterator[str]:
        """A paragraph at an indent, wrapped; marked if it is of the asked record."""
        indent = " " * (_INDENT * level)
        first = ">" + indent[1:] if id == self.id else indent
        if not level:
            first = "> " if id == self.id else ""
        for paragraph in text.splitlines() or [""]:
            yield from textwrap.wrap(
                paragraph,
                self.width,
                initial_indent=first,
                subsequent_indent=indent + "  ",
                break_on_hyphens=False,
            )
            first = indent

    def _question(self, question: Question) -> Iterator[str]:
        image = question.image
        yield from self._put(0, f"QUESTION {question.id}", question.id)
        yield from self._put(1, f'"{question.text}"')
        yield from self._put(1, f"image {image.uri} ({image.width} x {image.height}, sha256 {image.sha256[:12]})")
        about = [f"source {question.source}", *([f"kind {question.kind}"] if question.kind else [])]
        yield from self._put(1, ", ".join(about))
        if question.reference:
            yield from self._put(1, f'reference "{question.reference}"')

    def _response(self, response: Response, checked: CheckedResponse | None) -> Iterator[str]:
        told = [f"sampler {response.sampler}", *([] if response.seed is None else [f"seed {response.seed}"])]
        yield from self._put(1, f"{response.id}  {', '.join([*told, f'{response.num_tokens} tokens'])}", response.id)
        yield from self._put(2, f'"{response.text}"')
        if checked is None:
            yield from self._put(2, "not checked")
            return
        for finding in checked.findings:
            yield from self._finding(finding)
        seen = [f"{s.attribute} {_box(s.box)}".strip() for s in checked.detections]
        yield from self._put(2, f"seen in the image: {'; '.join(seen) or 'nothing'}")

    def _finding(self, finding: Finding) -> Iterator[str]:
        said = f'{finding.truth.value:<13} {finding.claim.kind.value:<10} "{finding.claim.text}"'
        yield from self._put(2, f"{said} {finding.expert} {finding.score:.2f}")
        if finding.boxes:
            yield from self._put(3, "; ".join(_box(b) for b in finding.boxes))

    def _preference(self, preference: Preference) -> Iterator[str]:
        told = [preference.origin.value, *([preference.kind] if preference.kind else [])]
        yield from self._put(1, f"{preference.id}  {', '.join(told)}", preference.id)
        for name, text, id in (
            ("chosen", preference.chosen, preference.chosen_id),
            ("rejected", preference.rejected, preference.rejected_id),
        ):
            yield from self._put(2, f'{name:<8} "{text}"' + (f" ({id})" if id else ""))
        if preference.edit_start >= 0:
            yield from self._put(2, f'edited   "{preference.rejected[preference.edit_start : preference.edit_end]}"')
        if preference.evidence:
            yield from self._put(2, f"evidence {preference.evidence}")

    def _round(self, made: RoundLife, preferences: list[Preference]) -> Iterator[str]:
        critiques = [c for p in preferences for c in made.critiques if c.preference.id == p.id]
        examples = [e for p in preferences for e in made.examples if belongs(e.id, p.id)]
        results = [r for p in preferences for r in made.results if belongs(r.id, p.id)]
        if not (critiques or examples or results):
            return
        yield from ("", f"ROUND {made.number}")
        kept = {e.id.removesuffix("/example") for e in made.examples}
        why = {d.id: f"{d.reason}: {d.detail}" for stage, d in self.life.dropped if stage == _selection(made)}
        for critique in critiques:
            fate = "kept" if critique.id in kept else why.get(critique.id, "not selected from yet")
            yield from self._critique(critique, fate)
        for preference in preferences:
            if preference.id in why:
                yield from self._put(1, f"pair {preference.id}  lost: {why[preference.id]}")
        for example in examples:
            told = f"{example.kind.value}{f' ({example.label})' if example.label else ''}, weight {example.weight:g}"
            yield from self._put(1, f"example {example.id}  {told}", example.id)
        if examples and made.checkpoint is not None:
            yield from self._put(1, f"trained {made.checkpoint.uri}, from {made.checkpoint.parent}")
        elif examples:
            yield from self._put(1, "trained nothing yet: the round's training is not finished")
        for result in results:
            yield from self._result(result)

    def _critique(self, critique: Critique, fate: str) -> Iterator[str]:
        read = "unreadable" if critique.p_yes is None else f"{critique.verdict}, p(Yes) {critique.p_yes:.2f}"
        yield from self._put(1, f"critique {critique.id}  {read}; {fate}", critique.id)
        yield from self._put(2, critique.text.strip())

    def _result(self, result: PairResult) -> Iterator[str]:
        sides = f"chosen {_reward(result.chosen)}, rejected {_reward(result.rejected)}"
        yield from self._put(1, f"judged {result.id}  {sides}", result.id)
        for name, judgement in (("chosen", result.chosen), ("rejected", result.rejected)):
            for critique in judgement.critiques:
                yield from self._put(2, f"{name}: {' / '.join(critique.text.split(chr(10)))}")

    def _dropped(self, shown: set[str]) -> Iterator[str]:
        """What left the flow, apart from the critiques, which have their fate beside them."""
        inline = {_selection(made) for made in self.life.rounds}
        lost = [(stage, d) for stage, d in self.life.dropped if stage not in inline and self._concerns(d.id, shown)]
        if lost:
            yield from ("", "DROPPED")
        for stage, dropped in lost:
            detail = f": {dropped.detail}" if dropped.detail else ""
            yield from self._put(1, f"{dropped.id}  by {stage}, {dropped.reason}{detail}", dropped.id)

    def _concerns(self, id: str, shown: set[str]) -> bool:
        return belongs(id, self.id) or belongs(self.id, id) or any(belongs(id, one) for one in shown)


def _selection(made: RoundLife) -> str:
    return f"round-{made.number}/selection"


def _box(box: Box) -> str:
    return f"{box.label} {box.score:.2f} ({box.x0:.0f}, {box.y0:.0f})-({box.x1:.0f}, {box.y1:.0f})"


def _reward(judgement: Judgement) -> str:
    return judgement.status if judgement.reward is None else f"{judgement.reward:.3f}"
