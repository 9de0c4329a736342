"""What every training worker does: measure, plan, learn, keep checkpoints, export.

All workers run this file in step. What is written for others (metrics, result) is written by rank 0.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.data.store import StageFolder, read_json, write_json
from vlgenrm_ray.engines.vlm_batch import Batch, TextError, VlmEncoder
from vlgenrm_ray.errors import InputError, StageError, VlGenRMError
from vlgenrm_ray.records import Dropped
from vlgenrm_ray.reward.training_config import TrainingConfig
from vlgenrm_ray.reward.training_data import (
    Examples,
    Measured,
    PlannedStep,
    measure,
    planned,
    probe_prefix,
    token_weight,
    total_steps,
)

if TYPE_CHECKING:
    from vlgenrm_ray.engines.deepspeed import Learner

YES, NO = "Yes", "No"


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """What the workers are told."""

    config: TrainingConfig
    base: Path
    examples: StageFolder
    target: Path

    @property
    def model(self) -> Path:
        """The exported Hugging Face folder; there when complete."""
        return self.target / "model"

    @property
    def metrics(self) -> Path:
        """One JSON line per optimizer step."""
        return self.target / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """Written last of all by the workers."""
        return self.target / "result.json"

    @property
    def failure(self) -> Path:
        """A failure that another attempt would only repeat."""
        return self.target / "failure.json"

    @property
    def plan(self) -> Path:
        """How many steps there are to do."""
        return self.target / "plan.json"


def work(job: TrainingJob) -> None:
    """Entry point of a worker under Ray Train."""
    if job.failure.exists():
        return
    try:
        _Worker(job).run()
    except (VlGenRMError, ImageError, TextError) as error:
        # Ray Train would start the workers again; what failed here fails again, so they then return at once.
        kind = "InputError" if isinstance(error, InputError) else "StageError"
        write_json(job.failure, {"kind": kind, "message": str(error)})
        raise


class _Worker:
    def __init__(self, job: TrainingJob) -> None:
        import ray.train
        import torch

        context = ray.train.get_context()
        self.job = job
        self.config = job.config
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        torch.set_num_threads(job.config.num_cpus)
        self.seconds: dict[str, float] = {}
        self._mark = time.monotonic()
        self.encoder = VlmEncoder(job.base, job.config.images, image_processor=job.config.image_processor)
        self.examples = Examples(job.examples)

    def run(self) -> None:
        from vlgenrm_ray.engines.deepspeed import Learner
        from vlgenrm_ray.engines.export import export

        self._lap("import")
        measured, dropped = self._measure()
        total = total_steps(measured, self.config)
        self._write(self.job.plan, {"steps": total, "examples": len(measured)})
        self._lap("measure")
        learner = Learner(self.job.base, self.config.engine, seed=self.config.seed)
        self._lap("load")
        start = self._resume(learner)
        with ThreadPoolExecutor(1) as ahead:
            for step, batches in self._batches(measured, start, ahead):
                self._learn(learner, measured, step, batches, total)
                self._keep(learner, step.number + 1, total)
        self._lap("learn")
        probes = self._probe(learner, measured)
        export(learner, self.job.model)
        self._lap("export")
        self._write(self.job.target / "probes.json", {"probes": probes})
        self._write(
            self.job.result,
            {
                "steps": total,
                "num_examples": len(measured),
                "dropped": [asdict(d) for d in dropped],
                "phases": self.seconds,
            },
        )

    # -- before ------------------------------------------------------------------------------------------------

    def _measure(self) -> tuple[list[Measured], list[Dropped]]:
        """Each worker measures its share of the examples; all get the whole."""
        share = range(self.rank, len(self.examples), self.world_size)
        mine = measure(self.examples, share, self.encoder, self.config.images, self.config.tokens_per_batch)
        parts = self._gather(mine)
        measured = sorted((m for part, _ in parts for m in part), key=lambda m: m.index)
        dropped = sorted((d for _, part in parts for d in part), key=lambda d: d.id)
        if not measured:
            raise StageError(
                f"stage 'training': none of {len(self.examples)} examples can be trained on"
                + (f"; the first was dropped as {dropped[0].reason}: {dropped[0].detail}" if dropped else "")
            )
        return measured, dropped

    def _resume(self, learner: "Learner") -> int:
        """Restore the last checkpoint, if there is one; return the number of steps done."""
        import ray.train
        import torch

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            torch.manual_seed(self.config.seed * 1_000_003 + self.rank)
            done = 0
        else:
            with checkpoint.as_directory() as folder:
                learner.load(Path(folder))
                done = int(read_json(Path(folder) / "progress.json")["steps"])
        if self.rank == 0:
            # Lines of steps after the checkpoint describe work that is about to be done again.
            lines = self.job.metrics.read_text().splitlines()[:done] if self.job.metrics.exists() else []
            self.job.metrics.write_text("".join(line + "\n" for line in lines))
        return done

    # -- learning ----------------------------------------------------------------------------------------------

    def _batches(
        self, measured: Sequence[Measured], start: int, ahead: ThreadPoolExecutor
    ) -> Iterator[tuple[PlannedStep, list[Batch]]]:
        """Steps with this worker's tensors, the next step's made while the current one is learnt."""
        waiting = None
        for step in planned(measured, self.config, start):
            made = ahead.submit(self._tensors, measured, step)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = (step, made)
        if waiting is not None:
            yield waiting[0], waiting[1].result()

    def _tensors(self, measured: Sequence[Measured], step: PlannedStep) -> list[Batch]:
        batches = []
        for micro in step.step.of(self.rank):
            examples = []
            for member in micro.members:
                entry = step.entries[member]
                example = self.examples[measured[entry.index].index]
                tokens = self.encoder.encode(example.image, example.prompt, example.completion)
                examples.append((tokens, example.image, token_weight(entry, measured, self.config)))
            batches.append(self.encoder.batch(examples, counts=micro.counts))
        return batches

    def _learn(
        self, learner: "Learner", measured: Sequence[Measured], step: PlannedStep, batches: list[Batch], total: int
    ) -> None:
        from vlgenrm_ray.engines.deepspeed_model import NonFiniteGradient, NonFiniteLoss

        began = time.monotonic()
        lr = learner.lr(step.number, total)
        try:
            result = learner.step(batches, denominator=step.denominator, lr=lr)
        except NonFiniteLoss as error:
            micro = step.step.of(self.rank)
            members = [micro[batch].members[place] for batch, place in error.examples]
            mine = [self.examples[measured[step.entries[m].index].index].id for m in members]
            names = sorted({name for part in self._gather(mine) for name in part})
            raise StageError(
                f"stage 'training': the loss of step {step.number + 1} is not finite, at examples {names[:8]}; "
                "lower training.engine.learning_rate, use precision = fp32, or look at these examples"
            ) from error
        except NonFiniteGradient as error:
            raise StageError(
                f"stage 'training': the gradient of step {step.number + 1} is not finite; "
                "lower training.engine.learning_rate, or use precision = fp32"
            ) from error
        seconds = time.monotonic() - began
        line = {
            "step": step.number + 1,
            "epoch": step.epoch,
            "loss": result.loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "examples": len(step.step.members()),
            "tokens": step.num_tokens,
            "tokens_per_s": round(step.num_tokens / seconds, 1),
            "seconds": round(seconds, 4),
        }
        if self.rank == 0:
            with self.job.metrics.open("a") as out:
                out.write(json.dumps(line) + "\n")

    def _keep(self, learner: "Learner", done: int, total: int) -> None:
        """A checkpoint every so many steps; the last step is followed by the export, not by a checkpoint."""
        import ray.train

        if not self.config.checkpoint_every or done % self.config.checkpoint_every or done == total:
            return
        with tempfile.TemporaryDirectory() as folder:
            learner.save(Path(folder))
            self._write(Path(folder) / "progress.json", {"steps": done})
            ray.train.report({"steps": done}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    # -- after -------------------------------------------------------------------------------------------------

    def _probe(self, learner: "Learner", measured: Sequence[Measured]) -> list[dict[str, Any]]:
        """Rewards of some of the training's own judgements, as the trained model gives them before it is exported."""
        forms = self.encoder.vocabulary.ids_of((YES, NO)) if self.config.num_probes else {}
        probes: list[dict[str, Any]] = []
        for m in measured:
            example = self.examples[m.index]
            prefix = probe_prefix(example)
            if len(probes) == self.config.num_probes or prefix is None:
                continue
            tokens = self.encoder.encode_prefix(example.image, example.prompt, prefix)
            asked = learner.word_probabilities(self.encoder.batch([(tokens, example.image, 1.0)]), forms)[0]
            mass = asked[YES] + asked[NO]
            probes.append(
                {
                    "id": example.id,
                    "image": asdict(example.image),
                    "prompt": example.prompt,
                    "prefix": prefix,
                    "p_yes": asked[YES] / mass if mass else None,
                    "verdict_mass": mass,
                }
            )
        return probes

    # -- with the others ---------------------------------------------------------------------------------------

    def _gather(self, mine: Any) -> list[Any]:
        import torch.distributed as dist

        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, mine)
        return parts

    def _write(self, path: Path, value: object) -> None:
        if self.rank == 0:
            write_json(path, value)

    def _lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = round(now - self._mark, 3)
        self._mark = now
