"""Page about an ablation: its table, figures and diagnosis, made of the files that `ablation/run.py` writes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlgenrm_ray import __version__
from vlgenrm_ray.data.files import read_json
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.report.html import FILE_NAME, charts

RESULT = "ablation.json"
MAX_LOG_ODDS = 20.0
"""Range of the stored histograms of log-odds; see `ablation/diagnosis.py`."""


def is_ablation(run: Path) -> bool:
    """Return True if a run folder is that of an ablation with a finished or failed cell."""
    return (run / RESULT).exists()


def write_page(run: Path, out: Path | None = None) -> Path:
    """Write the page of an ablation, finished or not; return the file.

    Args:
        run: Run folder of `vlgenrm ablate`.
        out: File to write; default: `report.html` in the run folder.

    Raises:
        InputError: The folder is not that of an ablation.
    """
    path = run / RESULT
    if not is_ablation(run):
        raise InputError(f"{path}: not there; run `vlgenrm ablate` first, or name its run folder")
    recipe = run / "config.yaml"
    target = out or run / FILE_NAME
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    text = render(run.name, read_json(path), recipe.read_text(encoding="utf-8") if recipe.exists() else "")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, target)
    return target


def render(name: str, result: Mapping[str, Any], recipe: str) -> str:
    """Render the page.

    Args:
        name: Name of the run.
        result: Content of `ablation.json`.
        recipe: Resolved recipe, as YAML.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vlgenrm_ray.report.html", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"share": _format_share, "points": _format_points, "number": _format_number}
    rows = [row | {"label": _label(row, result["rows"])} for row in result["rows"]]
    return environment.get_template("ablation.html.jinja").render(
        version=__version__,
        name=name,
        result=result,
        rows=rows,
        charts=_accuracy_charts(rows, result),
        curves=_curves(rows, result),
        diagnosis=_diagnosis_view(result["diagnosis"]),
        recipe=recipe,
    )


def _label(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    has_rounds = any(other["round"] > 1 for other in rows)
    return f"{row['cell']}, round {row['round']}" if has_rounds and row["round"] else str(row["cell"])


def _accuracy_charts(rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[tuple[str, str]]:
    measured = [row for row in rows if row["accuracy"]["value"] is not None]
    if not measured:
        return []
    lines = {
        label: row["accuracy"]["value"]
        for label, cell, first in (("base", "base", 0), ("reference", "reference", 1))
        for row in measured
        if row["cell"] == cell and row["round"] == first
    }
    drawn = [("Accuracy of each cell", charts.ablation_accuracies(measured, lines))]
    by_cell: dict[str, list[Mapping[str, Any]]] = {}
    for row in measured:
        by_cell.setdefault(row["cell"], []).append(row)
    several = {cell: of_cell for cell, of_cell in by_cell.items() if len(of_cell) > 1}
    if not several:
        return drawn
    accuracies = {cell: [(r["round"], r["accuracy"]) for r in of_cell] for cell, of_cell in several.items()}
    drawn.append(
        (
            "Accuracy by round",
            charts.lines_with_intervals(accuracies, title="Accuracy by round", x="round", y="accuracy"),
        )
    )
    for title, key in (
        ("Wrong labels by round", "wrong_label_share"),
        ("Pairs ranked alike without the image, by round", "prior_agreement"),
    ):
        lines_of_key = {
            cell: [(r["round"], {"value": r[key], "ci95": [r[key], r[key]]}) for r in of_cell if r[key] is not None]
            for cell, of_cell in several.items()
        }
        if any(lines_of_key.values()):
            drawn.append((title, charts.lines_with_intervals(lines_of_key, title=title, x="round", y="share")))
    return drawn


def _curves(rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[tuple[str, str]]:
    drawn: list[tuple[str, str]] = []
    first_round = [row for row in rows if row["round"] == 1 and row["cell"] in result["pair_curve"]]
    points = (
        sorted((row["num_pairs"], row["accuracy"]) for row in first_round if row["accuracy"]["value"] is not None)
        if len({row["num_pairs"] for row in first_round}) == len(first_round)
        else []
    )
    if len(points) > 1:
        title = "Accuracy by number of labelled pairs"
        drawn.append(
            (title, charts.lines_with_intervals({"round 1": points}, title=title, x="pairs", y="accuracy", log=True))
        )
    voting = {
        f"{cell}, {judge}": [(point["k"], point["accuracy"]) for point in values["voting"]]
        for cell, of_cell in result["diagnosis"].items()
        for judge, values in of_cell["judges"].items()
        if values.get("voting")
    }
    if voting:
        title = "Accuracy by number of critiques K"
        drawn.append((title, charts.lines_with_intervals(voting, title=title, x="K", y="accuracy", log=True)))
    return drawn


def _diagnosis_view(diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    """Arrange the diagnosis as tables: margins, selection and swapped images, a row per cell and judge."""
    margins = {
        f"{cell}, {place}": values
        for cell, of_cell in diagnosis.items()
        for place, values in of_cell["margins"].items()
    }
    swapped = {
        f"{cell}, {judge}": values["swapped"]
        for cell, of_cell in diagnosis.items()
        for judge, values in of_cell["judges"].items()
        if values.get("swapped")
    }
    reasons = list(
        dict.fromkeys(reason for m in margins.values() for counts in m["selection"].values() for reason in counts)
    )
    chart = (
        charts.log_odds_histogram({name: m["log_odds"] for name, m in margins.items()}, MAX_LOG_ODDS) if margins else ""
    )
    return {"margins": margins, "swapped": swapped, "reasons": reasons, "chart": chart}


def _format_share(estimate: Mapping[str, Any] | None) -> str:
    if not estimate or estimate["value"] is None:
        return ""
    low, high = estimate["ci95"]
    return f"{estimate['value']:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")


def _format_points(estimate: Mapping[str, Any] | None) -> str:
    if not estimate or estimate["value"] is None:
        return ""
    low, high = estimate["ci95"]
    return f"{estimate['value'] * 100:+.1f}" + (f" [{low * 100:+.1f}, {high * 100:+.1f}]" if low is not None else "")


def _format_number(value: Any, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else f"{value:,}"
