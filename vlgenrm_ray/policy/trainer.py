"""Training loop of one worker: wait for rollouts, update policy and critic, send the new weights to the engines.

All workers run the loop together. Rank 0 alone talks to the rollout orchestrator and writes logs. Read
`_PolicyTrainer._train_step` first. Offline algorithms take their steps on preference pairs instead
(`_train_on_pairs`), and use engines, if at all, to answer held-out questions.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines.vlm_batch import TextError, VlmEncoder
from vlgenrm_ray.errors import StageError, VlGenRMError
from vlgenrm_ray.policy.batching import TrainingSamples, build_training_samples, plan_micro_batches
from vlgenrm_ray.policy.client import RolloutClient
from vlgenrm_ray.policy.config import PolicyConfig
from vlgenrm_ray.policy.evaluation import decoding_metrics, evaluation_metrics, pair_metrics
from vlgenrm_ray.policy.guards import TrainingHistory
from vlgenrm_ray.policy.preference_pairs import PreferenceUpdater
from vlgenrm_ray.policy.rollouts import NO_ROLLOUTS, RolloutBatch
from vlgenrm_ray.policy.run_logging import RunLogger, RunPaths, rollout_metrics
from vlgenrm_ray.policy.updater import PolicyUpdater
from vlgenrm_ray.policy.worker_context import WorkerContext
from vlgenrm_ray.records import Question

_POLICY, _CRITIC, _PROGRESS = "policy", "critic", "progress.json"
"""Contents of a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyTrainerJob:
    """Arguments of every training worker."""

    config: PolicyConfig
    base: Path
    """Model folder of the initial policy."""
    paths: RunPaths
    questions: StageFolder
    """Questions to train on."""
    held_out: StageFolder
    """Questions to evaluate on."""
    orchestrator: str
    """Name of the run's rollout orchestrator actor; there is none if the run uses no engines."""


def train_worker(job: PolicyTrainerJob) -> None:
    """Run the training loop; entry point of a Ray Train worker.

    Raises:
        VlGenRMError: The training failed; the error is also written to `job.paths.failure`.
    """
    if job.paths.failure.exists():
        return
    try:
        _PolicyTrainer(job).run()
    except (VlGenRMError, ImageError, TextError) as error:
        # Ray Train starts crashed workers again. This error would only be repeated, so they then return at once.
        write_json(job.paths.failure, {"kind": type(error).__name__, "message": str(error)})
        raise


