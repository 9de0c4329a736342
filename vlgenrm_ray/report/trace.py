"""Text report of one record's lineage: from its question to the checkpoint it trained, with all rejected records."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlgenrm_ray.judge.verdict import score_name
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
from vlgenrm_ray.report.lineage import QuestionLineage, RoundRecords, belongs, gather_lineage

_INDENT = 4


def trace(run: Path, id: str, width: int = 80) -> str:
    """Format the lineage of the record `id`. Lines of the record itself begin with ">".

    The kind of the record decides what is shown:
    - a question: all records derived from it;
    - a response: the pairs built from it;
    - a pair, or a record derived from one: both responses and all critiques, selected or dropped.

    Args:
        run: Run folder.
        id: Id of any record of the run, or of a dropped row.
        width: Largest number of columns.

    Raises:
        InputError: The run has no such id; the message suggests the nearest ones.
    """
    lineage = gather_lineage(run, id)
    return "\n".join(line.rstrip() for line in _TracePage(lineage, id, width).lines())


@dataclass(frozen=True)
class _TracePage:
    """Lines of one trace."""

    lineage: QuestionLineage
    id: str
    width: int

    def lines(self) -> Iterator[str]:
        preferences = self._preferences()
        responses = self._responses(preferences)
        if self.lineage.question is not None:
            yield from self._question(self.lineage.question)
        if responses:
            yield from ("", "RESPONSES, WITH THE EXPERTS' FINDING ON EACH CLAIM")
            checked = {c.id: c for c in self.lineage.checked}
            for response in responses:
                yield from self._response(response, checked.get(response.id))
        if preferences:
            yield from ("", "PREFERENCES")
            for preference in preferences:
                yield from self._preference(preference)
        for records in self.lineage.rounds:
            yield from self._round(records, preferences)
        yield from self._dropped({p.id for p in preferences})

    # -- selection of records ---------------------------------------------------------------------------------------

    def _preferences(self) -> list[Preference]:
        """Return the pairs that contain the record, were built from it, or belong to its question."""
        all_pairs = list(self.lineage.preferences)
        if containing := [p for p in all_pairs if belongs(self.id, p.id)]:
            return containing
        if response_ids := [r.id for r in self.lineage.responses if belongs(self.id, r.id)]:
            return [p for p in all_pairs if any(belongs(i, response_ids[0]) for i in (p.chosen_id, p.rejected_id))]
        return all_pairs

    def _responses(self, preferences: list[Preference]) -> list[Response]:
        """Return the responses that the pairs were built from; all of them if the record is the question itself."""
        if own := [r for r in self.lineage.responses if belongs(self.id, r.id)]:
            return own
        if self.lineage.question is not None and self.id == self.lineage.question.id:
            return list(self.lineage.responses)
        sides = [i for p in preferences for i in (p.chosen_id, p.rejected_id)]
        return [r for r in self.lineage.responses if any(belongs(i, r.id) for i in sides)]

    # -- formatting ---------------------------------------------------------------------------------------------

    def _put(self, level: int, text: str, id: str = "") -> Iterator[str]:
        """Append an indented paragraph, wrapped to the page's width; mark it if it is about the traced record."""
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
        yield from self._put(0, f"QUESTION {question.id}", question.id)
        yield from self._put(1, f'"{question.text}"')
        for number, image in enumerate(question.images, start=1):
            name = "image" if len(question.images) == 1 else f"image {number} of {len(question.images)}"
            yield from self._put(1, f"{name} {image.uri} ({image.width} x {image.height}, sha256 {image.sha256[:12]})")
        details = [f"source {question.source}", *([f"kind {question.kind}"] if question.kind else [])]
        yield from self._put(1, ", ".join(details))
        if question.reference:
            yield from self._put(1, f'reference "{question.reference}"')

    def _response(self, response: Response, checked: CheckedResponse | None) -> Iterator[str]:
        details = [f"sampler {response.sampler}", *([] if response.seed is None else [f"seed {response.seed}"])]
        yield from self._put(1, f"{response.id}  {', '.join([*details, f'{response.num_tokens} tokens'])}", response.id)
        yield from self._put(2, f'"{response.text}"')
        if checked is None:
            yield from self._put(2, "not checked")
            return
        for finding in checked.findings:
            yield from self._finding(finding)
        detections = [f"{d.attribute} {_box(d.box)}".strip() for d in checked.detections]
        yield from self._put(2, f"detected in the image: {'; '.join(detections) or 'nothing'}")

    def _finding(self, finding: Finding) -> Iterator[str]:
        verdict = f'{finding.truth.value:<13} {finding.claim.kind.value:<10} "{finding.claim.text}"'
        yield from self._put(2, f"{verdict} {finding.expert} {finding.score:.2f}")
        if finding.boxes:
            yield from self._put(3, "; ".join(_box(b) for b in finding.boxes))

    def _preference(self, preference: Preference) -> Iterator[str]:
        details = [preference.origin.value, *([preference.kind] if preference.kind else [])]
        yield from self._put(1, f"{preference.id}  {', '.join(details)}", preference.id)
        for name, text, id in (
            ("chosen", preference.chosen, preference.chosen_id),
            ("rejected", preference.rejected, preference.rejected_id),
        ):
            yield from self._put(2, f'{name:<8} "{text}"' + (f" ({id})" if id else ""))
        if preference.edit_start >= 0:
            yield from self._put(2, f'edited   "{preference.rejected[preference.edit_start : preference.edit_end]}"')
        if preference.evidence:
            yield from self._put(2, f"evidence {preference.evidence}")

    def _round(self, records: RoundRecords, preferences: list[Preference]) -> Iterator[str]:
        critiques = [c for p in preferences for c in records.critiques if c.preference_id == p.id]
        examples = [e for p in preferences for e in records.examples if belongs(e.id, p.id)]
        results = [r for p in preferences for r in records.results if belongs(r.id, p.id)]
        if not (critiques or examples or results):
            return
        yield from ("", f"ROUND {records.round}")
        selected_ids = {e.id.removesuffix("/example") for e in records.examples}
        reasons = {
            d.id: f"{d.reason}: {d.detail}" for stage, d in self.lineage.dropped if stage == _selection_stage(records)
        }
        for critique in critiques:
            status = "selected" if critique.id in selected_ids else reasons.get(critique.id, "selection not finished")
            yield from self._critique(critique, status)
        for preference in preferences:
            if preference.id in reasons:
                yield from self._put(1, f"pair {preference.id}  dropped, {reasons[preference.id]}")
        for example in examples:
            label = f" ({example.label})" if example.label else ""
            details = f"{example.kind.value}{label}, weight {example.weight:g}"
            yield from self._put(1, f"example {example.id}  {details}", example.id)
        if examples and records.checkpoint is not None:
            yield from self._put(1, f"trained {records.checkpoint.uri}, from {records.checkpoint.parent}")
        elif examples:
            yield from self._put(1, "not trained yet: the round's training is not finished")
        for result in results:
            yield from self._result(result)

    def _critique(self, critique: Critique, status: str) -> Iterator[str]:
        verdict = (
            "unreadable"
            if critique.p_yes is None
            else f"{critique.verdict}, {score_name(critique.verdict)} {critique.p_yes:.2f}"
        )
        yield from self._put(1, f"critique {critique.id}  {verdict}; {status}", critique.id)
        yield from self._put(2, critique.text.strip())

    def _result(self, result: PairResult) -> Iterator[str]:
        sides = f"chosen {_reward(result.chosen)}, rejected {_reward(result.rejected)}"
        yield from self._put(1, f"judged {result.id}  {sides}", result.id)
        for name, judgement in (("chosen", result.chosen), ("rejected", result.rejected)):
            for critique in judgement.critiques:
                yield from self._put(2, f"{name}: {' / '.join(critique.text.split(chr(10)))}")

    def _dropped(self, pair_ids: set[str]) -> Iterator[str]:
        """List the dropped rows, except critiques, whose reasons are listed with them."""
        selection_stages = {_selection_stage(records) for records in self.lineage.rounds}
        drops = [
            (stage, d)
            for stage, d in self.lineage.dropped
            if stage not in selection_stages and self._is_related(d.id, pair_ids)
        ]
        if drops:
            yield from ("", "DROPPED")
        for stage, dropped in drops:
            detail = f": {dropped.detail}" if dropped.detail else ""
            yield from self._put(1, f"{dropped.id}  by {stage}, {dropped.reason}{detail}", dropped.id)

    def _is_related(self, id: str, pair_ids: set[str]) -> bool:
        return belongs(id, self.id) or belongs(self.id, id) or any(belongs(id, pair_id) for pair_id in pair_ids)


def _selection_stage(records: RoundRecords) -> str:
    return f"round-{records.round}/selection"


def _box(box: Box) -> str:
    return f"{box.label} {box.score:.2f} ({box.x0:.0f}, {box.y0:.0f})-({box.x1:.0f}, {box.y1:.0f})"


def _reward(judgement: Judgement) -> str:
    return judgement.status if judgement.reward is None else f"{judgement.reward:.3f}"
