"""HTML report: one self-contained page about a run, or several runs side by side.

`run_data.py` reads the measured values of a run, `gallery.py` its examples, `charts.py` draws, and
`page.html.jinja` arranges them. The page needs no network and no server.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlgenrm_ray import __version__
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.evaluation.metrics import Estimate, abstention_curve, paired_gain
from vlgenrm_ray.policy.evaluation import DECODINGS
from vlgenrm_ray.report.html import charts, gallery
from vlgenrm_ray.report.html.run_data import (
    CurvePoint,
    RunData,
    best_of_n_curve,
    critiques_by_decision,
    read_run,
    reliability,
)
from vlgenrm_ray.report.lineage import natural_key
from vlgenrm_ray.report.policy_summary import measure_gain

FILE_NAME = "report.html"
LIVE_EVERY_S = 10.0
"""Seconds between two versions of a live report, and between two reloads of its page."""


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one or several runs, finished or not.

    Args:
        runs: Run folders; a co-training counts as all of its reward-model and policy runs. Also folders of
            `vlgenrm benchmark --run` and `vlgenrm best-of-n --run`.
        out: File to write; default: `report.html` in the first run folder.

    Returns:
        The file written. Readers see the old file or the new one, never a part.

    Raises:
        InputError: A folder is not that of a run.
    """
    return _write(_read_runs(runs), runs, out, 0.0)


def _read_runs(runs: Sequence[Path]) -> list[RunData]:
    data = [part for run in runs for part in read_run(run)]
    if not data:
        raise InputError(f"{runs[0]}: the run has not begun yet")
    return data


def _write(data: Sequence[RunData], runs: Sequence[Path], out: Path | None, refresh_s: float) -> Path:
    target = out or runs[0] / FILE_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    partial.write_text(render(data, refresh_s=refresh_s), encoding="utf-8")
    os.replace(partial, target)
    return target


def write_live(
    runs: Sequence[Path],
    out: Path | None = None,
    *,
    on_write: Callable[[Path], None] = lambda path: None,
    every_s: float = LIVE_EVERY_S,
) -> Path:
    """Write the report again and again until all runs are finished, the last time without reloads; return the file."""
    while True:
        data = _read_runs(runs)
        is_finished = all(part.is_finished for part in data)
        target = _write(data, runs, out, 0.0 if is_finished else every_s)
        on_write(target)
        if is_finished:
            return target
        time.sleep(every_s)


def render(runs: Sequence[RunData], *, refresh_s: float = 0.0) -> str:
    """Render the page. Everything that a model or a data set wrote is escaped.

    Args:
        runs: Runs to show.
        refresh_s: Seconds after which the page reloads itself; 0: never.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vlgenrm_ray.report.html", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": _format_number, "estimate": _format_estimate, "share": _format_share}
    return environment.get_template("page.html.jinja").render(
        version=__version__,
        refresh_s=refresh_s,
        runs=[_run_view(run) for run in runs],
        comparison=_comparison(runs) if len(runs) > 1 else None,
        policy_charts=_comparison_curves(runs),
        best_of_n_chart=_compared_best_of_n(runs) if len(runs) > 1 else "",
    )


def _run_view(run: RunData) -> dict[str, Any]:
    """Arrange one run for the template."""
    evaluated = [r for r in run.rounds if r.evaluation]
    shown = list({r.round: r for r in (evaluated[0], evaluated[-1])}.values()) if evaluated else []
    selected = next((r for r in reversed(run.rounds) if r.selection), None)
    round_charts: list[tuple[str, str]] = []
    if evaluated:
        round_charts = [
            ("Accuracy by round", charts.accuracy_by_round(evaluated)),
            *(
                (("Accuracy by kind", charts.accuracy_by_kind(shown)),)
                if any(r.evaluation["by_kind"] for r in shown)
                else ()
            ),
            (
                "Reliability",
                charts.reliability_diagram({r.name: reliability(r.pairs) for r in shown if r.pairs is not None}),
            ),
        ]
        curves = {r.name: abstention_curve(r.pairs.chosen, r.pairs.rejected) for r in shown if r.pairs is not None}
        if any(curves.values()):
            round_charts.append(("Accuracy over coverage", charts.abstention_chart(curves)))
    selection_charts: list[tuple[str, str]] = []
    num_critiques = 0
    if selected is not None:
        by_decision, num_critiques = critiques_by_decision(
            StageFolder(selected.folder / "critiques"), StageFolder(selected.folder / "selection")
        )
        selection_charts = [("Margins before selection", charts.margin_histogram(run.rounds))]
        if by_decision:
            selection_charts.append((f"Critiques of {selected.name}", charts.critique_histogram(by_decision)))
    examples: list[gallery.ExampleView] = []
    if selected is not None:
        examples = gallery.training_examples(run.folder, selected)
    elif any(stage.name == "preferences" for stage in run.stages):
        examples = gallery.preference_examples(run.folder)
    if evaluated:
        examples = gallery.heldout_examples(run.folder, evaluated[-1]) + examples
    return {
        "data": run,
        "best": run.best_round,
        "gain": run.gain(),
        "round_charts": round_charts,
        "selection_charts": selection_charts,
        "selected_round": selected.name if selected is not None else "",
        "num_critiques": num_critiques,
        "largest_stage": max((s.rows_out + sum(s.dropped.values()) for s in run.stages), default=0) or 1,
        "seconds_chart": charts.stage_seconds(run.stages) if run.stages else "",
        "examples": examples,
        "kinds": sorted({example.kind for example in examples}),
        "policy_gains": _policy_gains(run),
        "decoding": _decoding_rows(run),
        "samples": gallery.policy_samples(run.policy) if run.policy is not None else [],
        "benchmarks": [_benchmark_view(benchmark) for benchmark in run.benchmarks],
        "best_of_n_charts": [
            (f"Best of n{'' if label == 'best_of_n' else f' on {label}'}", charts.best_of_n_curves(curves))
            for label, curves in _best_of_n(run).items()
        ],
    }


def _best_of_n(run: RunData) -> dict[str, dict[str, list[CurvePoint]]]:
    """Return the best-of-N curves of a run: label of the benchmark -> round or model -> points."""
    curves: dict[str, dict[str, list[CurvePoint]]] = {}
    for benchmark in run.benchmarks:
        if points := best_of_n_curve(benchmark):
            curves.setdefault(benchmark["label"], {})[benchmark["where"]] = points
    return curves


def _compared_best_of_n(runs: Sequence[RunData]) -> str:
    """Draw the best-of-N curve of the best round of each run, else of its last result; "" without two curves."""
    compared = {}
    for run in runs:
        for by_place in list(_best_of_n(run).values())[:1]:
            best = f"round-{run.best_round.round}" if run.best_round is not None else ""
            compared[run.name] = by_place.get(best) or list(by_place.values())[-1]
    return charts.best_of_n_curves(compared) if len(compared) > 1 else ""


def _policy_gains(run: RunData) -> dict[str, Estimate]:
    if run.policy is None or not run.policy.summary:
        return {}
    gains = {name: measure_gain(run.policy.summary, name) for name in ("best", "last")}
    return {name: gain for name, gain in gains.items() if gain is not None}


def _decoding_rows(run: RunData) -> list[dict[str, Any]]:
    """Compare the first and the last measurement of each way of decoding; empty before the training has ended."""
    lines = run.policy.decoding if run.policy is not None else []
    if len(lines) < 2:
        return []
    before, after = lines[0], lines[-1]
    return [
        {
            "name": name,
            "k": after["k"],
            "questions": after["num_questions"],
            "before": before[name],
            "after": after[name],
            "gain": paired_gain(before["outcomes"][name], after["outcomes"][name]),
        }
        for name in DECODINGS
    ]


_BENCHMARK_SECTIONS = {
    "metrics": "Scores: by the rule of each program, and ours with its interval",
    "groups": "Main metric by group",
    "orders": "Order of the two responses",
    "baselines": "Rules that look at no image, or at no content",
}


_CURVE_SECTIONS = {
    "metrics": "True score of the pick among n candidates, by an oracle, at random, and by the judge (ours)",
    "groups": "Regret: the oracle's score minus the pick's",
    "baselines": "Picks that look at no image",
}
"""Titles of the tables of a best-of-N result."""


def _in_order(rows: Mapping[str, Any], benchmark: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Order the rows of a table for readers: the main metric first, but those of a curve by n."""
    main = "" if best_of_n_curve(benchmark) else benchmark.get("main")
    return sorted(rows.items(), key=lambda row: (row[0] != main, natural_key(row[0])))


