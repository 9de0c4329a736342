"""POPE: object hallucination as yes/no questions (arXiv 2305.10355).

`data` is one of the official files (`coco_pope_random.json`, ...), JSON Lines with `question_id`, `image`, `text` and
`label`; `answers` has `question_id` and `text` (or `answer`) for each question. Rules as in the official
`evaluate.py` of RUCAIBox/POPE: only the first sentence of an answer counts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.benchmarks.answers import read_answers, read_rows, value_of
from vlgenrm_ray.evaluation.metrics import estimate_as_json, wilson_interval

_NEGATIONS = {"No", "not", "no"}


def read_verdict(answer: str) -> str:
    """Read "yes" or "no" from an answer: "no" if its first sentence has the word No, not or no, else "yes"."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if _NEGATIONS & set(words) else "yes"


class Pope:
    """Accuracy, precision, recall and F1 (yes is positive), and the share of yes answers."""

    def score(self, data: Path, answers: Path) -> Mapping[str, Any]:
        """Score answers; see `Benchmark.score`."""
        from sklearn.metrics import precision_recall_fscore_support

        questions = read_rows(data)
        labels = [str(value_of(row, ("label", "answer"), data)).strip().lower() for row in questions]
        if unknown := sorted(set(labels) - {"yes", "no"}):
            raise InputError(f"{data}: label {unknown[0]!r}; POPE's labels are yes and no")
        ids = [str(value_of(row, ("question_id",), data)) for row in questions]
        texts = read_answers(answers, ids, id_names=("question_id",), text_names=("text", "answer"))
        verdicts = [read_verdict(text) for text in texts]
        correct = np.array([v == label for v, label in zip(verdicts, labels, strict=True)], dtype=np.float64)
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, verdicts, average="binary", pos_label="yes", zero_division=0.0
        )
        return {
            "accuracy": estimate_as_json(wilson_interval(correct)),
            "precision": round(float(precision), 6),
            "recall": round(float(recall), 6),
            "f1": round(float(f1), 6),
            "yes_ratio": round(verdicts.count("yes") / len(verdicts), 6),
        }
