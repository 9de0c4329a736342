"""Charts of the HTML report: matplotlib figures as inline SVG whose colours follow the page's light or dark theme.

Colours are drawn as marker values and replaced by CSS variables, so one drawing serves both themes and print.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vlgenrm_ray.report.curves import PANELS, extract_curve
from vlgenrm_ray.report.html.run_data import (
    SELECTED,
    Array,
    CurvePoint,
    PolicyData,
    ReliabilityBin,
    RoundData,
    StageAccount,
)
from vlgenrm_ray.reward.selection import NUM_BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TEXT, _LINE = "#0a0b0c", "#0a0b0d"
_SERIES = tuple(f"#0a0c{number:02x}" for number in range(1, 9))
_THEME = {_TEXT: "var(--soft)", _LINE: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, start=1)
}
"""Marker colour in the drawing -> CSS colour in the page."""
_WIDTH = 6.4
"""Width of a chart in inches; the page scales it."""
_MAX_POINTS = 1000
"""Points drawn of a curve, evenly spaced; more could not be told apart."""
_IDS = re.compile(r'(\bid="|url\(#|href="#)([^")]+)')


def accuracy_by_round(rounds: Sequence[RoundData]) -> str:
    """Draw held-out accuracy with its 95 % interval, and AUROC, over the rounds, with the blind baselines."""
    figure, axes = _new_chart()
    numbers = [r.round for r in rounds]
    values = np.array([r.evaluation["pairwise_accuracy"] for r in rounds])
    low, high = (np.array([r.evaluation["ci95"][i] for r in rounds]) for i in (0, 1))
    axes.errorbar(
        numbers, values, yerr=[values - low, high - values], color=_SERIES[0], marker="o", capsize=4, label="accuracy"
    )
    axes.plot(numbers, [r.evaluation["auroc"] for r in rounds], color=_SERIES[1], marker="s", ls="--", label="AUROC")
    for number, (name, row) in enumerate(_baselines(rounds[-1]).items(), start=2):
        axes.axhline(row, color=_SERIES[number], lw=1, ls=":", label=f"blind: {name}")
    axes.set_xticks(numbers, [r.name for r in rounds])
    _add_legend(figure)
    return _to_svg(figure, "Held-out accuracy with its 95 % interval and AUROC by round")


def _baselines(round: RoundData) -> dict[str, float]:
    baselines = round.evaluation.get("baselines", {})
    values = {name: baselines[name]["value"] for name in ("shorter", "longer") if name in baselines}
    if no_image := baselines.get("no_image"):
        values["no image"] = no_image["pairwise_accuracy"]
    return {name: value for name, value in values.items() if value is not None}


def accuracy_by_kind(rounds: Sequence[RoundData]) -> str:
    """Draw held-out accuracy by kind of pair, for the first and the last given round."""
    kinds = sorted({kind for r in rounds for kind in r.evaluation["by_kind"]})
    figure, axes = _new_chart(height=1.4 + 0.5 * len(kinds))
    for number, round in enumerate(rounds):
        offset = (number - (len(rounds) - 1) / 2) * 0.3
        label: str | None = round.name
        for row, kind in enumerate(kinds):
            if (estimate := round.evaluation["by_kind"].get(kind)) is None or estimate["value"] is None:
                continue
            low, high = estimate["ci95"]
            axes.errorbar(
                estimate["value"],
                row + offset,
                xerr=np.array([[max(0.0, estimate["value"] - low)], [max(0.0, high - estimate["value"])]]),
                color=_SERIES[number],
                marker="os"[number % 2],
                capsize=3,
                label=label,
            )
            label = None
    axes.axvline(0.5, color=_LINE, lw=1)
    axes.set_yticks(range(len(kinds)), [kind or "(none)" for kind in kinds])
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.set_xlabel("accuracy")
    _add_legend(figure)
    return _to_svg(figure, "Held-out accuracy by kind of pair")


def reliability_diagram(bins: Mapping[str, Sequence[ReliabilityBin]]) -> str:
    """Draw the share of right responses over the mean reward of each bin, a line per judge."""
    figure, axes = _new_chart(height=4.2)
    axes.plot([0, 1], [0, 1], color=_LINE, lw=1)
    for number, (name, judge_bins) in enumerate(bins.items()):
        axes.plot(
            [b.mean_reward for b in judge_bins],
            [b.share_right for b in judge_bins],
            color=_SERIES[number],
            marker="os"[number % 2],
            label=name,
        )
    axes.set_xlabel("mean reward of the bin")
    axes.set_ylabel("share of right responses")
    _add_legend(figure)
    return _to_svg(figure, "Reliability diagram: share of right responses over mean reward")


def abstention_chart(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Draw accuracy over coverage of a judge that leaves its least sure pairs undecided, a line per judge."""
    figure, axes = _new_chart()
    for number, (name, curve) in enumerate(curves.items()):
        coverage = [row["coverage"] for row in curve]
        accuracy = [row["accuracy"]["value"] for row in curve]
        low, high = ([row["accuracy"]["ci95"][i] for row in curve] for i in (0, 1))
        axes.fill_between(coverage, low, high, color=_SERIES[number], alpha=0.15, lw=0)
        axes.plot(coverage, accuracy, color=_SERIES[number], marker="os"[number % 2], label=name)
    axes.set_xlabel("coverage: share of the pairs that are decided, the surest first")
    axes.set_ylabel("accuracy")
    _add_legend(figure)
    return _to_svg(figure, "Accuracy over coverage of a judge that abstains where it is least sure")


