"""Held-out pairs of a run: pairwise accuracy, calibration and baselines of a judge.

`data` is the run's `heldout` folder, `answers` an `evaluation` folder of the run (`round-1/evaluation`, ...).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.pairs import pair_metrics
from vlgenrm_ray.records import PairResult, Preference


class HeldoutPairs:
    """The metrics that an evaluation stage writes into its manifest."""

    def score(self, data: Path, answers: Path) -> Mapping[str, Any]:
        """Score judgements; see `Benchmark.score`."""
        preferences, results = StageFolder(data), StageFolder(answers)
        for folder, stage in ((preferences, "heldout"), (results, "evaluation")):
            if not folder.shards():
                raise InputError(f"{folder.path}: no shards; give the folder of a finished {stage} stage")
        return pair_metrics(list(results.records(PairResult)), preferences.records(Preference))
