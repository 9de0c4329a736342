from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from factories import manifest

from vlgenrm_ray.data.store import Manifest, StageFolder
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.reward import rounds
from vlgenrm_ray.reward.rounds import Round, RoundsConfig, Steps, Trained

BASE = Path("/base")


class Script:
    """Steps that note how they were called and give the accuracies they were told."""

    def __init__(self, accuracies: Sequence[float], kept: int = 4) -> None:
        self.accuracies = dict(enumerate(accuracies))
        self.kept = kept
        self.calls: list[tuple[Any, ...]] = []

    def steps(self) -> Steps:
        return Steps(
            critiques=self.critiques, selection=self.selection, training=self.training, evaluation=self.evaluation
        )

    def critiques(self, model: Path, number: int, target: StageFolder) -> Manifest:
        self.calls.append(("critiques", model, number))
        return manifest("critiques")

    def selection(self, number: int, source: StageFolder, target: StageFolder) -> Manifest:
        return manifest("selection", self.kept, kept_share=self.kept / 4)

    def training(self, model: Path, number: int, examples: StageFolder, target: Path) -> Trained:
        self.calls.append(("training", model, number))
        return Trained(model=target / "model", seconds=2.0, report={})

    def evaluation(self, model: Path, target: StageFolder) -> Manifest:
        number = int(target.path.parent.name.removeprefix("round-"))
        return manifest("evaluation", pairwise_accuracy=self.accuracies[number])


def run(script: Script, tmp_path: Path, **config: Any) -> list[Round]:
    return list(rounds.run(RoundsConfig(**config), tmp_path, base=BASE, steps=script.steps()))


def test_round_0_is_the_base(tmp_path: Path) -> None:
    (base,) = run(Script([0.6]), tmp_path, num_rounds=0)
    assert (base.round, base.model, base.parent, base.kept_share) == (0, BASE, None, None)


def test_each_round_continues_from_the_one_before(tmp_path: Path) -> None:
    script = Script([0.6, 0.7, 0.8])
    done = run(script, tmp_path)
    first = tmp_path / "round-1" / "training" / "model"
    assert script.calls == [
        ("critiques", BASE, 1),
        ("training", BASE, 1),
        ("critiques", first, 2),
        ("training", first, 2),
    ]
    assert [r.accuracy for r in done] == [0.6, 0.7, 0.8]
    assert done[2].parent == first
    assert done[2].seconds["training"] == 2.0


def test_retraining_from_base_still_takes_the_newest_critiques(tmp_path: Path) -> None:
    script = Script([0.6, 0.7, 0.8])
    run(script, tmp_path, start_from="base")
    assert ("critiques", tmp_path / "round-1" / "training" / "model", 2) in script.calls
    assert ("training", BASE, 2) in script.calls


def test_patience_ends_the_loop_and_the_best_round_is_kept(tmp_path: Path) -> None:
    done = run(Script([0.6, 0.8, 0.7, 0.75, 0.9]), tmp_path, num_rounds=4, patience=2)
    assert [r.round for r in done] == [0, 1, 2, 3]
    assert rounds.best(done).round == 1


def test_of_equal_rounds_the_earliest_is_best(tmp_path: Path) -> None:
    assert rounds.best(run(Script([0.6, 0.7, 0.7]), tmp_path)).round == 1


def test_a_round_without_examples_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"kept none of 4 pairs.*wrong_verdict.*selection\.tau"):
        run(Script([0.6, 0.7], kept=0), tmp_path)