class _PolicyTrainer:
    """Training loop of one worker."""

    def __init__(self, job: PolicyTrainerJob) -> None:
        import torch

        from vlgenrm_ray.engines.critic import Critic
        from vlgenrm_ray.engines.deepspeed import Learner

        self.job = job
        self.config = config = job.config
        self.context = WorkerContext.current()
        torch.set_num_threads(config.num_cpus)
        self.learner: Learner = Learner(
            job.base, config.engine, seed=config.seed, keep_reference=config.algorithm.needs_reference
        )
        self.critic: Critic | None = (
            Critic(job.base, config.critic, seed=config.seed) if config.algorithm.uses_critic else None
        )
        # An image must become the same number of tokens here as in the rollout engine.
        self.encoder = VlmEncoder(job.base, config.images, image_processor=config.rollouts.engine.image_processor)
        self.updater = PolicyUpdater(config, self.encoder, self.learner, self.critic, rank=self.context.rank)
        exported = {"trained_only": config.engine.freeze_vision, "training_dtype": True}
        self._client: RolloutClient | None = None
        if config.uses_engines:
            self._client = RolloutClient(
                self.context,
                job.orchestrator,
                partial(self.learner.weights, **exported),
                partial(self.learner.tensor_specs, **exported),
                backend=config.sync_backend(),
                sync_timeout_s=config.sync.timeout_s,
                retries=config.retries,
            )
        self.preferences: PreferenceUpdater | None = None
        if config.algorithm.is_offline:
            self.preferences = PreferenceUpdater(
                config,
                self.encoder,
                self.learner,
                self.context,
                questions=list(job.questions.records(Question)),
                held_out=list(job.held_out.records(Question)),
            )
        self.logger = RunLogger(job.paths, config, enabled=self.context.is_rank0)
        self.history = TrainingHistory()
        self.compared_steps: set[int] = set()
        """Numbers of steps after which this process compared ways of decoding."""

    @property
    def client(self) -> RolloutClient:
        """Client of the rollout orchestrator, in a run that uses engines."""
        assert self._client is not None
        return self._client

    def run(self) -> None:
        """Train from the last checkpoint, if there is one, to the last step, and export the model."""
        from vlgenrm_ray.engines.export import export

        num_done = self._resume()
        self.logger.start(num_done, total_steps=self.config.steps)
        stop_reason = "" if num_done else self._evaluate(0)
        while num_done < self.config.steps and not stop_reason:
            if self.preferences is None:
                self._train_step(num_done)
            else:
                self._train_on_pairs(self.preferences, num_done)
            num_done += 1
            if num_done % self.config.evaluation.every == 0 or num_done == self.config.steps:
                stop_reason = self._evaluate(num_done)
            if not stop_reason:
                self._save_checkpoint(num_done)
        if stop_reason:
            self._compare_decoding(num_done)
        export(self.learner, self.job.paths.model)
        self.logger.finish(steps=num_done, stopped=stop_reason)

    # -- one step ----------------------------------------------------------------------------------------------

    def _train_step(self, step: int) -> None:
        """Train one step, numbered from 0: rollouts -> samples -> micro-batches -> updates -> weight sync -> log."""
        config, timer = self.config, _PhaseTimer()
        one_step_off = config.mode == "one_step_off"
        batch = self.client.fetch("step", step)
        timer.lap("wait")
        if one_step_off and step + 1 < config.steps:
            # The engines sample the next step with the current weights while this one is learned.
            self.client.send_weights(step)
            timer.lap("sync")
            self.client.submit(step + 1)
        samples = build_training_samples(batch.groups, config, self.encoder)
        training_batch = plan_micro_batches(
            samples.samples,
            shared_width=self.learner.shared_width,
            step=step,
            seed=config.seed,
            num_updates=config.updates_per_step,
            tokens_per_batch=config.tokens_per_batch,
            num_workers=self.context.world_size,
        )
        metrics = self.updater.update(training_batch, step=step)
        timer.lap("learn")
        if not one_step_off:
            self.client.send_weights(step + 1)
            timer.lap("sync")
        self._log_step(step + 1, batch, samples, metrics, timer.seconds)

    def _train_on_pairs(self, preferences: PreferenceUpdater, step: int) -> None:
        """Train one step on preference pairs, and log it."""
        timer = _PhaseTimer()
        metrics = preferences.update(step)
        timer.lap("learn")
        self.logger.log_step(
            {
                "step": step + 1,
                "timestamp": round(time.time(), 4),
                "samples": metrics["pairs"] + metrics["pairs_skipped"],
                "failed": metrics["pairs_skipped"],
                **metrics,
                "statuses": {},
                "failures": {},
                "seconds": {name: round(value, 4) for name, value in timer.seconds.items()},
            }
        )

    def _log_step(
        self,
        num_done: int,
        batch: RolloutBatch,
        samples: TrainingSamples,
        metrics: Mapping[str, float],
        seconds: Mapping[str, float],
    ) -> None:
        """Log a step. Raises StageError if too many rewards fail."""
        rollouts = rollout_metrics(batch)
        phases = {**seconds, "sampling": batch.sampling_s, "scoring": batch.scoring_s}
        self.logger.log_step(
            {
                "step": num_done,
                # Seconds since the epoch: the distance between two lines is the full duration of a step.
                "timestamp": round(time.time(), 4),
                **rollouts,
                **samples.metrics(),
                **metrics,
                "statuses": dict(batch.statuses),
                "failures": dict(batch.failure_details),
                "seconds": {name: round(value, 4) for name, value in phases.items()},
            }
        )
        if (num_done - 1) % self.config.samples_every == 0:
            self.logger.log_samples(num_done, batch)
        self.history.add_step(rollouts.get("reward"), samples.usable(batch.statuses))
        # The last checkpoint keeps what was learned; the same command continues from there.
        if reason := self.history.check_reward_failures(self.config.reward_failures):
            details = "".join(f"; {status}: {detail}" for status, detail in batch.failure_details.items())
            raise StageError(f"stage 'policy': stopped after step {num_done}: {reason}{details}")

    # -- evaluation --------------------------------------------------------------------------------------------

    def _evaluate(self, num_done: int) -> str:
        """Evaluate the current weights on held-out questions, and export them if they are the best so far.

        Returns:
            The reason to stop the training, or "".
        """
        from vlgenrm_ray.engines.export import export

        started = time.monotonic()
        config = self.config
        batch = NO_ROLLOUTS
        if config.uses_engines:
            self.client.send_weights(num_done)
            batch = self.client.fetch("evaluation", num_done)
        measure = config.evaluation.measure
        metrics = self.context.broadcast_from_rank0(lambda: evaluation_metrics(batch, measure))
        if self.preferences is not None:
            metrics |= pair_metrics(self.preferences.evaluate(), is_measure=not (measure or config.rewards))
        held_out = metrics["reward"] if metrics["value"] is None and not measure else metrics["value"]
        if held_out is None:
            raise StageError(
                f"stage 'policy': evaluation after step {num_done}: no held-out answer has a value; look at the "
                f"statuses in {self.job.paths.metrics} and at evaluation.measure; an offline algorithm without measure "
                "and rewards needs held-out pairs"
            )
        line = {"step": num_done, "held_out": held_out, "training_reward": self.history.training_reward} | metrics
        if self.context.broadcast_from_rank0(lambda: self.logger.is_best(line)):
            export(self.learner, self.job.paths.best)
            self.logger.log_best(line)
        self.history.add_evaluation(
            num_done,
            held_out=held_out,
            reward=metrics["reward"],
            image_reward_gain=metrics["image_reward_gain"],
        )
        warning = self.history.check_image_ablation(config.image_ablation) or ""
        self.logger.log_evaluation(line | {"warning": warning, "seconds": round(time.monotonic() - started, 4)})
        if config.evaluation.compares_decoding(num_done, config.steps):
            self._compare_decoding(num_done)
        # Without an independent measure, hacking of the reward cannot be told from progress.
        hacked = (
            self.history.check_reward_hacking(config.reward_hacking)
            if config.reward_hacking is not None and measure
            else None
        )
        return hacked or (warning if config.image_ablation.stop else "")

    def _compare_decoding(self, num_done: int) -> None:
        """Measure greedy against sampled answers: a policy may only have become more certain, not better."""
        evaluation = self.config.evaluation
        if not (evaluation.measure and evaluation.num_samples) or num_done in self.compared_steps:
            return
        self.compared_steps.add(num_done)
        self.client.send_weights(num_done)
        batch = self.client.fetch_decoding(num_done)
        metrics = self.context.broadcast_from_rank0(lambda: decoding_metrics(batch, evaluation.measure))
        self.logger.log_decoding({"step": num_done} | metrics)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Restore the last checkpoint, if there is one; return the number of steps done."""
        import ray.train
        import torch

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            torch.manual_seed(self.config.seed * 1_000_003 + self.context.rank)
            return 0
        with checkpoint.as_directory() as name:
            folder = Path(name)
            if self.critic is not None:
                self.critic.load(folder / _CRITIC)
            # Last, because it restores the random state as well.
            self.learner.load(folder / _POLICY)
            progress = read_json(folder / _PROGRESS)
        self.history = TrainingHistory.from_state_dict(progress["history"])
        return int(progress["steps"])

    def _save_checkpoint(self, num_done: int) -> None:
        """Save a checkpoint if it is due. The last step is exported instead."""
        import ray.train

        every = self.config.checkpoint_every
        if not every or num_done % every or num_done == self.config.steps:
            return
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.learner.save(folder / _POLICY)
            if self.critic is not None:
                self.critic.save(folder / _CRITIC)
            if self.context.is_rank0:
                history = self.history.state_dict(self.config.reward_failures.window)
                write_json(folder / _PROGRESS, {"steps": num_done, "history": history})
            ray.train.report({"steps": num_done}, checkpoint=ray.train.Checkpoint.from_directory(folder))


class _PhaseTimer:
    """Seconds of a step's phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        """Attribute the time since the last call to a phase."""
        now = time.monotonic()
        self.seconds[phase] = now - self._last
        self._last = now