def margin_histogram(rounds: Sequence[RoundData]) -> str:
    """Draw the margins of all combinations of critiques before selection, a line per round."""
    figure, axes = _new_chart()
    edges = np.linspace(-1, 1, NUM_BINS + 1)
    for number, round in enumerate(r for r in rounds if r.selection):
        counts = np.array(round.selection["margin_histogram"], dtype=float)
        axes.stairs(counts / max(counts.sum(), 1), edges, color=_SERIES[number], label=round.name, lw=1.5)
    axes.axvline(0, color=_LINE, lw=1)
    axes.set_xlabel("margin: reward of the chosen minus that of the rejected response")
    axes.set_ylabel("share of combinations")
    _add_legend(figure)
    return _to_svg(figure, "Margins of all combinations of critiques before selection")


def critique_histogram(by_decision: Mapping[str, Array]) -> str:
    """Draw the probability of the right verdict, stacked by what selection did with the critique."""
    names = sorted(by_decision, key=lambda name: (name != SELECTED, -len(by_decision[name])))[: len(_SERIES)]
    figure, axes = _new_chart()
    axes.hist(
        [by_decision[name] for name in names],
        bins=20,
        range=(0, 1),
        stacked=True,
        color=list(_SERIES[: len(names)]),
        label=[f"{name.replace('_', ' ')} ({len(by_decision[name]):,})" for name in names],
    )
    axes.set_xlabel("probability of the right verdict")
    axes.set_ylabel("critiques")
    _add_legend(figure)
    return _to_svg(figure, "Critiques by probability of the right verdict and result of the selection")


def stage_seconds(stages: Sequence[StageAccount]) -> str:
    """Draw the working seconds of each stage as bars."""
    figure, axes = _new_chart(height=0.7 + 0.3 * len(stages))
    axes.barh([stage.name for stage in stages], [stage.seconds for stage in stages], color=_SERIES[0])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    return _to_svg(figure, "Working seconds of each stage")


def best_of_n_curves(curves: Mapping[str, Sequence[CurvePoint]]) -> str:
    """Draw the true score of the pick among n candidates over n, with its 95 % interval, a line per judge.

    The oracle's and the random pick, which need no judge, are those of the first curve.
    """
    figure, axes = _new_chart(height=3.6)
    for number, (name, points) in enumerate(curves.items()):
        colour = _SERIES[number % len(_SERIES)]
        sizes, picks = [point.n for point in points], [point.pick for point in points]
        axes.plot(sizes, picks, color=colour, marker="os"[number % 2], label=name)
        axes.fill_between(
            sizes, [point.low for point in points], [point.high for point in points], color=colour, alpha=0.18, lw=0
        )
    first = next(iter(curves.values()))
    sizes = [point.n for point in first]
    axes.plot(sizes, [point.oracle for point in first], color=_TEXT, ls="--", lw=1, label="oracle")
    axes.plot(sizes, [point.random for point in first], color=_TEXT, ls=":", lw=1, label="random pick")
    axes.set_xscale("log", base=2)
    all_sizes = sorted({point.n for points in curves.values() for point in points})
    axes.set_xticks(all_sizes, [str(n) for n in all_sizes])
    axes.minorticks_off()
    axes.set_xlabel("candidates n")
    axes.set_ylabel("true score of the pick")
    _add_legend(figure)
    return _to_svg(figure, f"Best of n: true score of the pick over n, {', '.join(curves)}")


