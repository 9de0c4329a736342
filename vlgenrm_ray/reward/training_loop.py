"""Training worker: measures and plans the examples, trains, writes checkpoints, exports the model.

All workers run this code in lockstep under Ray Train. Rank 0 writes the files (metrics, result).
"""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlgenrm_ray.data.faults import MAX_DROPPED, FaultCounter, fault_of
from vlgenrm_ray.data.files import append_line, read_json, write_json
from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.data.mapped_records import MappedRecords
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines.checkpoint_files import find_damage, write_checksums
from vlgenrm_ray.engines.vlm_batch import Batch, TextError, Tokens, VlmEncoder
from vlgenrm_ray.errors import InputError, StageError, VlGenRMError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.verdict import A_OR_B, PAIR_VERDICTS, YES_NO
from vlgenrm_ray.records import Dropped, Example, ImageRef
from vlgenrm_ray.reward.training_config import TrainingConfig
from vlgenrm_ray.reward.training_data import (
    MeasuredExample,
    TrainingStep,
    measure_examples,
    plan_steps,
    probe_prefix,
    token_weight,
    total_steps,
)

if TYPE_CHECKING:
    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.deepspeed_model import StepResult

R = TypeVar("R")

BatchRow = tuple[Tokens, Sequence[ImageRef], float]
"""Tokens, images, and weight of each completion token."""


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Inputs of the workers, and the files they write."""

    config: TrainingConfig
    base: Path
    examples: StageFolder
    """Selected examples or, for the objective `bradley_terry`, preferences."""
    target: Path
    judge: JudgeConfig
    """Judge in training, of which a discriminative one takes its prompt."""
    max_dropped: float = MAX_DROPPED
    """Largest share of the examples that may be dropped because of a fault."""

    @property
    def model(self) -> Path:
        """Exported Hugging Face folder; complete if it exists."""
        return self.target / "model"

    @property
    def metrics(self) -> Path:
        """One JSON line per optimizer step."""
        return self.target / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """Result of the workers, the last file they write."""
        return self.target / "result.json"

    @property
    def mapped_examples(self) -> Path:
        """Examples as a file that the workers map into memory; removed when the training is finished."""
        return self.target / "examples.arrow"

    @property
    def failure(self) -> Path:
        """Failure that a restart would repeat."""
        return self.target / "failure.json"

    @property
    def messages(self) -> Path:
        """Lines for the console."""
        return self.target / "messages.txt"

    @property
    def plan(self) -> Path:
        """Number of steps and examples."""
        return self.target / "plan.json"


def train_worker(job: TrainingJob) -> None:
    """Run one worker. Entry point under Ray Train."""
    run_worker(job, TrainingWorker)


def run_worker(job: TrainingJob, worker: "type[TrainingWorker]") -> None:
    """Run one worker of a class; record a failure that a restart would repeat."""
    if job.failure.exists():
        return
    try:
        worker(job).run()
    except (VlGenRMError, ImageError, TextError) as error:
        # Ray Train restarts the workers. The failure would repeat, so restarted workers return at once.
        kind = "InputError" if isinstance(error, InputError) else "StageError"
        write_json(job.failure, {"kind": kind, "message": str(error)})
        raise


class TrainingWorker:
    """One rank of the training on completions. Subclasses train on other data and another loss."""

    rows_per_example = 1
    """Rows of a batch that belong to one example."""

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
        self._phase_started_at = time.monotonic()
        self.encoder = VlmEncoder(job.base, job.config.images, image_processor=job.config.image_processor)
        self.examples = self.read_examples(job)

    def run(self) -> None:
        from vlgenrm_ray.engines.deepspeed import Learner
        from vlgenrm_ray.engines.export import export

        self._end_phase("import")
        measured, dropped = self._measure()
        total = total_steps(measured, self.config)
        self._write(self.job.plan, {"steps": total, "examples": len(measured)})
        self._end_phase("measure")
        learner = Learner(self.job.base, self.config.engine, seed=self.config.seed)
        self._end_phase("load")
        start = self._resume(learner)
        with ThreadPoolExecutor(1) as prefetcher:
            for step, batches in self._prefetch_batches(measured, start, prefetcher):
                self._train_step(learner, measured, step, batches, total)
                self._save_checkpoint(learner, step.number + 1, total)
        self._end_phase("learn")
        probes = self.probe(learner, measured)
        export(learner, self.job.model, self.exported_texts())
        self._end_phase("export")
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

    # -- preparation ------------------------------------------------------------------------------------------------

    def _measure(self) -> tuple[list[MeasuredExample], list[Dropped]]:
        """Measure this worker's share of the examples and gather the shares of all workers."""
        indices = range(self.rank, len(self.examples), self.world_size)
        parts = self._gather(self.measure(indices))
        measured = sorted((m for part, _ in parts for m in part), key=lambda m: m.index)
        dropped = sorted((d for _, part in parts for d in part), key=lambda d: d.id)
        faults = FaultCounter("training", num_rows=len(self.examples), max_dropped=self.job.max_dropped)
        faults.add(drop for drop in dropped if fault_of([drop]))
        faults.check()
        if not measured:
            raise StageError(
                f"stage 'training': none of {len(self.examples)} examples can be trained on"
                + (f"; the first was dropped as {dropped[0].reason}: {dropped[0].detail}" if dropped else "")
            )
        return measured, dropped

    def _resume(self, learner: "Learner") -> int:
        """Restore the last checkpoint, if there is one; return the number of completed steps."""
        import ray.train
        import torch

        checkpoint = ray.train.get_checkpoint()
        num_done = 0
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                problems = [problem for problem in self._gather(find_damage(Path(folder), self.rank)) if problem]
                if not problems:
                    learner.load(Path(folder))
                    num_done = int(read_json(Path(folder) / "progress.json")["steps"])
                elif self.rank == 0:
                    append_line(self.job.messages, f"training begins again from its base: checkpoint {problems[0]}")
        if not num_done:
            torch.manual_seed(self.config.seed * 1_000_003 + self.rank)
        if self.rank == 0:
            # Steps after the checkpoint are about to be repeated, so their lines are removed.
            lines = self.job.metrics.read_text().splitlines()[:num_done] if self.job.metrics.exists() else []
            self.job.metrics.write_text("".join(line + "\n" for line in lines))
        return num_done

    # -- training ----------------------------------------------------------------------------------------------

    def _prefetch_batches(
        self, measured: Sequence[MeasuredExample], start: int, prefetcher: ThreadPoolExecutor
    ) -> Iterator[tuple[TrainingStep, list[Batch]]]:
        """Yield each step with this worker's tensors; the next step's are built during the current step."""
        pending = None
        for step in plan_steps(measured, self.config, start):
            batches = prefetcher.submit(self._build_batches, measured, step)
            if pending is not None:
                yield pending[0], pending[1].result()
            pending = (step, batches)
        if pending is not None:
            yield pending[0], pending[1].result()

    def _build_batches(self, measured: Sequence[MeasuredExample], step: TrainingStep) -> list[Batch]:
        batches = []
        for micro in step.plan.of(self.rank):
            rows: list[BatchRow] = []
            for member in micro.members:
                weighted = step.epoch_examples[member]
                weight = token_weight(weighted, measured, self.config)
                rows += self.encode_rows(self.examples[measured[weighted.index].index], weight)
            batches.append(self.encoder.batch(rows, counts=micro.counts))
        return batches

    def _train_step(
        self,
        learner: "Learner",
        measured: Sequence[MeasuredExample],
        step: TrainingStep,
        batches: list[Batch],
        total: int,
    ) -> None:
        from vlgenrm_ray.engines.deepspeed_model import NonFiniteGradient, NonFiniteLoss

        started_at = time.monotonic()
        lr = learner.lr(step.number, total)
        try:
            result = self.take_step(learner, batches, denominator=step.denominator, lr=lr)
        except NonFiniteLoss as error:
            micro = step.plan.of(self.rank)
            members = [micro[batch].members[row // self.rows_per_example] for batch, row in error.examples]
            mine = [self.examples[measured[step.epoch_examples[m].index].index].id for m in members]
            ids = sorted({id for part in self._gather(mine) for id in part})
            raise StageError(
                f"stage 'training': the loss of step {step.number + 1} is not finite, at examples {ids[:8]}; "
                "lower training.engine.learning_rate, use precision = fp32, or look at these examples"
            ) from error
        except NonFiniteGradient as error:
            raise StageError(
                f"stage 'training': the gradient of step {step.number + 1} is not finite; "
                "lower training.engine.learning_rate, or use precision = fp32"
            ) from error
        seconds = time.monotonic() - started_at
        line = {
            "step": step.number + 1,
            "epoch": step.epoch,
            "loss": result.loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "examples": len(step.plan.members()),
            "tokens": step.num_tokens,
            "tokens_per_s": round(step.num_tokens / seconds, 1),
            "seconds": round(seconds, 4),
        }
        if self.rank == 0:
            with self.job.metrics.open("a") as out:
                out.write(json.dumps(line) + "\n")

    def _save_checkpoint(self, learner: "Learner", num_done: int, total: int) -> None:
        """Write a checkpoint every `checkpoint_every` steps. The last step needs none: the export follows."""
        import ray.train

        if not self.config.checkpoint_every or num_done % self.config.checkpoint_every or num_done == total:
            return
        with tempfile.TemporaryDirectory() as folder:
            learner.save(Path(folder))
            write_checksums(Path(folder), self.rank)
            self._write(Path(folder) / "progress.json", {"steps": num_done})
            ray.train.report({"steps": num_done}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    # -- data and loss ----------------------------------------------------------------------------------------------

    def read_examples(self, job: TrainingJob) -> Any:
        """Return the examples as a sequence, in the same order on all workers."""
        return self.map_records(Example)

    def map_records(self, cls: type[R]) -> MappedRecords[R]:
        """Open the records of the stage `job.examples`, which rank 0 writes as one file that all workers map."""
        if self.rank == 0:
            # Anew in each attempt: the paths of images in it are absolute, and a run folder may be moved between two.
            MappedRecords.write(cls, self.job.examples, self.job.mapped_examples)
        self._gather(None)
        return MappedRecords(cls, self.job.mapped_examples)

    def measure(self, indices: range) -> tuple[list[MeasuredExample], list[Dropped]]:
        """Measure the examples at `indices`; drop those that cannot be trained on."""
        return measure_examples(self.examples, indices, self.encoder, self.config.images, self.config.tokens_per_batch)

    def encode_rows(self, example: Any, weight: float) -> "list[BatchRow]":
        """Return the `rows_per_example` rows of an example: tokens, images and weight of each token."""
        tokens = self.encoder.encode(example.images, example.prompt, example.completion)
        return [(tokens, example.images, weight)]

    def take_step(self, learner: "Learner", batches: Sequence[Batch], *, denominator: float, lr: float) -> "StepResult":
        """Take one optimizer step on this worker's micro-batches."""
        return learner.step(batches, denominator=denominator, lr=lr)

    # -- export -------------------------------------------------------------------------------------------------

    def exported_texts(self) -> dict[str, str]:
        """Return name and content of the files that describe the exported model as a judge."""
        return {}

    def probe(self, learner: "Learner", measured: Sequence[MeasuredExample]) -> list[dict[str, Any]]:
        """Compute rewards of some training examples with the trained model, before the export."""
        probes: list[dict[str, Any]] = []
        for m in measured:
            example = self.examples[m.index]
            prefix = probe_prefix(example)
            if len(probes) == self.config.num_probes or prefix is None:
                continue
            words = A_OR_B if example.label in PAIR_VERDICTS else YES_NO
            ids = self.encoder.vocabulary.token_ids(words.tracked)
            tokens = self.encoder.encode_prefix(example.images, example.prompt, prefix)
            probabilities = learner.word_probabilities(self.encoder.batch([(tokens, example.images, 1.0)]), ids)[0]
            mass = sum(probabilities.values())
            p_better = probabilities[words.better] + (probabilities[words.tie] / 2 if words.tie else 0.0)
            probes.append(
                {
                    "id": example.id,
                    "images": [asdict(image) for image in example.images],
                    "prompt": example.prompt,
                    "prefix": prefix,
                    "p_yes": p_better / mass if mass else None,
                    "verdict_mass": mass,
                }
            )
        return probes

    # -- collectives ---------------------------------------------------------------------------------------

    def _gather(self, mine: Any) -> list[Any]:
        """Collect one object of every rank on every rank, in rank order."""
        import torch.distributed as dist

        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, mine)
        return parts

    def _write(self, path: Path, value: object) -> None:
        """Write JSON on rank 0."""
        if self.rank == 0:
            write_json(path, value)

    def _end_phase(self, name: str) -> None:
        """Record the seconds since the previous phase ended under `name`."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._phase_started_at, 3)
        self._phase_started_at = now
