"""The model card shows what was measured."""

from vlgenrm_ray.shapes.building.model_card import markdown


def estimate(value: float) -> dict[str, object]:
    return {"value": value, "ci95": [value - 0.05, value + 0.05], "num": 200}


def test_page_shows_figures_with_n_and_interval() -> None:
    judge = {
        "pairwise_accuracy": 0.61,
        "ci95": [0.58, 0.64],
        "num_pairs": 1000,
        "by_kind": {"count": estimate(0.55)},
        "verdict_coverage": 0.99,
    }
    vlm = {
        "parameters": 1_600_448,
        "seed": 0,
        "steps": 100,
        "horizon": 300,
        "wrong_answer_share": 0.3,
        "batch": 32,
        "scenes": 500,
        "judge_examples": 400,
        "answers": estimate(0.5) | {"by_kind": {"describe": estimate(0.4)}},
        "judge": judge,
        "judge_direct": judge,
    }
    text = markdown({"vlm": vlm, "detector": {"map50": 0.97}})
    assert "1,600,448 parameters" in text
    assert "seen 400 reference critiques" in text
    assert "30% of its training answers have one wrong fact" in text
    assert "| policy | true answers at temperature 1 | 0.500 | 0.450 to 0.550 | 200 |" in text
    assert text.count("| 0.610 | 0.580 to 0.640 | 1000 |") == 2
    assert "| map50 | 0.970 |" in text
    assert "## matcher" not in text
