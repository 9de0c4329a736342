"""What a training writes for others while it goes on: lines of steps, of evaluations and of samples, and its end.

What it writes into files it tells the run's trackers as well.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.data.store import read_json, write_json
from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.job import PolicyJob
from vlgenrm_ray.policy.trackers import Place, Trackers
from vlgenrm_ray.records import ImageRef

if TYPE_CHECKING:
    import PIL.Image

_SHOWN = 512
"""Largest side of a picture that trackers are given, in pixels."""


class Journal:
    """A training's files but its models. Lines have their `step`: the number of steps done when they were written."""

    def __init__(self, job: PolicyJob, *, writes: bool) -> None:
        """`writes`: whether this worker is the one that does; of the others nothing is written."""
        self._job = job
        self._writes = writes
        self._trackers = Trackers({})

    def begin(self, done: int, *, steps: int) -> None:
        """Make the lines those of a training that has `done` steps of so many, and goes on from there.

        Later ones describe what is about to be done again. With none done the start is, and no best model is known.
        Raises StageError where a tracker cannot begin.
        """
        if not self._writes:
            return
        if not done:
            self._job.best_evaluation.unlink(missing_ok=True)
        for path in (self._job.metrics, self._job.evaluations, self._job.samples):
            _cut(path, done)
        job = self._job
        place = Place(
            folder=job.target, name=job.target.parent.name, config=job.config.model_dump(mode="json"), done=done
        )
        self._trackers = Trackers.begun(job.config.trackers, place)
        write_json(job.plan, {"steps": steps})

    def step(self, line: Mapping[str, Any]) -> None:
        """Write a step's figures."""
        self._append(self._job.metrics, line)
        self._trackers.step(line)

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
        self._trackers.samples(line, lambda: _shown(question.image, self._job.config.images))

    def evaluation(self, line: Mapping[str, Any]) -> None:
        """Write an evaluation's figures."""
        self._append(self._job.evaluations, line)
        self._trackers.evaluation(line)

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
        self._trackers.close()
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


def _shown(ref: ImageRef, limits: ImageLimits) -> "PIL.Image.Image | None":
    """A picture, made smaller where it is large; None where it cannot be had."""
    try:
        image = images.read(ref, limits)
    except ImageError:
        return None
    image.thumbnail((_SHOWN, _SHOWN))
    return image


class Tail:
    """The lines of a file that a journal writes, as they are added."""

    def __init__(self, path: Path) -> None:
        """From the file's present end on."""
        self._path = path
        self._at = self._size()

    def lines(self) -> list[dict[str, Any]]:
        """Those added since it was asked last. Lines that were taken back, and are written again, come again."""
        self._at = min(self._at, self._size())
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole, end, _ = file.read().rpartition(b"\n")
        self._at += len(whole) + len(end)
        return [json.loads(line) for line in whole.splitlines()]

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0


def _cut(path: Path, done: int) -> None:
    """Keep the lines up to `done` steps, none if that is 0. A reader sees the old file or the new one."""
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if done and line["step"] <= done]
    partial = path.with_name(f".{path.name}")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(partial, path)
