"""VL-RewardBench (arXiv 2411.17451): which of two responses do people prefer?

Official rule (`cal.py` of vl-rewardbench/VL_RewardBench): an item is its id, query and both responses. Items with an
unreadable judgement are left out; of the others one is right if more than half of its judgements are, wrong if more
than half are not, and left out otherwise. Overall is right / (right + wrong); macro is the mean of the three groups. A
reward is one judgement, and a tie is wrong.

lmms-eval and VLMEvalKit use one judgement, in an order that follows from the lengths of the responses. lmms-eval tosses
a coin if it is unreadable, counted here as 1/2, the expected value; for VLMEvalKit it is wrong.
"""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.benchmark import LMMS_EVAL, OFFICIAL, VLMEVALKIT, BenchmarkReport, MetricRow
from vlgenrm_ray.evaluation.benchmarks.files import ImageResolver, Row, match_answers, read_rows, unique_ids, value_of
from vlgenrm_ray.evaluation.benchmarks.response_pairs import (
    Outcome,
    PairBenchmark,
    PairPrediction,
    ResponsePair,
    Vote,
    order_rows,
    outcome_of_choice,
    pair_baselines,
    pair_counts,
    read_plain_votes,
    values,
    vote_in_order,
)
from vlgenrm_ray.evaluation.metrics import Array, bootstrap_interval, clustered_interval, divide

GROUPS = ("general", "hallucination", "reasoning")
_GROUP_OF_PREFIX = {
    "hallucination": "hallucination",
    "rlaif": "hallucination",
    "rlhf": "hallucination",
    "mathverse": "reasoning",
    "mmmu": "reasoning",
}
_VERDICT = re.compile(
    r"(?:Overall Judgment|Therefore)\s*.*\s*-*\s*Answer\s*(\d+)\s*is\s*(?:the\s*)?(?:slightly\s*)?better", re.IGNORECASE
)
_NUM_JUDGEMENTS = (1, 3, 5, 7, 9)
_OFFICIAL_SEED = 1234


class VlRewardBench(PairBenchmark):
    """VL-RewardBench by the rules of its own script, lmms-eval and VLMEvalKit.

    Answers: the output of `inference_hf.py` (`id`, `query`, `response`, `meta`; several rows per item), or rows with
    `id` and `rewards` or `choice`.
    """

    def read(self, data: Path, images: ImageResolver) -> list[ResponsePair]:
        """See `Benchmark.read`."""
        rows = read_rows(data)
        keys = [str(value_of(row, ("id",), data)) for row in rows]
        return [
            _read_item(row, id, key, images, data) for row, id, key in zip(rows, unique_ids(keys), keys, strict=True)
        ]

    def read_answers(self, answers: Path, items: Sequence[ResponsePair]) -> list[PairPrediction | None]:
        """See `Benchmark.read_answers`."""
        rows = [row.get("0", row) if isinstance(row.get("0"), dict) else row for row in read_rows(answers)]
        if "meta" not in rows[0]:
            matched = match_answers(rows, [item.key for item in items], lambda row: str(row.get("id")), answers)
            return [
                None if row is None else PairPrediction(votes=read_plain_votes(row, item, answers))
                for item, row in zip(items, matched, strict=True)
            ]
        lines: dict[tuple[str, ...], list[tuple[int, Row]]] = {}
        for line, row in enumerate(rows):
            responses = value_of(row, ("response",), answers)
            key = _identity(value_of(row, ("id",), answers), value_of(row, ("query",), answers), responses)
            lines.setdefault(key, []).append((line, row))
        predictions: list[PairPrediction | None] = []
        for item in items:
            calls = lines.get(_identity(item.key, item.question, item.responses))
            if calls is None:
                predictions.append(None)
                continue
            votes = tuple(_read_call(row, item, answers) for _, row in calls)
            predictions.append(PairPrediction(votes=votes, lines=tuple(line for line, _ in calls)))
        return predictions

    def score(self, items: Sequence[ResponsePair], predictions: Sequence[PairPrediction]) -> BenchmarkReport:
        """See `Benchmark.score`."""
        official = [majority(p.votes) for p in predictions]
        lmms_eval = [_one_vote(item, p, undecided=0.5) for item, p in zip(items, predictions, strict=True)]
        vlmevalkit = [_one_vote(item, p, undecided=0.0) for item, p in zip(items, predictions, strict=True)]
        ours, clusters = values(predictions), [item.cluster for item in items]
        group_of = np.array([item.group for item in items])
        by_rule = {OFFICIAL: official, LMMS_EVAL: lmms_eval, VLMEVALKIT: vlmevalkit}

        def of_group(group: str) -> MetricRow:
            is_in = group_of == group
            own = [cluster for cluster, flag in zip(clusters, is_in, strict=True) if flag]
            return MetricRow(
                name=group,
                rules={
                    rule: _mean([value for value, flag in zip(decisions, is_in, strict=True) if flag])
                    for rule, decisions in by_rule.items()
                },
                ours=clustered_interval(ours[is_in], own),
            )

        groups = tuple(of_group(group) for group in GROUPS if (group_of == group).any())
        metrics = [
            MetricRow(
                name="overall accuracy",
                rules={OFFICIAL: _mean(official), VLMEVALKIT: _mean(vlmevalkit)},
                ours=clustered_interval(ours, clusters),
            ),
            MetricRow(
                name="macro accuracy",
                rules={rule: _mean([group.rules[rule] for group in groups]) for rule in by_rule},
                ours=bootstrap_interval(_macro(ours, group_of), clusters),
            ),
        ]
        return BenchmarkReport(
            metrics=(*metrics, *_rows_by_k(items, predictions)),
            groups=groups,
            orders=order_rows(items, predictions),
            baselines=pair_baselines(items, predictions),
            counts=pair_counts(predictions) | {"left out by the official rule": official.count(None)},
        )


