"""Several responses with a ranking or scores: VL-RewardBench, MM-RLHF's full data, and the like.

Every two responses of different rank form a pair. Several pairs of a row have the ids `<id>-1v2` (responses 1 and 2,
the better first).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from vlgenrm_ray.curation.sources.conversations import answer_text, parse_turns, split_answer
from vlgenrm_ray.curation.sources.rows import (
    ID_NAMES,
    KIND_NAMES,
    QUESTION_NAMES,
    RowContent,
    RowFields,
    take_images,
)
from vlgenrm_ray.curation.sources.schema import SchemaMatch
from vlgenrm_ray.curation.sources.values import MalformedRowError, parse_json_list, show, to_number, to_text
from vlgenrm_ray.errors import DropReason

_RESPONSES = ("response", "responses", "answers", "completions", "candidates", "outputs", "generations")
_RANKS = ("human_ranking", "ranking", "rankings", "rank", "ranks")
"""Rank of each response; 0, or the smallest number, is the best."""
_SCORES = ("scores", "ratings", "rewards", "human_scores", "score", "rating")
"""Score of each response; the largest is the best."""


class RankedResponses:
    """`response`: n texts; `human_ranking`: a rank for each, 0 the best; or `scores`, the largest the best."""

    title = "VL-RewardBench and other ranked responses"

    def match(self, columns: frozenset[str], sample: Sequence[Mapping[str, Any]]) -> SchemaMatch | None:
        """See `Schema.match`."""
        responses = next((n for n in _RESPONSES if any(_is_list(row.get(n)) for row in sample)), None)
        ranking = next((n for n in (*_RANKS, *_SCORES) if any(_is_list(row.get(n)) for row in sample)), None)
        if responses and ranking:
            return SchemaMatch(92, f"{responses} are several responses, {ranking} rates each")
        return None

    def questions(self, fields: RowFields) -> Iterator[RowContent]:
        """See `Schema.questions`."""
        responses = _as_list(fields.take("chosen", *_RESPONSES))
        fields.note("rejected", *fields.roles.get("chosen", ()))
        texts = [answer_text(response, "response") or "" for response in responses]
        turns, _ = split_answer(parse_turns(fields.take("question", *QUESTION_NAMES), "question"))
        reference = fields.take("label", "ground_truth", "reference", "answer")
        content = RowContent(
            turns=turns,
            images=take_images(fields),
            id=fields.take("id", *ID_NAMES),
            kind=to_text(fields.take("kind", *KIND_NAMES) or "", "kind"),
            reference=(to_text(reference, "ground_truth") or None) if reference is not None else None,
        )
        yield from ranked_pairs(content, texts, _ranks(fields, len(texts)))


def ranked_pairs(content: RowContent, texts: Sequence[str], ranks: Sequence[float | None]) -> Iterator[RowContent]:
    """Yield the pairs of responses of different rank, the better response chosen.

    Args:
        content: Question without a pair.
        texts: The responses.
        ranks: Rank of each, the smallest the best; None for a response without one, which is in no pair.

    Raises:
        MalformedRowError: No two responses differ in rank; a tie.
    """
    if len(texts) < 2:
        raise MalformedRowError(f"has {len(texts)} response; a pair needs two")
    pairs = []
    for i, j in combinations(range(len(texts)), 2):
        a, b = ranks[i], ranks[j]
        if a is not None and b is not None and a != b:
            pairs.append((i, j) if a < b else (j, i))
    if not pairs:
        rated = sum(rank is not None for rank in ranks)
        if rated < 2:
            raise MalformedRowError(f"only {rated} of {len(texts)} responses are rated by a number")
        raise MalformedRowError(f"all {rated} rated responses have the same rank", DropReason.TIE)
    for better, worse in pairs:
        suffix = f"-{better + 1}v{worse + 1}" if len(pairs) > 1 else ""
        yield replace(content, chosen=texts[better], rejected=texts[worse], id_suffix=suffix)


def _ranks(fields: RowFields, num_responses: int) -> list[float | None]:
    for names, sign in ((_RANKS, 1), (_SCORES, -1)):
        name = next((n for n in names if n in fields), None)
        if name is None:
            continue
        values = _as_list(fields.take("ranking", name))
        if len(values) != num_responses:
            raise MalformedRowError(f"{name} rates {len(values)} of {num_responses} responses")
        numbers = [to_number(value) for value in values]
        return [None if number is None else sign * number for number in numbers]
    raise MalformedRowError(f"no ranking: none of the columns {', '.join((*_RANKS, *_SCORES))} has a list of numbers")


def _is_list(value: Any) -> bool:
    try:
        return len(_as_list(value)) > 1
    except MalformedRowError:
        return False


def _as_list(value: Any) -> list[Any]:
    value = parse_json_list(value)
    if not isinstance(value, (list, tuple)):
        raise MalformedRowError(f"response and its ranking must be lists, not {show(value)}")
    return list(value)
