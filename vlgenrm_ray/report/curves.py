"""Training curves of policies by step: rewards, held-out measure and what exceeds it, decoding, KL, entropy, length."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.policy.run_logging import read_lines

_SMOOTHING_STEPS = 5
"""Steps averaged in curves with a point per step."""
_SUFFIXES = (".svg", ".png", ".pdf")


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot of the figure."""

    title: str
    file: str
    """Log file in the folder of the training."""
    key: str
    """Metric to plot, a key of the lines in `file`."""
    minus: str = ""
    """Metric of the same lines that is subtracted, or ""."""


PANELS = (
    Panel("training reward", "metrics.jsonl", "reward"),
    Panel("held-out measure, unseen by the reward", "evaluations.jsonl", "value"),
    # A reward that rises faster than the measure is being exploited.
    Panel("held-out reward minus measure", "evaluations.jsonl", "reward", minus="value"),
    Panel("held-out measure, greedy answers", "decoding.jsonl", "greedy"),
    Panel("held-out measure, best of k samples (pass at k)", "decoding.jsonl", "pass_at_k"),
    Panel("KL to the initial policy, nats per token", "metrics.jsonl", "reference_kl"),
    Panel("entropy, nats per token", "metrics.jsonl", "entropy"),
    Panel("tokens per response", "metrics.jsonl", "length"),
)
_NUM_COLUMNS = 4


def draw_curves(runs: Mapping[str, Sequence[Path]], target: Path) -> None:
    """Draw the curves of several trainings into one figure: thin lines for runs, thick ones for the mean of a label.

    Args:
        runs: Folders of trainings (as `policy/run.py` writes them) by label, one per seed.
        target: File to write: .svg, .png or .pdf.

    Raises:
        InputError: A folder is not that of a training, or `target` has another suffix.
    """
    if target.suffix not in _SUFFIXES:
        raise InputError(f"{target}: name an image file that ends in {', '.join(_SUFFIXES)}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * _NUM_COLUMNS, 6), layout="constrained")
    for axes, panel in zip(figure.subplots(len(PANELS) // _NUM_COLUMNS, _NUM_COLUMNS).flat, PANELS, strict=True):
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
        for number, (label, folders) in enumerate(runs.items()):
            colour = f"C{number}"
            curves = [extract_curve(_read_log(folder, panel.file), panel) for folder in folders]
            curves = [curve for curve in curves if curve]
            for curve in curves:
                axes.plot(*zip(*curve, strict=True), color=colour, alpha=0.3 if len(curves) > 1 else 1.0, linewidth=1)
            if len(curves) > 1:
                axes.plot(*zip(*mean_curve(curves), strict=True), color=colour, linewidth=2)
            axes.plot([], [], color=colour, label=label)
    figure.axes[0].legend(fontsize=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}")
    # Without a date, the same runs give the same file.
    date_key = {".svg": "Date", ".pdf": "CreationDate"}.get(target.suffix)
    figure.savefig(partial, format=target.suffix[1:], metadata={date_key: None} if date_key else None)
    os.replace(partial, target)


def parse_runs(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """Parse arguments "LABEL=RUN[,RUN...]" into folders of trainings by label.

    Args:
        arguments: A RUN is the run folder of a policy, or the folder `policy` in it.

    Raises:
        InputError: An argument has another form.
    """
    runs: dict[str, list[Path]] = {}
    for argument in arguments:
        label, equals, names = argument.partition("=")
        folders = [Path(name) for name in names.split(",") if name]
        if not (label and equals and folders):
            raise InputError(f"{argument!r}: give LABEL=RUN, or LABEL=RUN,RUN for several seeds")
        runs.setdefault(label, []).extend(f / "policy" if (f / "policy").is_dir() else f for f in folders)
    return runs


def extract_curve(lines: Sequence[Mapping[str, Any]], panel: Panel) -> list[tuple[int, float]]:
    """Return (step, value) of a panel from the lines that have its metrics, as a running mean if they are many."""
    names = [name for name in (panel.key, panel.minus) if name]
    points = [
        (int(line["step"]), float(line[panel.key]) - float(line[panel.minus] if panel.minus else 0.0))
        for line in lines
        if all(line.get(name) is not None for name in names)
    ]
    width = _SMOOTHING_STEPS if len(points) > 4 * _SMOOTHING_STEPS else 1
    values = [value for _, value in points]
    return [
        (step, sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1]))
        for i, (step, _) in enumerate(points)
    ]


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Return the mean of curves at the steps that all of them have."""
    by_step = [dict(curve) for curve in curves]
    steps = sorted(set.intersection(*(set(values) for values in by_step)))
    return [(step, sum(values[step] for values in by_step) / len(by_step)) for step in steps]


def _read_log(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read a log of a training; empty for a log that the run did not write. Raises InputError for another folder."""
    if not (folder / "metrics.jsonl").exists():
        raise InputError(f"{folder}: it has no metrics.jsonl; give the run folder of a policy")
    return read_lines(folder / name)
