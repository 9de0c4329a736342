"""Tables of an ablation: two on the console, each at most 80 columns wide, and one as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.ablation.plan import Cell, CellPlan, count_stages
from vlgenrm_ray.report.console_table import new_table

if TYPE_CHECKING:
    from rich.table import Table


def accuracy_table(result: Mapping[str, Any]) -> "Table":
    """Build a table of accuracies with their 95 % intervals, and of the differences to the reference and the base."""
    table = new_table(f"accuracy on {result['num_test_pairs']} test pairs (differences in points)")
    for name in ("cell", "R", "S", "accuracy (95 %)", "to reference", "to base"):
        _add_column(table, name)
    for row in result["rows"]:
        table.add_row(
            row["cell"],
            str(row["round"]),
            str(len(row["seeds"])),
            _share_cell(row["accuracy"]),
            _points_cell(row["vs_reference"]),
            _points_cell(row["vs_base"]),
        )
    for failure in result["failures"]:
        table.add_row(failure["cell"], "", "", f"seed {failure['seed']} failed", "", "")
    covers = {row["covers"] for row in result["rows"]}
    table.caption = (
        f"R: round, S: seeds; {result['num_examples']} examples and {result['num_steps']} steps each; "
        f"{result['num_finished']} of {result['num_cells']} cells finished\n"
        f"intervals are clustered by image and cover {' or '.join(sorted(covers)) or 'nothing yet'}"
    )
    return table


def cost_table(result: Mapping[str, Any]) -> "Table":
    """Build a table of calibration, blindness, labels and cost."""
    table = new_table("calibration, blindness, labels and cost")
    for name in ("cell", "R", "AUROC", "ECE", "blind", "prior", "labels", "n", "gen", "train", "s", "tok"):
        _add_column(table, name)
    for row in result["rows"]:
        blind = row["blind_accuracy"]
        is_trained = row["round"] > 0
        examples = sorted(set(row["num_examples"]))
        table.add_row(
            row["cell"],
            str(row["round"]),
            _number(row["auroc"]),
            _number(row["ece"]),
            _number(blind and blind["value"], 2),
            _number(row["prior_agreement"], 2),
            _number(row["wrong_label_share"], 2),
            ("-".join(map(str, (examples[0], examples[-1]) if len(examples) > 1 else examples)) if is_trained else ""),
            f"{row['num_generated'] / 1000:.0f}k" if is_trained else "",
            f"{row['num_trained'] / 1000:.0f}k" if is_trained else "",
            f"{row['seconds']:.0f}" if is_trained else "",
            _number(row["tokens_per_response"], 0),
        )
    table.caption = (
        "blind: accuracy without the image; prior: pairs ranked alike without it;\n"
        "labels: share of wrong ones; n: examples; gen, train: tokens generated and\n"
        "trained on; s: seconds of data and training; tok: tokens per judged response"
    )
    return table


def plan_table(plans: Sequence[CellPlan]) -> "Table":
    """Build a table of the cells with their variants, and of the stages that they share."""
    run, unshared = count_stages(plans)
    table = new_table("cells")
    table.add_column("cell", overflow="fold")
    table.add_column("differs from the reference in", overflow="fold")
    for plan in {plan.cell.name: plan for plan in plans}.values():
        table.add_row(plan.cell.name, ", ".join(_differences(plan.cell, plans[0].cell)))
    seeds = len({plan.seed for plan in plans})
    table.caption = f"{len(plans)} cells over {seeds} seeds: {run} stages, {unshared} if none were shared"
    return table


def _differences(cell: Cell, reference: Cell) -> list[str]:
    """List the settings of a cell that the reference has not."""
    names = ("labels", "trainer", "rounds", "num_pairs")
    own = [f"{name}={getattr(cell, name)}" for name in names if getattr(cell, name) != getattr(reference, name)]
    return own + [text for text in cell.overrides if text not in reference.overrides]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as CSV: one line per cell and round, estimates as value, low and high."""
    out = io.StringIO()
    estimates = ("accuracy", "vs_reference", "vs_base", "blind_accuracy")
    plain = ["auroc", "ece", "prior_agreement", "yes_bias", "wrong_label_share", "num_steps"]
    plain += ["num_generated", "num_trained", "seconds", "tokens_per_response"]
    header = ["cell", "round", "seeds", "covers", "num_pairs", "num_examples"]
    header += [f"{name}{part}" for name in estimates for part in ("", "_low", "_high")]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*header, *plain])
    for row in rows:
        cells = [row["cell"], row["round"], " ".join(map(str, row["seeds"])), row["covers"], row["accuracy"]["num"]]
        cells.append(" ".join(map(str, row["num_examples"])))
        for name in estimates:
            estimate = row[name]
            cells += [estimate["value"], *estimate["ci95"]] if estimate else ["", "", ""]
        writer.writerow([*cells, *("" if row[name] is None else row[name] for name in plain)])
    return out.getvalue()


def _add_column(table: "Table", name: str) -> None:
    is_text = name == "cell"
    table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")


def _share_cell(estimate: Mapping[str, Any]) -> str:
    if estimate["value"] is None:
        return ""
    low, high = estimate["ci95"]
    return f"{estimate['value']:.3f} ({_number(low, 2)}-{_number(high, 2)})"


def _points_cell(estimate: Mapping[str, Any] | None) -> str:
    if not estimate or estimate["value"] is None:
        return ""
    low, high = (bound if bound is not None else float("nan") for bound in estimate["ci95"])
    return f"{estimate['value'] * 100:+.1f} ({low * 100:+.1f} {high * 100:+.1f})"


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
