"""Logs of a training run: log files, and messages on the console.

`RunLogger` appends lines of steps, evaluations and samples, and passes them on to the experiment trackers.
`ConsoleReporter` follows the files and formats new lines for the console. `RunPaths` names all files.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from vlgenrm_ray.data import images
from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.data.images import ImageError, ImageLimits
from vlgenrm_ray.policy.config import PolicyConfig
from vlgenrm_ray.policy.rollouts import RolloutBatch
from vlgenrm_ray.policy.trackers import TrackerContext, TrackerGroup
from vlgenrm_ray.records import ImageRef
from vlgenrm_ray.rewards.reward import OK

if TYPE_CHECKING:
    import PIL.Image

_THUMBNAIL_SIZE = 512
"""Largest side of an image for trackers, in pixels."""
_CONSOLE_WIDTH = 80
"""Columns of the console."""
_NUM_ANSWERS = 4
"""Answers per question on the console."""


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Files of one training below its folder."""

    folder: Path

    @property
    def model(self) -> Path:
        """Model folder of the policy after the last step; exists only when complete."""
        return self.folder / "model"

    @property
    def best(self) -> Path:
        """Model folder of the policy at its best evaluation; exists only when complete."""
        return self.folder / "best"

    @property
    def metrics(self) -> Path:
        """One JSON line per step."""
        return self.folder / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """One JSON line per evaluation."""
        return self.folder / "evaluations.jsonl"

    @property
    def decoding(self) -> Path:
        """One JSON line per comparison of decoding, see `evaluation.decoding_metrics`."""
        return self.folder / "decoding.jsonl"

    @property
    def best_evaluation(self) -> Path:
        """Line of the evaluation at which `best` was exported."""
        return self.folder / "best.json"

    @property
    def samples(self) -> Path:
        """One JSON line per logged question: its answers, critiques and rewards."""
        return self.folder / "samples.jsonl"

    @property
    def plan(self) -> Path:
        """Total number of steps."""
        return self.folder / "plan.json"

    @property
    def result(self) -> Path:
        """End of the training: steps done and the reason for an early stop. Written last by the workers."""
        return self.folder / "result.json"

    @property
    def failure(self) -> Path:
        """Error that a restart of the workers would only repeat."""
        return self.folder / "failure.json"


# -- files -----------------------------------------------------------------------------------------------------


class RunLogger:
    """Writer of a training's log files. Each line has a `step`: the number of steps done when it was written."""

    def __init__(self, paths: RunPaths, config: PolicyConfig, *, enabled: bool) -> None:
        """Create the logger of one worker. `enabled`: True on rank 0 only; the others write nothing."""
        self._paths = paths
        self._config = config
        self._enabled = enabled
        self._trackers = TrackerGroup({})

    def start(self, num_done: int, *, total_steps: int) -> None:
        """Cut the files back to `num_done` steps, from where the training continues, and start the trackers.

        With no steps done, the files are emptied and the best evaluation is forgotten.

        Raises:
            StageError: A tracker cannot start.
        """
        if not self._enabled:
            return
        if not num_done:
            self._paths.best_evaluation.unlink(missing_ok=True)
        for path in (self._paths.metrics, self._paths.evaluations, self._paths.decoding, self._paths.samples):
            _truncate(path, num_done)
        folder = self._paths.folder
        context = TrackerContext(
            folder=folder, name=folder.parent.name, config=self._config.model_dump(mode="json"), num_done=num_done
        )
        self._trackers = TrackerGroup.start(self._config.trackers, context)
        write_json(self._paths.plan, {"steps": total_steps})

    def log_step(self, line: Mapping[str, Any]) -> None:
        """Write the metrics of a step."""
        self._append(self._paths.metrics, line)
        self._trackers.log_step(line)

    def log_samples(self, step: int, batch: RolloutBatch) -> None:
        """Write the first question of a step with its answers, critiques and rewards."""
        group = batch.groups[0]
        question = group[0].question
        answers = [
            {"text": r.text, "reward": r.reward, "status": r.status, "critique": r.critique, "finish": r.finish}
            for r in group
        ]
        more = [image.uri for image in question.more_images]
        line = {"step": step, "image": question.image.uri, "question": question.text, "answers": answers}
        line |= {"more_images": more} if more else {}
        self._append(self._paths.samples, line)
        self._trackers.log_samples(line, lambda: _thumbnail(question.image, self._config.images))

    def log_evaluation(self, line: Mapping[str, Any]) -> None:
        """Write the metrics of an evaluation."""
        self._append(self._paths.evaluations, line)
        self._trackers.log_evaluation(line)

    def log_decoding(self, line: Mapping[str, Any]) -> None:
        """Write the metrics of a comparison of decoding."""
        self._append(self._paths.decoding, line)

    def is_best(self, line: Mapping[str, Any]) -> bool:
        """Return True if an evaluation is better than the one `best` was exported at. Only on rank 0.

        The best evaluation still counts if it is later than the checkpoint from which the training was resumed.
        """
        path = self._paths.best_evaluation
        return not path.exists() or bool(line["held_out"] > read_json(path)["held_out"])

    def log_best(self, line: Mapping[str, Any]) -> None:
        """Write the evaluation at which `best` was exported."""
        self._write(self._paths.best_evaluation, line)

    def finish(self, *, steps: int, stopped: str) -> None:
        """Write the end of the training. `stopped`: reason for an early stop, or ""."""
        self._trackers.close()
        self._write(self._paths.result, {"steps": steps, "stopped": stopped})

    def _append(self, path: Path, line: Mapping[str, Any]) -> None:
        if self._enabled:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _write(self, path: Path, value: object) -> None:
        if self._enabled:
            write_json(path, value)


