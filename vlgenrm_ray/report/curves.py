"""A picture of policies' trainings: reward, held-out value, divergence and length, step by step."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.policy.run_logging import read_lines

_SMOOTHED = 5
"""Steps averaged in the curves of single steps."""
_SUFFIXES = (".svg", ".png", ".pdf")


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
    """Draw trainings (folders as `policy/run.py` writes them), several seeds under one label, into a picture file.

    A thin line is a run, a thick one the mean of a label's runs. Raises InputError for a folder that is not one, and
    for a target that is no .svg, .png or .pdf.
    """
    if target.suffix not in _SUFFIXES:
        raise InputError(f"{target}: give a picture's name, ending in {', '.join(_SUFFIXES)}")
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
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}")
    # The same runs make the same file.
    dated = {".svg": "Date", ".pdf": "CreationDate"}.get(target.suffix)
    figure.savefig(partial, format=target.suffix[1:], metadata={dated: None} if dated else None)
    os.replace(partial, target)


def named(told: Sequence[str]) -> dict[str, list[Path]]:
    """Folders of trainings by label, from "LABEL=RUN[,RUN...]" each; a RUN is a policy's run folder, or the one in it
    that the training wrote. Raises InputError for what has another form.
    """
    found: dict[str, list[Path]] = {}
    for one in told:
        label, equals, runs = one.partition("=")
        folders = [Path(run) for run in runs.split(",") if run]
        if not (label and equals and folders):
            raise InputError(f"{one!r}: give LABEL=RUN, or LABEL=RUN,RUN for several seeds")
        found.setdefault(label, []).extend(f / "policy" if (f / "policy").is_dir() else f for f in folders)
    return found


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
    if not path.exists():
        raise InputError(f"{path}: not there; give the folder of a policy's run")
    return read_lines(path)
