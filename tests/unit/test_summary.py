"""Summary values and tables of a run."""

import io
import re
from pathlib import Path
from typing import Any

from factories import manifest
from rich.console import Console

from vlgenrm_ray.report import summary
from vlgenrm_ray.reward.rounds import RoundResult

EVALUATION: dict[str, Any] = {
    "pairwise_accuracy": 0.613,
    "ci95": [0.56, 0.66],
    "num_pairs": 400,
    "auroc": 0.65,
    "ece": 0.21,
    "verdict_coverage": 0.99,
    "by_kind": {"count": {"value": 0.6, "ci95": [0.5, 0.7], "num": 80}},
    "baselines": {name: {"value": 0.5, "ci95": [0.45, 0.55], "num": 400} for name in ("shorter", "longer")},
}


def rounds() -> list[RoundResult]:
    base = RoundResult(
        round=0,
        model=Path("/base"),
        parent=None,
        stages={"evaluation": manifest("evaluation", **EVALUATION)},
        seconds={"evaluation": 21.4},
    )
    stages = {
        "critiques": manifest("critiques"),
        "selection": manifest("selection", kept_share=0.425),
        "evaluation": manifest("evaluation", **EVALUATION),
    }
    seconds = {"critiques": 33.0, "selection": 2.0, "evaluation": 20.0, "training": 70.0}
    first = RoundResult(round=1, model=Path("/m"), parent=Path("/base"), stages=stages, seconds=seconds)
    return [base, first]


def run_summary() -> dict[str, Any]:
    gain = {"value": 0.12, "ci95": [0.08, 0.16], "num": 400}
    return summary.run_summary(7, 123.25, rounds(), {"pool": manifest("pool", rows_out=3)}, {1: gain})


def render(table: Any) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_table_of_a_pairwise_judge_shows_how_much_the_order_decides() -> None:
    orders = {"position_bias": -0.012, "both_right": 0.4, "first_position": 0.25, "ties": None}

    def rendered(values: dict[str, Any]) -> str:
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(summary.evaluation_table(values))
        return console.export_text()

    text = rendered(EVALUATION | {"orders": orders})
    assert re.search(r"orders: position bias +-0\.012", text)
    assert re.search(r"orders: first in both +0\.250", text)
    assert "ties" not in text, "without a readable verdict there is no share"
    assert "orders" not in rendered(EVALUATION)
    unreadable = rendered(EVALUATION | {"auroc": None, "ece": None, "verdict_coverage": 0.0})
    assert "AUROC none  ECE none" in unreadable, "a judge without a readable verdict is printed as well"


def test_the_summary_has_the_documented_fields() -> None:
    values = run_summary()
    assert (values["seed"], values["seconds"]) == (7, 123.2)
    base, first = values["rounds"]
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
    assert values["stages"]["pool"]["dropped"] == {"wrong_verdict": 1}


def test_the_tables_fit_80_columns_without_cuts() -> None:
    values = run_summary()
    text = render(summary.rounds_table(values))
    assert "0.613 (0.560-0.660)" in text
    assert "42%" in text
    assert "base" in text
    for table in (summary.rounds_table(values), summary.stages_table(values), summary.evaluation_table(EVALUATION)):
        text = render(table)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80
    assert "1 wrong_verdict" in render(summary.stages_table(values))
    assert "blind: longer" in render(summary.evaluation_table(EVALUATION))
