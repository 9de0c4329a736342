"""What a run came to: the table on the console and `summary.json` beside it, made from the same rounds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data.store import Manifest
from vlgenrm_ray.reward.rounds import Round

if TYPE_CHECKING:
    from rich.table import Table

_ROUND_STAGES = ("critiques", "selection", "training", "evaluation")


def summary(
    seed: int,
    seconds: float,
    rounds: Sequence[Round],
    prepared: Mapping[str, Manifest],
    gains: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    """The run as plain values. `prepared` are the stages before the first round, in order.

    `gains` is by round: the gain in held-out accuracy over the base, paired, with its 95 % interval.
    """
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "stages": {name: _account(manifest) for name, manifest in prepared.items()},
        "rounds": [_round(r) | {"gain": gains.get(r.round)} for r in rounds],
    }


def _account(manifest: Manifest) -> dict[str, Any]:
    return {
        "rows_in": manifest.rows_in,
        "rows_out": manifest.rows_out,
        "dropped": manifest.dropped,
        "seconds": manifest.seconds,
        "metrics": manifest.metrics,
    }


def _round(done: Round) -> dict[str, Any]:
    judged = done.stages["evaluation"].metrics
    return {
        "round": done.round,
        "pairwise_accuracy": judged["pairwise_accuracy"],
        "ci95": judged["ci95"],
        "num_pairs": judged["num_pairs"],
        "auroc": judged["auroc"],
        "ece": judged["ece"],
        "kept_share": done.kept_share,
        "seconds": done.seconds,
        "evaluation": judged,
    }


def table(summarised: Mapping[str, Any]) -> "Table":
    """One line a round, at most 80 columns wide."""
    drawn = _table("held-out pairs")
    drawn.caption = "kept: share of pairs selected; critic to eval: seconds of each stage"
    columns = ("round", "accuracy (95 %)", "AUROC", "ECE", "kept", "critic", "select", "train", "eval")
    for name in columns:
        drawn.add_column(name, justify="right", no_wrap=True)
    for row in summarised["rounds"]:
        low, high = row["ci95"]
        drawn.add_row(
            str(row["round"]) if row["round"] else "base",
            f"{row['pairwise_accuracy']:.3f} ({low:.3f}-{high:.3f})",
            f"{row['auroc']:.3f}",
            f"{row['ece']:.3f}",
            "" if row["kept_share"] is None else f"{row['kept_share']:.0%}",
            *(f"{row['seconds'][s]:.0f}" if s in row["seconds"] else "" for s in _ROUND_STAGES),
        )
    return drawn


def funnel(summarised: Mapping[str, Any]) -> "Table":
    """The stages before the first round: rows in and out, what was dropped, seconds."""
    drawn = _table("from pool to preferences")
    for name in ("stage", "in", "out", "dropped", "seconds"):
        drawn.add_column(name, justify="left" if name in ("stage", "dropped") else "right")
    for name, row in summarised["stages"].items():
        dropped = ", ".join(f"{n} {reason}" for reason, n in row["dropped"].items())
        drawn.add_row(name, str(row["rows_in"]), str(row["rows_out"]), dropped, f"{row['seconds']:.0f}")
    return drawn


def figures(metrics: Mapping[str, Any]) -> "Table":
    """One evaluation: all pairs, each kind, and the judges that cannot see."""
    drawn = _table("held-out pairs")
    for name in ("pairs", "accuracy", "95 %", "n"):
        drawn.add_column(name, justify="left" if name == "pairs" else "right")
    whole = {"value": metrics["pairwise_accuracy"], "ci95": metrics["ci95"], "num": metrics["num_pairs"]}
    drawn.add_row("all", *_cells(whole))
    for kind, row in metrics["by_kind"].items():
        drawn.add_row(f"  {kind}", *_cells(row))
    for name in ("shorter", "longer"):
        drawn.add_row(f"blind: {name}", *_cells(metrics["baselines"][name]))
    if seen := metrics["baselines"].get("no_image"):
        row = {"value": seen["pairwise_accuracy"], "ci95": seen["ci95"], "num": seen["num_pairs"]}
        drawn.add_row("blind: no image", *_cells(row))
    drawn.caption = (
        f"AUROC {metrics['auroc']:.3f}  ECE {metrics['ece']:.3f}  verdict coverage {metrics['verdict_coverage']:.3f}"
    )
    return drawn


def _table(title: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(
        title=title,
        title_style="bold",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    low, high = row["ci95"]
    return f"{row['value']:.3f}", f"{low:.3f}-{high:.3f}", str(row["num"])