def _thin(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most `_MAX_POINTS` points of a curve, its ends included."""
    if len(curve) <= _MAX_POINTS:
        return list(curve)
    return [curve[i] for i in np.linspace(0, len(curve) - 1, _MAX_POINTS).round().astype(int)]


def policy_curves(policies: Mapping[str, PolicyData]) -> list[tuple[str, str]]:
    """Draw the training curves of policies. Returns (title, SVG) for each panel that has a value."""
    charts = []
    for panel in PANELS:
        figure, axes = _new_chart(height=2.6)
        num_points = 0
        for number, (name, policy) in enumerate(policies.items()):
            lines = {
                "metrics.jsonl": policy.steps,
                "evaluations.jsonl": policy.evaluations,
                "decoding.jsonl": policy.decoding,
            }[panel.file]
            if curve := _thin(extract_curve(lines, panel)):
                num_points += len(curve)
                marker = None if panel.file == "metrics.jsonl" else "o"
                axes.plot(*zip(*curve, strict=True), color=_SERIES[number % 8], marker=marker, label=name)
        axes.set_xlabel("step")
        if not num_points:
            continue
        if len(policies) > 1:
            _add_legend(figure)
        charts.append((panel.title, _to_svg(figure, panel.title)))
    return charts


def ablation_accuracies(rows: Sequence[Mapping[str, Any]], lines: Mapping[str, float]) -> str:
    """Draw the accuracy of each row of an ablation with its 95 % interval, and some accuracies to compare with.

    Args:
        rows: Rows with `label` and `accuracy`.
        lines: Label of a vertical line -> its accuracy.
    """
    figure, axes = _new_chart(height=1.2 + 0.32 * len(rows))
    for place, row in enumerate(rows):
        value, (low, high) = row["accuracy"]["value"], row["accuracy"]["ci95"]
        errors = np.array([[max(0.0, value - low)], [max(0.0, high - value)]])
        axes.errorbar(value, place, xerr=errors, color=_SERIES[0], marker="o", capsize=3)
    for number, (label, accuracy) in enumerate(lines.items(), start=1):
        axes.axvline(accuracy, color=_SERIES[number], lw=1, ls="--", label=label)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("accuracy on the test pairs")
    if lines:
        _add_legend(figure)
    return _to_svg(figure, "Accuracy of each cell with its 95 % interval")


def lines_with_intervals(
    lines: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]], *, title: str, x: str, y: str, log: bool = False
) -> str:
    """Draw estimates with their 95 % intervals over a number, a line per name.

    Args:
        lines: Name -> points (number, estimate as JSON).
        title: Name of the chart.
        x: Label of the number.
        y: Label of the estimate.
        log: Draw the number on a logarithmic scale of base 2.
    """
    figure, axes = _new_chart()
    ticks = sorted({point for line in lines.values() for point, _ in line})
    for index, (name, line) in enumerate(lines.items()):
        values = np.array([estimate["value"] for _, estimate in line], dtype=float)
        low, high = (np.array([estimate["ci95"][i] for _, estimate in line], dtype=float) for i in (0, 1))
        axes.errorbar(
            [point for point, _ in line],
            values,
            yerr=np.nan_to_num(np.maximum(0, [values - low, high - values])),
            color=_SERIES[index % len(_SERIES)],
            marker="os^Dv"[index % 5],
            capsize=3,
            label=name,
        )
    if log:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _add_legend(figure)
    return _to_svg(figure, title)


def log_odds_histogram(histograms: Mapping[str, Sequence[int]], largest: float) -> str:
    """Draw histograms of the log-odds of Yes after a critique, over [-largest, largest], a line per name."""
    figure, axes = _new_chart()
    for number, (name, counts) in enumerate(histograms.items()):
        shares = np.array(counts, dtype=float) / max(sum(counts), 1)
        edges = np.linspace(-largest, largest, len(counts) + 1)
        axes.stairs(shares, edges, color=_SERIES[number % len(_SERIES)], label=name, lw=1.5)
    axes.axvline(0, color=_LINE, lw=1)
    axes.set_xlabel("log-odds of Yes after the critique (14 is p = 1 - 1e-6)")
    axes.set_ylabel("share of critiques")
    _add_legend(figure)
    return _to_svg(figure, "Log-odds of Yes after a critique")


def _new_chart(height: float = 3.2) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)
    axes.tick_params(colors=_TEXT, labelsize=9)
    axes.xaxis.label.set(color=_TEXT, size=9)
    axes.yaxis.label.set(color=_TEXT, size=9)
    axes.grid(color=_LINE, lw=0.5)
    axes.set_axisbelow(True)
    return figure, axes


def _add_legend(figure: "Figure") -> None:
    """Name the curves, if any was drawn, below the axes, where the legend hides no point."""
    if any(axes.get_legend_handles_labels()[1] for axes in figure.axes):
        figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=_TEXT, fontsize=9)


def _to_svg(figure: "Figure", title: str) -> str:
    """Render a figure as an SVG element that scales with the page, has a name, and shares no id with others."""
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "savefig.transparent": True}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: (?:\w+ )?([\d.]+px) [^;\"]*", r"font: \1 var(--font)", svg)
    for marker, colour in _THEME.items():
        svg = svg.replace(marker, colour)
    prefix = re.sub(r"\W+", "-", title.lower())
    svg = _IDS.sub(rf"\1{prefix}-\2", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}" class="chart"', 1)
