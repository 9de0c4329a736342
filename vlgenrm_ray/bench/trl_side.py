"""The training of a run folder, done by TRL's GRPOTrainer: `python -m ... RUN GENERATION MICRO_BATCHES TARGET`.

RUN is a folder that our own training has been through: its recipe, and its questions in the order in which they were
asked, are taken from there. TARGET gets `metrics.jsonl`, a line a step with the figures that ours has there.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from vlgenrm_ray import config
from vlgenrm_ray.bench import trl_vllm
from vlgenrm_ray.bench.trl_arguments import Generation, arguments
from vlgenrm_ray.config import PolicyRunConfig
from vlgenrm_ray.data import images
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.policy.rollouts import step_indices
from vlgenrm_ray.records import Question
from vlgenrm_ray.rewards.function import load_function


def main(run: Path, generation: Generation, micro_batches: int, target: Path) -> None:
    """Train, and write a line a step."""
    settings = config.load_policy(run / "config.yaml")
    given = arguments(settings, generation=generation, micro_batches=micro_batches)
    target.mkdir(parents=True, exist_ok=True)
    _train(settings, _asked(settings, list(StageFolder(run / "pool").records(Question))), given, target)


def _asked(settings: PolicyRunConfig, pool: Sequence[Question]) -> list[Question]:
    """Questions, a step's behind the one's before."""
    policy = settings.policy
    return [
        pool[place]
        for step in range(policy.steps)
        for place in step_indices(len(pool), policy.questions_per_step, seed=policy.seed, step=step)
    ]


def _train(settings: PolicyRunConfig, questions: Sequence[Question], given: dict[str, Any], target: Path) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    # As ours is loaded: in fp32 beside autocast, if any.
    model = AutoModelForImageTextToText.from_pretrained(settings.base, dtype=torch.float32)
    if settings.policy.engine.freeze_vision:
        model.model.visual.requires_grad_(False)
    processor = AutoProcessor.from_pretrained(settings.base)
    # TRL pads prompts on the left, and takes it for granted that the tokenizer does.
    processor.tokenizer.padding_side = "left"
    if given.get("use_vllm"):
        trl_vllm.mend(settings.policy.rollouts.engine_config(settings.base), image_token=processor.image_token_id)
    watch = _Watch(questions, settings, target / "metrics.jsonl")

    class Steps(TrainerCallback):  # type: ignore[misc]
        """Told of the end of each."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step_ended()

    def rewards(completions: Any, completion_ids: Any, place: Sequence[int], **_: Any) -> list[float]:
        return watch.rewards([said[0]["content"] for said in completions], completion_ids, place)

    rows = {
        "prompt": [[{"role": "user", "content": question.text}] for question in questions],
        "image": [images.read(question.image, settings.policy.images) for question in questions],
        "place": list(range(len(questions))),
    }
    GRPOTrainer(
        model=model,
        reward_funcs=rewards,
        processing_class=processor,
        train_dataset=Dataset.from_dict(rows),
        args=GRPOConfig(output_dir=str(target), **given),
        callbacks=[Steps()],
    ).train()


class _Watch:
    """Scores samples, and writes a line at the end of a step."""

    def __init__(self, questions: Sequence[Question], settings: PolicyRunConfig, path: Path) -> None:
        self._questions = questions
        self._measure = load_function(settings.policy.evaluation.measure)
        self._path = path
        self._step = 0
        self._mark = time.monotonic()
        self._line: dict[str, Any] = {}

    def rewards(self, texts: Sequence[str], tokens: Sequence[Sequence[int]], places: Sequence[int]) -> list[float]:
        """Of the samples of a step."""
        begun = time.monotonic()
        found = [
            float(cast("float", self._measure(self._questions[place], text)))
            for place, text in zip(places, texts, strict=True)
        ]
        scored = time.monotonic()
        self._line = {
            "samples": len(texts),
            "length": sum(map(len, tokens)) / len(tokens),
            "reward": sum(found) / len(found),
            "seconds": {"sampling": begun - self._mark, "scoring": scored - begun},
        }
        self._mark = scored
        return found

    def step_ended(self) -> None:
        """Samples, log-probabilities by the reference (`sampling`), rewards, and all that follows (`learn`)."""
        now = time.monotonic()
        self._line["seconds"]["learn"] = now - self._mark
        self._mark, self._step = now, self._step + 1
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": self._step, "timestamp": time.time()} | self._line) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), cast("Generation", sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
