"""Summary of a run: the values of `summary.json` and the tables on the console, built from the same rounds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data.store import Manifest
from vlgenrm_ray.evaluation.reward_calibration import RewardCalibration
from vlgenrm_ray.experts.calibration import Calibration
from vlgenrm_ray.report.console_table import new_table
from vlgenrm_ray.reward.rounds import RoundResult

if TYPE_CHECKING:
    from rich.table import Table

_ROUND_STAGES = ("critiques", "selection", "training", "evaluation")


def run_summary(
    seed: int,
    seconds: float,
    rounds: Sequence[RoundResult],
    prepared: Mapping[str, Manifest],
    gains: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    """Build the values of `summary.json`.

    Args:
        seed: Seed of the run.
        seconds: Wall-clock time of the run, summed over interrupted attempts.
        rounds: Finished rounds, round 0 first.
        prepared: Manifests of the stages before the first round, in order.
        gains: Round -> its paired gain in held-out accuracy over the base, with its 95 % interval.
    """
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "stages": {name: _stage_summary(manifest) for name, manifest in prepared.items()},
        "rounds": [_round_summary(r) | {"gain": gains.get(r.round)} for r in rounds],
    }


def _stage_summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "rows_in": manifest.rows_in,
        "rows_out": manifest.rows_out,
        "dropped": manifest.dropped,
        "seconds": manifest.seconds,
        "metrics": manifest.metrics,
    }


def _round_summary(result: RoundResult) -> dict[str, Any]:
    evaluation = result.stages["evaluation"].metrics
    return {
        "round": result.round,
        "pairwise_accuracy": evaluation["pairwise_accuracy"],
        "ci95": evaluation["ci95"],
        "num_pairs": evaluation["num_pairs"],
        "auroc": evaluation["auroc"],
        "ece": evaluation["ece"],
        "kept_share": result.kept_share,
        "benchmarks": dict(result.benchmarks),
        "seconds": result.seconds,
        "evaluation": evaluation,
    }


def rounds_table(summary: Mapping[str, Any]) -> "Table":
    """Build a table with one line per round, at most 80 columns wide."""
    table = new_table("held-out pairs")
    table.caption = "kept: share of pairs selected; critic to eval: seconds of each stage"
    columns = ("round", "accuracy (95 %)", "AUROC", "ECE", "kept", "critic", "select", "train", "eval")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary["rounds"]:
        low, high = row["ci95"]
        table.add_row(
            str(row["round"]) if row["round"] else "base",
            f"{row['pairwise_accuracy']:.3f} ({low:.3f}-{high:.3f})",
            f"{row['auroc']:.3f}",
            f"{row['ece']:.3f}",
            "" if row["kept_share"] is None else f"{row['kept_share']:.0%}",
            *(f"{row['seconds'][s]:.0f}" if s in row["seconds"] else "" for s in _ROUND_STAGES),
        )
    return table


def stages_table(summary: Mapping[str, Any]) -> "Table":
    """Build a table of the stages before the first round: rows in and out, drops by reason, seconds."""
    table = new_table("from pool to preferences")
    for name in ("stage", "in", "out", "dropped", "seconds"):
        table.add_column(name, justify="left" if name in ("stage", "dropped") else "right")
    for name, row in summary["stages"].items():
        dropped = ", ".join(f"{n} {reason}" for reason, n in row["dropped"].items())
        table.add_row(name, str(row["rows_in"]), str(row["rows_out"]), dropped, f"{row['seconds']:.0f}")
    return table


_ORDER_ROWS = {
    "both_right": "orders: right in both",
    "both_wrong": "orders: wrong in both",
    "first_position": "orders: first in both",
    "second_position": "orders: second in both",
    "position_bias": "orders: position bias",
    "ties": "verdicts: ties",
}
"""Metric of a pairwise judge's orders -> its name in the table."""


def evaluation_table(metrics: Mapping[str, Any]) -> "Table":
    """Build a table of one evaluation: all pairs, each kind, and the baselines that ignore the image."""
    table = new_table("held-out pairs")
    for name in ("pairs", "accuracy", "95 %", "n"):
        table.add_column(name, justify="left" if name == "pairs" else "right")
    total = {"value": metrics["pairwise_accuracy"], "ci95": metrics["ci95"], "num": metrics["num_pairs"]}
    table.add_row("all", *_cells(total))
    for kind, row in metrics["by_kind"].items():
        table.add_row(f"  {kind}", *_cells(row))
    for name in ("shorter", "longer"):
        table.add_row(f"blind: {name}", *_cells(metrics["baselines"][name]))
    if no_image := metrics["baselines"].get("no_image"):
        row = {"value": no_image["pairwise_accuracy"], "ci95": no_image["ci95"], "num": no_image["num_pairs"]}
        table.add_row("blind: no image", *_cells(row))
    if half := next((row for row in metrics.get("abstention", ()) if row["coverage"] == 0.5), None):
        table.add_row("surest half", *_cells(half["accuracy"]))
    # Without a readable verdict there is no AUROC and no ECE.
    auroc, ece, coverage = (
        "none" if metrics[name] is None else f"{metrics[name]:.3f}" for name in ("auroc", "ece", "verdict_coverage")
    )
    table.caption = (
        f"AUROC {auroc}  ECE {ece}  verdict coverage {coverage}  "
        f"tokens {metrics.get('tokens_per_response', float('nan')):.0f}"
    )
    for name, label in _ORDER_ROWS.items():
        if (value := metrics.get("orders", {}).get(name)) is not None:
            table.add_row(label, f"{value:.3f}", "", "")
    return table


def calibration_table(calibration: RewardCalibration) -> "Table":
    """Build a table of a judge's calibration, measured on pairs that were not fitted."""
    table = new_table("calibration of the rewards")
    for name in ("rewards", "ECE", "Brier"):
        table.add_column(name, justify="left" if name == "rewards" else "right")
    table.add_row("as they are", f"{calibration.ece_before:.3f}", f"{calibration.brier_before:.3f}")
    table.add_row("calibrated", f"{calibration.ece_after:.3f}", f"{calibration.brier_after:.3f}")
    table.caption = (
        f"temperature {calibration.temperature:.3f}  bias {calibration.bias:+.3f}  {calibration.num_pairs} pairs, "
        "each half calibrated by the other"
    )
    return table


def reliability_table(calibration: Calibration) -> "Table":
    """Build a table of a calibration's quality on images that were not fitted: one row per kind and verdict."""
    table = new_table("verdicts on images that were not fitted")
    for name in ("claims", "verdict", "n", "right", "95 %", "recall"):
        table.add_column(name, justify="left" if name in ("claims", "verdict") else "right")
    for kind, verdicts in calibration.reliability.items():
        for verdict in verdicts:
            if kind.startswith("noun/") and verdict.right is None:
                continue
            low, high = verdict.right_ci95 or (None, None)
            interval = "" if low is None else f"{low:.2f} to {high:.2f}"
            right = "" if verdict.right is None else f"{verdict.right:.3f}"
            recall = "" if verdict.recall is None else f"{verdict.recall:.2f}"
            table.add_row(kind, verdict.truth, str(verdict.num), right, interval, recall)
    table.caption = f"{calibration.source['images']} images, {calibration.source['folds']} folds"
    return table


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    low, high = row["ci95"]
    return f"{row['value']:.3f}", f"{low:.3f}-{high:.3f}", str(row["num"])
