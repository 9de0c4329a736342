"""A finished reward-model run in miniature, written by hand, for tests of reports."""

from pathlib import Path
from typing import Any

import factories
import numpy as np
from PIL import Image

from vlgenrm_ray.data import images
from vlgenrm_ray.data.files import write_json
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.shard_files import add_sums
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.evaluation.benchmarks.best_of_n import BestOfN, CandidateSet
from vlgenrm_ray.evaluation.pairs import pair_metrics
from vlgenrm_ray.records import (
    CheckedResponse,
    Critique,
    Dropped,
    Example,
    Finding,
    ImageRef,
    Judgement,
    Origin,
    PairResult,
    Preference,
    Question,
    Side,
    Truth,
)
from vlgenrm_ray.reward.rejection_sampling import MarginScale
from vlgenrm_ray.reward.selection import NUM_BINS, count_selection, selection_metrics

HOSTILE = "</pre><script>document.title = 'broken'</script>"
"""Text that a model might write."""
NUM_PAIRS = 12


def write_run(
    folder: Path, *, rewards: tuple[float, float] = (0.8, 0.3), is_finished: bool = True, num_unknown: int = 0
) -> Path:
    """Write a run of one round.

    Args:
        folder: The run folder.
        rewards: Rewards of both sides in round 1, exchanged for every fourth pair.
        is_finished: Write the last manifest and the summary.
        num_unknown: Pairs about which the experts know nothing.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 7\nrounds: {num_rounds: 1, patience: 1}\n")
    image = _image(folder)
    questions = [
        factories.question(f"q{i}", image=image, kind="count" if i % 2 else "existence") for i in range(NUM_PAIRS)
    ]
    _stage(folder / "pool", Question, [_unit(q.id, q) for q in questions])
    truths = [Truth.UNKNOWN] * num_unknown + [Truth.SUPPORTED] * (NUM_PAIRS - num_unknown)
    checked = [_checked(q, truth) for q, truth in zip(questions, truths, strict=True)]
    _stage(folder / "experts", CheckedResponse, [_unit(c.response.question.id, c) for c in checked])
    preferences = [
        factories.preference(f"{q.id}/p0", question=q, kind=q.kind, chosen_id=f"{q.id}/r0", rejected_id=f"{q.id}/r0/e")
        for q in questions
    ]
    _stage(folder / "preferences", Preference, [_unit(p.id, p) for p in preferences])
    heldout = [factories.preference(f"h{q.id}", question=q, kind=q.kind, origin=Origin.GOLD) for q in questions]
    _stage(folder / "heldout", Preference, [_unit(p.id, p) for p in heldout])
    _evaluation(folder / "round-0" / "evaluation", heldout, (0.5, 0.5))
    critiques = StageFolder(folder / "round-1" / "critiques")
    selection = StageFolder(folder / "round-1" / "selection")
    _stage(critiques.path, Critique, [_unit(p.id, *_critiques(p)) for p in preferences])
    _stage(selection.path, Example, [_selected(i, p) for i, p in enumerate(preferences)], finish=False)
    sums = [
        count_selection(_selected(i, p), _critiques(p), p.kind, scale=MarginScale.PROBABILITY, min_mass=0.0)
        for i, p in enumerate(preferences)
    ]
    selection.finish(seconds=1.0, metrics=selection_metrics(add_sums(sums)))
    _evaluation(folder / "round-1" / "evaluation", heldout, rewards, finish=is_finished)
    if is_finished:
        write_json(folder / "summary.json", {"seed": 7, "seconds": 12.5})
    return folder


def write_large_run(folder: Path, num_pairs: int, *, rows_per_shard: int = 2_000, num_images: int = 128) -> Path:
    """Write a run of one round with `num_pairs` training and held-out pairs each, and photographs of pure noise.

    Every pair has two critiques, of which selection drops one, and texts of the length that real captions have.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 7\nrounds: {num_rounds: 1, patience: 1}\n")
    rng = np.random.default_rng(0)
    refs = []
    for number in range(num_images):
        path = folder / "images" / f"{number}.jpg"
        Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)).save(path, quality=90)
        refs.append(images.probe(str(path), ImageLimits()))
    caption = "A man in a red coat stands beside two bicycles on a wet street. " * 12
    names = ("pool", "preferences", "heldout", "round-1/critiques", "round-1/selection", "round-1/evaluation")
    stages = {name: StageFolder(folder / name) for name in names}
    for stage in stages.values():
        stage.begin("settings", {})
    for start in range(0, num_pairs, rows_per_shard):
        numbers = range(start, min(num_pairs, start + rows_per_shard))
        questions = [
            factories.question(f"q{i}", image=refs[i % num_images], kind=f"kind {i % 7}", text=f"What is it, {i}?")
            for i in numbers
        ]
        pairs = [
            factories.preference(f"{q.id}/p0", question=q, kind=q.kind, chosen=caption, rejected=caption[::-1])
            for q in questions
        ]
        critiques = [
            [
                factories.critique(f"{pair.id}/{side.value}/c0", preference_id=pair.id, side=side, text=caption)
                for side in Side
            ]
            for pair in pairs
        ]
        results = [_noisy_result(pair, rng) for pair in pairs]
        write_units(stages["pool"], Question, [_unit(q.id, q) for q in questions])
        write_units(stages["preferences"], Preference, [_unit(p.id, p) for p in pairs])
        write_units(stages["heldout"], Preference, [_unit(p.id, p) for p in pairs])
        write_units(
            stages["round-1/critiques"], Critique, [_unit(p.id, *own) for p, own in zip(pairs, critiques, strict=True)]
        )
        write_units(
            stages["round-1/selection"],
            Example,
            [
                Unit(
                    id=pair.id,
                    records=(factories.example(f"{own[0].id}/example", image=pair.question.image),),
                    dropped=(Dropped(stage="selection", id=own[1].id, reason="wrong_verdict", detail="p(Yes) 0.40"),),
                )
                for pair, own in zip(pairs, critiques, strict=True)
            ],
        )
        write_units(stages["round-1/evaluation"], PairResult, [_unit(r.id, r) for r in results])
    for name, stage in stages.items():
        stage.finish(seconds=1.0, metrics=_LARGE_METRICS.get(name))
    write_json(folder / "summary.json", {"seed": 7, "seconds": 12.5})
    return folder


