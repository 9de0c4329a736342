"""The model card shows what was measured."""

from vlgenrm_ray.shapes.building.model_card import markdown
from vlgenrm_ray.shapes.building.packs import pack_plan


def estimate(value: float) -> dict[str, object]:
    return {"value": value, "ci95": [value - 0.05, value + 0.05], "num": 200}


def grouped(value: float) -> dict[str, object]:
    groups = {"seen": estimate(value), "compositional": estimate(value - 0.1)}
    return estimate(value) | {"by_kind": {"describe": estimate(0.4)}, "by_composition": groups}


def test_page_shows_figures_with_n_and_interval() -> None:
    judge = {
        "pairwise_accuracy": 0.61,
        "ci95": [0.58, 0.64],
        "num_pairs": 1000,
        "by_kind": {"count": estimate(0.55)},
        "by_composition": {"seen": estimate(0.61)},
        "verdict_coverage": 0.99,
    }
    vlm = {
        "parameters": 1_600_448,
        "seed": 0,
        "steps": 100,
        "horizon": 300,
        "batch": 32,
        "scenes": 500,
        "judge_examples": 400,
        "answers": {
            **{"num_samples": 16, "greedy": grouped(0.5), "temperature_1": grouped(0.45)},
            **{"majority": grouped(0.52), "any": grouped(0.9), "prior_share": grouped(0.7)},
        },
        "judge": judge,
        "judge_direct": judge,
        "blind_judge": {"train": estimate(0.64), "test": estimate(0.42)},
    }
    experts = {
        "count": {
            "claims": 80,
            "unknown_share": 0.25,
            "supported": {"precision": estimate(0.97), "recall": estimate(0.7)},
            "contradicted": {"precision": {"value": None, "ci95": [None, None], "num": 0}, "recall": estimate(0.6)},
        }
    }
    text = markdown(pack_plan("shapes-hard"), {"vlm": vlm, "detector": {"map50": 0.97}, "experts": experts})
    assert "python jobs/build_shapes.py --world hard" in text
    assert "chosen on the validation split" in text
    assert "1,600,448 parameters" in text
    assert "seen 400 reference critiques" in text
    assert "| text: SHOP | 0.65 |" in text
    assert "| policy | true answers, greedy | 0.500 | 0.450 to 0.550 | 200 |" in text
    assert "|  | compositional | 0.400 | 0.350 to 0.450 | 200 |" in text
    assert "| policy | any of 16 | 0.900 | 0.850 to 0.950 | 200 |" in text
    assert text.count("| 0.610 | 0.580 to 0.640 | 1000 |") == 2
    assert "| blind judge | fitted to the texts of the train split, on `test` | 0.420 | 0.370 to 0.470 | 200 |" in text
    assert "| map50 | 0.970 |" in text
    assert "| count | 80 | 0.250 | 0.970 | 0.700 |  | 0.600 |" in text
    assert "## matcher" not in text
    basic = markdown(pack_plan("shapes"), {"vlm": vlm})
    assert "30% of its training answers are wrong in a fact" in basic
    assert "prior's answer is false" not in basic
