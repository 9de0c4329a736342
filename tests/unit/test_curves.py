"""Training curves of policies."""

import json
from pathlib import Path

import pytest

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.report.curves import PANELS, Panel, draw_curves, extract_curve, mean_curve, parse_runs

REWARD = Panel("training reward", "metrics.jsonl", "reward")


def test_a_curve_has_the_steps_with_a_value() -> None:
    lines = [{"step": 1, "reward": 0.5}, {"step": 2}, {"step": 3, "reward": None}, {"step": 4, "reward": 1}]
    assert extract_curve(lines, REWARD) == [(1, 0.5), (4, 1.0)]


def test_a_curve_of_a_difference_needs_both_metrics() -> None:
    lines = [{"step": 0, "reward": 0.5, "value": 0.25}, {"step": 10, "reward": 0.75, "value": None}]
    assert extract_curve(lines, Panel("excess", "evaluations.jsonl", "reward", minus="value")) == [(0, 0.25)]


def test_a_long_curve_is_smoothed_and_keeps_its_level() -> None:
    lines = [{"step": i, "reward": float(i % 2)} for i in range(1, 101)]
    points = extract_curve(lines, REWARD)
    assert len(points) == 100
    assert all(0.3 < value < 0.7 for _, value in points[10:])


def test_the_mean_is_over_steps_that_all_curves_have() -> None:
    assert mean_curve([[(1, 0.0), (2, 1.0)], [(2, 3.0), (3, 9.0)]]) == [(2, 2.0)]


def training(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for panel in PANELS:
        values = {name: 0.1 for p in PANELS for name in (p.key, p.minus) if name}
        lines = [json.dumps({"step": step, **values}) for step in (1, 2, 3)]
        # The last line is incomplete: it is still being written.
        (folder / panel.file).write_text("\n".join([*lines, '{"step": 4, "rew']))
    return folder


def test_two_seeds_are_drawn_in_one_picture(tmp_path: Path) -> None:
    runs = [training(tmp_path / "a"), training(tmp_path / "b")]
    target = tmp_path / "new" / "picture.svg"
    draw_curves({"GRPO": runs, "PPO": runs[:1]}, target)
    text = target.read_text()
    assert text.count("<path") > 8
    assert [path.name for path in target.parent.iterdir()] == ["picture.svg"]


def test_a_run_without_comparisons_of_decoding_is_drawn(tmp_path: Path) -> None:
    run = training(tmp_path / "a")
    (run / "decoding.jsonl").unlink()
    draw_curves({"GRPO": [run, run]}, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").exists()


def test_runs_are_grouped_by_label_and_may_be_run_folders(tmp_path: Path) -> None:
    whole, inner = training(tmp_path / "a" / "policy").parent, training(tmp_path / "b" / "policy")
    assert parse_runs([f"GRPO={whole},{inner}", f"PPO={whole}", "PPO=/c"]) == {
        "GRPO": [whole / "policy", inner],
        "PPO": [whole / "policy", Path("/c")],
    }
    for wrong in ("GRPO", "GRPO=", "=a"):
        with pytest.raises(InputError, match="give LABEL=RUN"):
            parse_runs([wrong])


def test_a_target_of_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.svg"):
        draw_curves({"GRPO": [training(tmp_path / "a")]}, tmp_path / "picture.txt")


def test_a_folder_without_logs_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="policy"):
        draw_curves({"GRPO": [tmp_path]}, tmp_path / "picture.svg")