def _benchmark_view(benchmark: Mapping[str, Any]) -> dict[str, Any]:
    """Arrange the result of one benchmark (`BenchmarkReport.as_json` with its name) as tables."""
    sections = {name: benchmark[name] for name in _BENCHMARK_SECTIONS if benchmark.get(name)}
    titles = _BENCHMARK_SECTIONS | (_CURVE_SECTIONS if best_of_n_curve(benchmark) else {})
    return {
        "name": benchmark.get("benchmark", ""),
        "where": benchmark["where"],
        "sections": [
            {
                "title": titles[name],
                "rules": (rules := list(dict.fromkeys(rule for row in rows.values() for rule in row["rules"]))),
                "rows": [_benchmark_row(row, values, rules) for row, values in _in_order(rows, benchmark)],
            }
            for name, rows in sections.items()
        ],
        "counts": benchmark.get("counts", {}),
        "notes": benchmark.get("notes", ()),
    }


def _benchmark_row(name: str, row: Mapping[str, Any], rules: Sequence[str]) -> dict[str, Any]:
    ours = row["ours"]
    shown = ""
    if ours is not None and ours["value"] is not None:
        low, high = ours["ci95"]
        shown = f"{ours['value']:.4f} [{low:.4f}, {high:.4f}]"
    values = [row["rules"].get(rule) for rule in rules]
    return {"name": name, "rules": values, "ours": shown, "num": "" if ours is None else ours["num"]}


def _comparison_curves(runs: Sequence[RunData]) -> list[tuple[str, str]]:
    policies = {run.name: run.policy for run in runs if run.policy is not None and run.policy.steps}
    return charts.policy_curves(policies) if policies else []


def _comparison(runs: Sequence[RunData]) -> list[Mapping[str, Any]]:
    """Compare the best rounds of several runs; each later run is paired with the first on their common pairs."""
    first = next((run for run in runs if run.best_round is not None), None)
    rows: list[Mapping[str, Any]] = []
    for run in runs:
        best = run.best_round
        difference = None
        if best is not None and first is not None and run is not first and first.best_round is not None:
            reference, pairs = first.best_round.pairs, best.pairs
            if reference is not None and pairs is not None:
                difference = paired_gain(reference.outcomes(), pairs.outcomes())
        rows.append({"run": run, "best": best, "gain": run.gain(), "difference": difference})
    return rows


def _format_number(value: Any, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else f"{value:,}"


def _format_share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _format_estimate(value: Estimate | None) -> str:
    """Format a gain in points with its interval."""
    if value is None or not value.num:
        return ""
    return f"{value.value * 100:+.1f} [{value.low * 100:+.1f}, {value.high * 100:+.1f}], n = {value.num}"
