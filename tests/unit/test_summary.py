from pathlib import Path
from typing import Any

from factories import manifest
from rich.console import Console

from vlgenrm_ray.report import summary
from vlgenrm_ray.reward.rounds import Round

JUDGED: dict[str, Any] = {
    "pairwise_accuracy": 0.613,
    "ci95": [0.56, 0.66],
    "num_pairs": 400,
    "auroc": 0.65,
    "ece": 0.21,
    "verdict_coverage": 0.99,
    "by_kind": {"count": {"value": 0.6, "ci95": [0.5, 0.7], "num": 80}},
    "baselines": {name: {"value": 0.5, "ci95": [0.45, 0.55], "num": 400} for name in ("shorter", "longer")},
}


def rounds() -> list[Round]:
    base = Round(
        round=0,
        model=Path("/base"),
        parent=None,
        stages={"evaluation": manifest("evaluation", **JUDGED)},
        seconds={"evaluation": 21.4},
    )
    stages = {
        "critiques": manifest("critiques"),
        "selection": manifest("selection", kept_share=0.425),
        "evaluation": manifest("evaluation", **JUDGED),
    }
    seconds = {"critiques": 33.0, "selection": 2.0, "evaluation": 20.0, "training": 70.0}
    first = Round(round=1, model=Path("/m"), parent=Path("/base"), stages=stages, seconds=seconds)
    return [base, first]


def summarised() -> dict[str, Any]:
    gain = {"value": 0.12, "ci95": [0.08, 0.16], "num": 400}
    return summary.summary(7, 123.25, rounds(), {"pool": manifest("pool", rows_out=3)}, {1: gain})


def shown(table: Any) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_summary_has_the_fields_that_scripts_read() -> None:
    found = summarised()
    assert (found["seed"], found["seconds"]) == (7, 123.2)
    base, first = found["rounds"]
    assert {k: base[k] for k in ("round", "pairwise_accuracy", "ci95", "num_pairs", "auroc", "ece", "kept_share")} == {
        "round": 0,
        "pairwise_accuracy": 0.613,
        "ci95": [0.56, 0.66],
        "num_pairs": 400,
        "auroc": 0.65,
        "ece": 0.21,
        "kept_share": None,
    }
    assert (first["kept_share"], first["seconds"]["training"], first["gain"]["value"]) == (0.425, 70.0, 0.12)
    assert found["stages"]["pool"]["dropped"] == {"wrong_verdict": 1}


def test_the_tables_fit_80_columns_and_say_it_all() -> None:
    found = summarised()
    drawn = shown(summary.table(found))
    assert "0.613 (0.560-0.660)" in drawn
    assert "42%" in drawn
    assert "base" in drawn
    for table in (summary.table(found), summary.funnel(found), summary.figures(JUDGED)):
        text = shown(table)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80
    assert "1 wrong_verdict" in shown(summary.funnel(found))
    assert "blind: longer" in shown(summary.figures(JUDGED))
