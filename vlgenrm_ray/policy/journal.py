"""What a training writes for others while it goes on: lines of steps, of evaluations and of samples, and its end."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.job import PolicyJob
from vlgenrm_ray.store import read_json, write_json


class Journal:
    """A training's files but its models. Lines have their `step`: the number of steps done when they were written."""

    def __init__(self, job: PolicyJob, *, writes: bool) -> None:
        """`writes`: whether this worker is the one that does; of the others nothing is written."""
        self._job = job
        self._writes = writes

    def begin(self, done: int, *, steps: int) -> None:
        """Make the lines those of a training that has `done` steps of so many, and goes on from there.

        Later ones describe what is about to be done again. With none done the start is, and no best model is known.
        """
        if not self._writes:
            return
        if not done:
            self._job.best_evaluation.unlink(missing_ok=True)
        for path in (self._job.metrics, self._job.evaluations, self._job.samples):
            _cut(path, done)
        write_json(self._job.plan, {"steps": steps})

    def step(self, line: Mapping[str, Any]) -> None:
        """Write a step's figures."""
        self._append(self._job.metrics, line)

    def samples(self, step: int, collected: Collected) -> None:
        """Write one question of a step, with all that came of it, for people to read."""
        group = collected.groups[0]
        question = group[0].question
        answers = [
            {"text": r.text, "reward": r.reward, "status": r.status, "critique": r.critique, "finish": r.finish}
            for r in group
        ]
        line = {"step": step, "image": question.image.uri, "question": question.text, "answers": answers}
        self._append(self._job.samples, line)

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Write an evaluation's figures."""
        self._append(self._job.evaluations, line)

    def is_best(self, line: Mapping[str, Any]) -> bool:
        """Whether an evaluation's held-out figure is above that of the model kept as the best. For the one who writes.

        The best stays the best where a training goes on from an earlier checkpoint.
        """
        path = self._job.best_evaluation
        return not path.exists() or bool(line["held_out"] > read_json(path)["held_out"])

    def best(self, line: Mapping[str, Any]) -> None:
        """Write that the weights of this evaluation are exported as the best."""
        self._write(self._job.best_evaluation, line)

    def end(self, *, steps: int, stopped: str) -> None:
        """Write that the training is over, after so many steps; `stopped`: why before the last one."""
        self._write(self._job.result, {"steps": steps, "stopped": stopped})

    def _append(self, path: Path, line: Mapping[str, Any]) -> None:
        if self._writes:
            with path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")

    def _write(self, path: Path, value: object) -> None:
        if self._writes:
            write_json(path, value)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A file's lines; none where there is no file. A last one without its end was cut off with its writer."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]


def _cut(path: Path, done: int) -> None:
    """Keep the lines up to `done` steps, none if that is 0. A reader sees the old file or the new one."""
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if done and line["step"] <= done]
    partial = path.with_name(f".{path.name}")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(partial, path)