_LARGE_METRICS = {
    "round-1/selection": {
        "margin_histogram": [1] * NUM_BINS,
        "num_pairs": 1,
        "num_pairs_kept": 1,
        "kept_share": 1.0,
        "examples": {"critique": 1},
    },
    "round-1/evaluation": {
        "pairwise_accuracy": 0.5,
        "ci95": [0.45, 0.55],
        "auroc": 0.5,
        "ece": 0.1,
        "brier": 0.25,
        "verdict_coverage": 1.0,
        "num_pairs": 1,
        "by_kind": {},
    },
}
"""Metrics of a large run, whose values do not matter."""


def _noisy_result(pair: Preference, rng: np.random.Generator) -> PairResult:
    chosen, rejected = (_judgement(pair.id, float(value)) for value in rng.random(2))
    return PairResult(id=pair.id, preference_id=pair.id, kind=pair.kind, chosen=chosen, rejected=rejected)


def write_best_of_n(path: Path, *, scale: float = 1.0, model: str = "/models/base") -> None:
    """Write the result of a best-of-N of 8 questions with 16 candidates each, whose judge is right by `scale`."""
    benchmark = BestOfN()
    rng = np.random.default_rng(0)
    items = [
        CandidateSet(
            id=f"q{i}",
            question="What is it?",
            images=(f"/{i}.png",),
            candidates=tuple("word " * (k + 1) for k in range(16)),
            scores=tuple(rng.integers(0, 2, 16).astype(float).tolist()),
            cluster=f"/{i}.png",
        )
        for i in range(8)
    ]
    rewards = [tuple((scale * np.array(item.scores) + rng.random(16)).tolist()) for item in items]
    details = {"benchmark": "best_of_n", "model": model, "data": "candidates.jsonl"}
    write_json(path, details | benchmark.score(items, rewards).as_json())


def _image(folder: Path) -> ImageRef:
    path = folder / "image.png"
    Image.new("RGB", (240, 240), (200, 30, 30)).save(path)
    return images.probe(str(path), ImageLimits())


def _unit(id: str, *records: Any) -> Unit[Any]:
    return Unit(id=id, records=records, num_tokens=len(records))


def _stage(path: Path, cls: type, units: list[Unit[Any]], *, metrics: Any = None, finish: bool = True) -> None:
    folder = StageFolder(path)
    folder.begin("settings", {})
    write_units(folder, cls, units)
    if finish:
        folder.finish(seconds=1.5, metrics=metrics)


def _checked(question: Question, truth: Truth) -> CheckedResponse:
    text = factories.preference().chosen
    claim = factories.claim(start=5, end=len(text) - 1)
    finding = Finding(claim=claim, truth=truth, expert="detector", score=0.9, boxes=(factories.box(),))
    response = factories.response(f"{question.id}/r0", question=question, text=text)
    detection = factories.detection("square", x0=100.0, x1=200.0)
    return CheckedResponse(id=response.id, response=response, findings=(finding,), detections=(detection,))


def _critiques(preference: Preference) -> tuple[Critique, ...]:
    return tuple(
        factories.critique(
            f"{preference.id}/{side.value}/c{k}",
            preference_id=preference.id,
            side=side,
            text=f"{HOSTILE} critique {k} of {side.value}\nVerdict: Yes",
            p_yes=0.9 - 0.2 * k if side is Side.CHOSEN else 0.4 + 0.3 * k,
        )
        for side in Side
        for k in range(2)
    )


def _selected(index: int, preference: Preference) -> Unit[Example]:
    critiques = _critiques(preference)
    if index % 3 == 0:
        drops = [Dropped(stage="selection", id=c.id, reason="small_margin", detail="no margin") for c in critiques]
        pair = Dropped(stage="selection", id=preference.id, reason="small_margin", detail="none of 4 selected")
        return Unit(id=preference.id, dropped=(pair, *drops))
    drops = [Dropped(stage="selection", id=c.id, reason="wrong_verdict", detail="") for c in critiques[1::2]]
    examples = tuple(factories.example(f"{c.id}/example") for c in critiques[::2])
    return Unit(id=preference.id, records=examples, dropped=tuple(drops))


def _evaluation(path: Path, pairs: list[Preference], rewards: tuple[float, float], finish: bool = True) -> None:
    units = []
    for index, pair in enumerate(pairs):
        chosen, rejected = rewards if index % 4 else rewards[::-1]
        result = PairResult(
            id=pair.id,
            preference_id=pair.id,
            kind=pair.kind,
            chosen=_judgement(pair.id, chosen),
            rejected=_judgement(pair.id, None if index == 5 else rejected),
        )
        units.append(_unit(pair.id, result))
    results = [record for unit in units for record in unit.records]
    _stage(path, PairResult, units, metrics=pair_metrics(results, pairs), finish=finish)


def _judgement(id: str, reward: float | None) -> Judgement:
    status = "ok" if reward is not None else "unreadable_verdict"
    critique = factories.judge_critique(f"{HOSTILE}\nVerdict: Yes", p_yes=reward)
    return Judgement(id=id, reward=reward, status=status, critiques=(critique,))
