"""The loop over rounds, with fake stages."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import manifest

from vlgenrm_ray.data.store import Manifest, StageFolder
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.reward import rounds
from vlgenrm_ray.reward.rounds import RoundResult, RoundsConfig, RoundStages, StopRule
from vlgenrm_ray.reward.training import TrainingResult

BASE = Path("/base")


class FakeStages:
    """Stages that record their calls and report given accuracies."""

    def __init__(
        self, accuracies: Sequence[float], num_selected: int = 4, benchmark: Sequence[float] | None = None
    ) -> None:
        self.accuracies = dict(enumerate(accuracies))
        self.benchmark = benchmark
        self.num_selected = num_selected
        self.calls: list[tuple[Any, ...]] = []

    def stages(self) -> RoundStages:
        return RoundStages(
            critiques=self.critiques,
            selection=self.selection,
            training=self.training,
            evaluation=self.evaluation,
            benchmarks=self.benchmarks,
        )

    def stages_without_critiques(self) -> RoundStages:
        return replace(self.stages(), critiques=None)

    def benchmarks(self, model: Path, folder: Path) -> dict[str, float]:
        if self.benchmark is None:
            return {}
        assert folder.name == "benchmarks"
        return {"pope": self.benchmark[int(folder.parent.name.removeprefix("round-"))]}

    def critiques(self, model: Path, number: int, target: StageFolder) -> Manifest:
        self.calls.append(("critiques", model, number))
        return manifest("critiques")

    def selection(self, number: int, source: StageFolder, target: StageFolder) -> Manifest:
        return manifest("selection", self.num_selected, kept_share=self.num_selected / 4)

    def training(self, model: Path, number: int, examples: StageFolder, target: Path) -> TrainingResult:
        self.calls.append(("training", model, number))
        return TrainingResult(model=target / "model", manifest=replace(manifest("training"), seconds=2.0))

    def evaluation(self, model: Path, target: StageFolder) -> Manifest:
        number = int(target.path.parent.name.removeprefix("round-"))
        return manifest("evaluation", pairwise_accuracy=self.accuracies[number])


def run(stages: FakeStages, tmp_path: Path, **config: Any) -> list[RoundResult]:
    return list(rounds.run(RoundsConfig(**config), tmp_path, base=BASE, stages=stages.stages()))


def test_round_0_is_the_base(tmp_path: Path) -> None:
    (base,) = run(FakeStages([0.6]), tmp_path, num_rounds=0)
    assert (base.round, base.model, base.parent, base.kept_share) == (0, BASE, None, None)


def test_each_round_continues_from_the_one_before(tmp_path: Path) -> None:
    stages = FakeStages([0.6, 0.7, 0.8])
    done = run(stages, tmp_path)
    first = tmp_path / "round-1" / "training" / "model"
    assert stages.calls == [
        ("critiques", BASE, 1),
        ("training", BASE, 1),
        ("critiques", first, 2),
        ("training", first, 2),
    ]
    assert [r.accuracy for r in done] == [0.6, 0.7, 0.8]
    assert done[2].parent == first
    assert done[2].seconds["training"] == 2.0


def test_retraining_from_base_uses_the_newest_critiques(tmp_path: Path) -> None:
    stages = FakeStages([0.6, 0.7, 0.8])
    run(stages, tmp_path, start_from="base")
    assert ("critiques", tmp_path / "round-1" / "training" / "model", 2) in stages.calls
    assert ("training", BASE, 2) in stages.calls


def test_rounds_stop_after_patience_without_improvement(tmp_path: Path) -> None:
    done = run(FakeStages([0.6, 0.8, 0.7, 0.75, 0.9]), tmp_path, num_rounds=4, patience=2)
    assert [r.round for r in done] == [0, 1, 2, 3]
    assert rounds.best_round(done).round == 1


def test_of_equal_rounds_the_earliest_is_best(tmp_path: Path) -> None:
    assert rounds.best_round(run(FakeStages([0.6, 0.7, 0.7]), tmp_path)).round == 1


def test_a_round_without_examples_is_an_error_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"kept none of 4 pairs.*wrong_verdict.*selection\.tau"):
        run(FakeStages([0.6, 0.7], num_selected=0), tmp_path)


def test_a_stop_rule_ends_the_rounds_when_its_benchmark_stops_improving(tmp_path: Path) -> None:
    # The held-out accuracy rises all the time; the benchmark falls in round 2, and in round 3 again.
    accuracies, benchmark = [0.5, 0.6, 0.7, 0.8, 0.9], [0.5, 0.6, 0.55, float("nan"), 0.7]
    done = run(
        FakeStages(accuracies, benchmark=benchmark),
        tmp_path,
        num_rounds=4,
        stop=StopRule(metric="pope", patience=2),
    )
    assert [r.round for r in done] == [0, 1, 2, 3]
    assert rounds.best_round(done).round == 3, "the best round is chosen by the held-out accuracy"
    assert [r.benchmarks["pope"] for r in done[:3]] == benchmark[:3]
    patient = run(
        FakeStages(accuracies, benchmark=benchmark), tmp_path, num_rounds=4, stop=StopRule(metric="pope", patience=3)
    )
    assert [r.round for r in patient] == [0, 1, 2, 3, 4]


def test_a_discriminative_judge_is_trained_without_critiques_and_selection(tmp_path: Path) -> None:
    fake = FakeStages([0.5, 0.7])
    stages = fake.stages_without_critiques()
    results = list(rounds.run(RoundsConfig(num_rounds=1), tmp_path, base=BASE, stages=stages))
    assert [call[0] for call in fake.calls] == ["training"]
    assert list(results[1].stages) == ["evaluation"]
    assert (results[1].kept_share, results[1].accuracy) == (None, 0.7)
    assert results[1].seconds.keys() == {"evaluation", "training"}
