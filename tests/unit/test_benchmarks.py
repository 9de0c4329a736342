"""Benchmarks: official rules on small files, real stored answers, and a benchmark of another package."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import factories
import pytest

from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.errors import ConfigError, InputError
from vlgenrm_ray.evaluation import benchmarks
from vlgenrm_ray.evaluation.benchmarks.pope import read_verdict
from vlgenrm_ray.records import Judgement, PairResult, Preference


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Yes, there is a dog.", "yes"),
        ("No, there is no dog.", "no"),
        ("There is not a dog", "no"),
        ("A dog is there. No cat.", "yes"),
        ("There is a dog, no, a cat.", "no"),
        ("NO dog", "yes"),
        ("Nothing", "yes"),
        ("", "yes"),
    ],
)
def test_pope_reads_the_first_sentence(answer: str, verdict: str) -> None:
    assert read_verdict(answer) == verdict


def pope_files(tmp_path: Path, answers: list[str]) -> tuple[Path, Path]:
    labels = ["yes", "yes", "no", "no"]
    questions = [
        {"question_id": i, "image": "x.jpg", "text": "Is there a dog?", "label": label}
        for i, label in enumerate(labels)
    ]
    rows = [{"question_id": i, "text": text} for i, text in enumerate(answers)]
    return write_lines(tmp_path / "data.json", questions), write_lines(tmp_path / "answers.jsonl", rows[::-1])


def test_pope_is_scored_by_hand_worked_values(tmp_path: Path) -> None:
    data, answers = pope_files(tmp_path, ["Yes.", "No.", "Yes.", "No."])
    metrics = benchmarks.score("pope", data, answers)
    assert metrics["accuracy"]["value"] == 0.5
    assert (metrics["precision"], metrics["recall"], metrics["f1"], metrics["yes_ratio"]) == (0.5, 0.5, 0.5, 0.5)
    data.write_text(json.dumps([json.loads(line) for line in data.read_text().splitlines()]))
    assert benchmarks.score("pope", data, answers) == metrics, "one JSON array is read as well"


def test_missing_and_repeated_answers_are_refused(tmp_path: Path) -> None:
    data, answers = pope_files(tmp_path, ["Yes.", "No.", "Yes."])
    with pytest.raises(InputError, match=r"1 of 4 questions have no answer, the first is 3"):
        benchmarks.score("pope", data, answers)
    write_lines(answers, [{"question_id": 1, "text": "Yes."}] * 2)
    with pytest.raises(InputError, match="question 1 is answered twice"):
        benchmarks.score("pope", data, answers)
    with pytest.raises(InputError, match="cannot be read"):
        benchmarks.score("pope", tmp_path / "gone.json", answers)


def test_pope_gives_the_published_values_on_stored_answers() -> None:
    folder = os.environ.get("VLGENRM_REAL_DATA")
    if not folder:
        pytest.skip("VLGENRM_REAL_DATA is unset")
    rows = Path(folder) / "rows"
    metrics = benchmarks.score("pope", rows / "coco_pope_random.json", rows / "pope_random_answers.jsonl")
    values = (metrics["accuracy"]["value"], metrics["f1"], metrics["yes_ratio"])
    assert values == pytest.approx((0.8957, 0.8969, 0.5123), abs=5e-5)


def test_heldout_pairs_are_scored_from_the_folders_of_a_run(tmp_path: Path) -> None:
    pairs = [factories.preference(f"q/p{i}", kind="count") for i in range(4)]
    heldout, evaluation = StageFolder(tmp_path / "heldout"), StageFolder(tmp_path / "round-1" / "evaluation")
    for folder in (heldout, evaluation):
        folder.begin("settings", {})
    write_units(heldout, Preference, [Unit(id=p.id, records=(p,)) for p in pairs])

    def result(pair: Preference, chosen: float, rejected: float) -> PairResult:
        sides = {name: Judgement(id=name, reward=r, status="ok") for name, r in (("c", chosen), ("r", rejected))}
        return PairResult(id=pair.id, preference_id=pair.id, kind="count", chosen=sides["c"], rejected=sides["r"])

    results = [result(pair, 0.9, 0.1 if i else 0.95) for i, pair in enumerate(pairs)]
    write_units(evaluation, PairResult, [Unit(id=r.id, records=(r,)) for r in results])
    metrics = benchmarks.score("heldout_pairs", heldout.path, evaluation.path)
    assert (metrics["pairwise_accuracy"], metrics["num_pairs"]) == (0.75, 4)
    assert metrics["baselines"]["longer"]["num"] == 4
    with pytest.raises(InputError, match="no shards"):
        benchmarks.score("heldout_pairs", tmp_path, evaluation.path)


PACKAGE = '''
from vlgenrm_ray.evaluation.benchmarks.answers import read_rows


class Parity:
    """The share of answers of an even length."""

    def score(self, data, answers):
        lengths = [len(row["text"]) for row in read_rows(answers)]
        return {"even_share": sum(n % 2 == 0 for n in lengths) / len(lengths)}
'''


def test_a_benchmark_of_another_package_is_named_by_its_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_benchmarks.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    data, answers = pope_files(tmp_path, ["ab", "abc"])
    assert benchmarks.score("my_benchmarks:Parity", data, answers) == {"even_share": 0.5}
    sys.modules.pop("my_benchmarks")


def test_an_unknown_benchmark_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="benchmark 'popee' is unknown; choose from heldout_pairs, pope"):
        benchmarks.score("popee", tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="cannot be imported"):
        benchmarks.score("no_such_package:Benchmark", tmp_path, tmp_path)