def rollout_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Compute rewards, lengths, failures and staleness of a step's rollouts. Unknown values are left out.

    Returns:
        `samples`, `failed` (samples without a reward) and `groups_replaced`, all including replaced groups; `reward`
        and `reward_std`; `length` (mean tokens), `truncated_share` and `staleness` (mean number of steps by which the
        sampling weights are older than the step).
    """
    rollouts = batch.rollouts
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    lengths = [len(rollout.ids) for rollout in rollouts if rollout.ids]
    metrics = {
        "samples": float(sum(batch.statuses.values())),
        "failed": float(sum(count for status, count in batch.statuses.items() if status != OK)),
        "groups_replaced": float(batch.num_replaced),
    }
    if rewards:
        mean = sum(rewards) / len(rewards)
        metrics |= {"reward": mean, "reward_std": (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5}
    if lengths:
        num_truncated = sum(rollout.finish == "length" for rollout in rollouts)
        staleness = sum(rollout.step - rollout.version for rollout in rollouts if rollout.ids)
        metrics |= {
            "length": sum(lengths) / len(lengths),
            "truncated_share": num_truncated / len(lengths),
            "staleness": staleness / len(lengths),
        }
    return metrics


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a log file; empty if it does not exist. An incomplete last line, whose writer was killed, is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]


def _truncate(path: Path, num_done: int) -> None:
    """Keep the lines up to `num_done` steps, none if that is 0. Readers see the old file or the new one."""
    if not path.exists():
        return
    lines = [line for line in read_lines(path) if num_done and line["step"] <= num_done]
    partial = path.with_name(f".{path.name}")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, path)


def _thumbnail(ref: ImageRef, limits: ImageLimits) -> "PIL.Image.Image | None":
    """Read an image and shrink it if it is large; None if it cannot be read."""
    try:
        image = images.read(ref, limits)
    except ImageError:
        return None
    image.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    return image


# -- console ---------------------------------------------------------------------------------------------------


class JsonlTail:
    """Reader of the lines that are appended to a log file after its creation."""

    def __init__(self, path: Path) -> None:
        """Start at the current end of the file."""
        self._path = path
        self._offset = self._size()

    def read(self) -> list[dict[str, Any]]:
        """Return the complete lines since the last call. Lines that were cut off and written again are repeated."""
        self._offset = min(self._offset, self._size())
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return [json.loads(line) for line in complete.splitlines()]

    def _size(self) -> int:
        return self._path.stat().st_size if self._path.exists() else 0


class ConsoleReporter:
    """Texts about new samples and evaluations, shown above the progress bar."""

    def __init__(self, paths: RunPaths) -> None:
        self._samples, self._evaluations = JsonlTail(paths.samples), JsonlTail(paths.evaluations)

    def __call__(self) -> list[str]:
        """Return one text for each question and each evaluation written since the last call."""
        questions = [format_samples(line) for line in self._samples.read()]
        return questions + [format_evaluation(line) for line in self._evaluations.read()]


def format_samples(line: Mapping[str, Any]) -> str:
    """Format a line of `samples.jsonl` as a table of rewards, some answers, and the first lines of their critiques."""
    answers = sorted(line["answers"], key=_sort_key, reverse=True)
    selected = _evenly_spaced(answers)
    columns = {"reward": [_format_reward(answer) for answer in selected]}
    columns[f"answer ({len(selected)} of {len(answers)})"] = [answer["text"] for answer in selected]
    if any(answer["critique"] for answer in selected):
        columns["critique"] = [answer["critique"].strip().partition("\n")[0] for answer in selected]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    for number, name in enumerate(columns):
        table.add_column(name, no_wrap=True, justify="left" if number else "right", ratio=1 if number else None)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(_single_line, row))
    out = io.StringIO()
    console = Console(file=out, width=_CONSOLE_WIDTH, markup=False, highlight=False, emoji=False)
    console.print(f"step {line['step']}: {_single_line(line['question'])}", no_wrap=True, overflow="ellipsis")
    console.print(table)
    return "\n".join(text.rstrip() for text in out.getvalue().splitlines())


def format_evaluation(line: Mapping[str, Any]) -> str:
    """Format a line of `evaluations.jsonl`, with its warning if there is one."""
    text = f"evaluation after step {line['step']}: held-out {line['held_out']:.3f}"
    if line["reward"] is not None and line["value"] is not None:
        text += f", reward {line['reward']:.3f}"
    if line["image_reward_gain"] is not None:
        text += f", of which the image adds {line['image_reward_gain']:.3f}"
    return f"{text}\nwarning: {line['warning']}" if line["warning"] else text


def _format_reward(answer: Mapping[str, Any]) -> str:
    return answer["status"] if answer["reward"] is None else f"{answer['reward']:.3f}"


def _sort_key(answer: Mapping[str, Any]) -> float:
    """Sort answers by reward, those without one last."""
    return float("-inf") if answer["reward"] is None else float(answer["reward"])


def _evenly_spaced(answers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Select at most `_NUM_ANSWERS`, the first and the last included."""
    if len(answers) <= _NUM_ANSWERS:
        return list(answers)
    return [answers[number * (len(answers) - 1) // (_NUM_ANSWERS - 1)] for number in range(_NUM_ANSWERS)]


def _single_line(text: str) -> str:
    """Join lines and drop control characters: a model wrote the text, and a terminal would obey them."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())
