"""What a training tells people beside its progress bar: now and then some answers, and how each evaluation went."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from vlgenrm_ray.policy.job import PolicyJob
from vlgenrm_ray.policy.run_logging import Tail

_WIDTH = 80
"""Columns."""
_ANSWERS = 4
"""Shown of a question, from the best to the worst."""


class News:
    """What the workers have written since it was asked last, or made."""

    def __init__(self, job: PolicyJob) -> None:
        self._samples, self._evaluations = Tail(job.samples), Tail(job.evaluations)

    def __call__(self) -> list[str]:
        """One text of several lines for each question shown, and one for each evaluation."""
        told = [samples(line) for line in self._samples.lines()]
        return told + [evaluation(line) for line in self._evaluations.lines()]


def samples(line: Mapping[str, Any]) -> str:
    """A line of `samples.jsonl` as a table: a question, some of its answers, rewards, the first lines of critiques."""
    answers = sorted(line["answers"], key=_rank, reverse=True)
    shown = _spread(answers)
    columns = {"reward": [_reward(answer) for answer in shown]}
    columns[f"answer ({len(shown)} of {len(answers)})"] = [answer["text"] for answer in shown]
    if any(answer["critique"] for answer in shown):
        columns["critique"] = [answer["critique"].strip().partition("\n")[0] for answer in shown]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    for place, name in enumerate(columns):
        table.add_column(name, no_wrap=True, justify="left" if place else "right", ratio=1 if place else None)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(_plain, row))
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, markup=False, highlight=False, emoji=False)
    console.print(f"step {line['step']}: {_plain(line['question'])}", no_wrap=True, overflow="ellipsis")
    console.print(table)
    return "\n".join(text.rstrip() for text in out.getvalue().splitlines())


def evaluation(line: Mapping[str, Any]) -> str:
    """A line of `evaluations.jsonl` in words, with what there is to doubt."""
    told = f"evaluation after step {line['step']}: held-out {line['held_out']:.3f}"
    if line["reward"] is not None and line["value"] is not None:
        told += f", reward {line['reward']:.3f}"
    if line["sight"] is not None:
        told += f", of which the picture adds {line['sight']:.3f}"
    return f"{told}\nwarning: {line['doubt']}" if line["doubt"] else told


def _reward(answer: Mapping[str, Any]) -> str:
    return answer["status"] if answer["reward"] is None else f"{answer['reward']:.3f}"


def _rank(answer: Mapping[str, Any]) -> float:
    """Answers without a reward come last."""
    return float("-inf") if answer["reward"] is None else float(answer["reward"])


def _spread(answers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most so many, the first and the last among them."""
    if len(answers) <= _ANSWERS:
        return list(answers)
    return [answers[place * (len(answers) - 1) // (_ANSWERS - 1)] for place in range(_ANSWERS)]


def _plain(text: str) -> str:
    """In one line, without signs that a terminal would obey: a model wrote it."""
    return "".join(sign for sign in " ".join(text.split()) if sign.isprintable())