def _read_item(row: Row, id: str, key: str, images: ImageResolver, path: Path) -> ResponsePair:
    responses, ranking = list(value_of(row, ("response",), path)), list(value_of(row, ("human_ranking",), path))
    if len(responses) != 2 or sorted(ranking) != [0, 1]:
        raise InputError(f"{path}: {key} has {len(responses)} responses ranked {ranking}; expected two, ranked 0 and 1")
    uris = images.resolve(row.get("image"))
    prefix = re.split("[_-]", key, maxsplit=1)[0].lower()
    return ResponsePair(
        id=id,
        key=key,
        question=str(value_of(row, ("query",), path)).replace("<image>", "").strip(),
        images=uris,
        responses=(str(responses[0]), str(responses[1])),
        better=ranking.index(0),
        group=_GROUP_OF_PREFIX.get(prefix, "general"),
        cluster=uris[0] if uris else key,
    )


def _identity(id: object, query: object, responses: Sequence[str]) -> tuple[str, ...]:
    return (str(id), str(query).replace("<image>", "").strip(), *sorted(map(str, responses)))


def _read_call(row: Row, item: ResponsePair, path: Path) -> Vote:
    """Read one row of the official script's output: which answer its text prefers, and in which order they stood."""
    meta = row["meta"]
    text, first = meta.get("filter_choice"), meta.get("random_number")
    if not isinstance(text, str) or first not in (0, 1):
        raise InputError(f"{path}: {item.key} lacks meta.filter_choice or meta.random_number; give the script's output")
    match = _VERDICT.search(text.replace("\n", "").replace("*", ""))
    if match is None:
        return Vote(outcome=Outcome.UNREADABLE, first=first)
    # The script takes any number that is not that of the rejected response for agreement.
    rejected_position = 1 if (1 - item.better) == first else 2
    choice = 1 - item.better if int(match.group(1)) == rejected_position else item.better
    return Vote(outcome=outcome_of_choice(item, choice), first=first)


def majority(votes: Sequence[Vote]) -> float | None:
    """Decide an item by the official rule: 1 right, 0 wrong, None if it is left out. A tie is wrong."""
    outcomes = [vote.outcome for vote in votes]
    if Outcome.UNREADABLE in outcomes:
        return None
    num_right = outcomes.count(Outcome.RIGHT)
    return 1.0 if 2 * num_right > len(outcomes) else 0.0 if 2 * num_right < len(outcomes) else None


def _one_vote(item: ResponsePair, prediction: PairPrediction, undecided: float) -> float | None:
    """Return the value of the vote in the order of lmms-eval and VLMEvalKit; None if there is no such vote."""
    outcome = vote_in_order(prediction, sum(map(len, item.responses)) % 2)
    if outcome is None:
        return None
    return undecided if outcome in (Outcome.TIE, Outcome.UNREADABLE) else outcome.credit


def _rows_by_k(items: Sequence[ResponsePair], predictions: Sequence[PairPrediction]) -> list[MetricRow]:
    """Return the official scores of the first k judgements per item, of a file with several judgements per item.

    The script shuffles the lines of the file before it takes the first k of each item. Its shuffle is repeated here.
    """
    if all(len(prediction.votes) < 2 for prediction in predictions):
        return []
    calls = [
        (line, index, vote)
        for index, prediction in enumerate(predictions)
        for line, vote in zip(prediction.lines, prediction.votes, strict=False)
    ]
    if not calls:
        return []
    calls.sort(key=lambda call: call[0])
    generator, rows = random.Random(_OFFICIAL_SEED), []
    for k in _NUM_JUDGEMENTS:
        order = [(index, vote) for _, index, vote in calls]
        for i in range(len(order)):
            j = generator.randint(0, len(order) - 1)
            order[i], order[j] = order[j], order[i]
        first_k: dict[int, list[Vote]] = {}
        for index, vote in order:
            if len(first_k.setdefault(index, [])) < k:
                first_k[index].append(vote)
        decisions = {index: majority(votes) for index, votes in first_k.items()}
        groups = [[d for index, d in decisions.items() if items[index].group == group] for group in GROUPS]
        rows.append(MetricRow(name=f"overall, k = {k}", rules={OFFICIAL: _mean(list(decisions.values()))}))
        rows.append(MetricRow(name=f"macro, k = {k}", rules={OFFICIAL: _mean([_mean(g) for g in groups if g])}))
    return rows


def _mean(decisions: Sequence[float | None]) -> float | None:
    decided = [value for value in decisions if value is not None]
    return sum(decided) / len(decided) if decided else None


def _macro(ours: Array, group_of: npt.NDArray[np.str_]) -> Callable[[Array], Array]:
    present = [group_of == group for group in GROUPS if (group_of == group).any()]

    def statistic(weights: Array) -> Array:
        means = np.array([divide(weights @ (ours * own), weights @ own) for own in present])
        return np.asarray(means.mean(axis=0), dtype=np.float64)

    return statistic
