"""A picture of policies' trainings: reward, held-out value, divergence and length, step by step."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray.errors import InputError

_SMOOTHED = 5
"""Steps averaged in the curves of single steps."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the picture's fields: a name of a figure, and where it stands."""

    title: str
    file: str
    name: str


PANELS = (
    Panel("training reward", "metrics.jsonl", "reward"),
    Panel("held-out value, unseen by the reward", "evaluations.jsonl", "value"),
    Panel("KL to the first policy, nats a token", "metrics.jsonl", "reference_kl"),
    Panel("tokens a response", "metrics.jsonl", "length"),
)


def draw(runs: Mapping[str, Sequence[Path]], target: Path) -> None:
    """Draw trainings (folders as `policy/run.py` writes them), several seeds under one label, into an SVG or PNG file.

    A thin line is a run, a thick one the mean of a label's runs. Raises InputError for a folder that is not one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
        for number, (label, folders) in enumerate(runs.items()):
            colour = f"C{number}"
            lines = [curve(_lines(folder / panel.file), panel.name) for folder in folders]
            for line in lines:
                axes.plot(*zip(*line, strict=True), color=colour, alpha=0.3 if len(lines) > 1 else 1.0, linewidth=1)
            if len(lines) > 1:
                axes.plot(*zip(*mean(lines), strict=True), color=colour, linewidth=2)
            axes.plot([], [], color=colour, label=label)
    figure.axes[0].legend(fontsize=9)
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


def curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of a figure where it is known; of single steps a running mean."""
    found = [(int(line["step"]), float(line[name])) for line in lines if line.get(name) is not None]
    width = _SMOOTHED if len(found) > 4 * _SMOOTHED else 1
    values = [value for _, value in found]
    return [
        (step, sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1]))
        for i, (step, _) in enumerate(found)
    ]


def mean(curves: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Mean of curves at the steps that all of them have."""
    known = [dict(one) for one in curves]
    steps = sorted(set.intersection(*(set(one) for one in known)))
    return [(step, sum(one[step] for one in known) / len(known)) for step in steps]


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the folder `policy` of a policy's run") from error
    return found
