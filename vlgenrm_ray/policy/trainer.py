"""What every learning worker does: take a step's samples, learn them, hand the weights back to the engines.

All workers run this file in step; the first one alone talks to the collector and writes what is for others.
"""

import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.data.images import ImageError
from vlgenrm_ray.data.store import read_json, write_json
from vlgenrm_ray.engines.vlm_batch import TextError, VlmEncoder
from vlgenrm_ray.errors import StageError, VlGenRMError
from vlgenrm_ray.policy import batching as lesson
from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.course import Course
from vlgenrm_ray.policy.evaluation import measured
from vlgenrm_ray.policy.job import PolicyJob
from vlgenrm_ray.policy.run_logging import Journal
from vlgenrm_ray.policy.supply import Supply
from vlgenrm_ray.policy.worker_context import Peers

if TYPE_CHECKING:
    from vlgenrm_ray.policy.source import Source

_POLICY, _CRITIC, _PROGRESS = "policy", "critic", "progress.json"
"""What a checkpoint holds."""


def work(job: PolicyJob) -> None:
    """Entry point of a worker under Ray Train."""
    if job.failure.exists():
        return
    try:
        _Worker(job).run()
    except (VlGenRMError, ImageError, TextError) as error:
        # Ray Train would start the workers again; what failed here fails again, so they then return at once.
        write_json(job.failure, {"kind": type(error).__name__, "message": str(error)})
        raise


class _Worker:
    def __init__(self, job: PolicyJob) -> None:
        import torch

        from vlgenrm_ray.engines.critic import Critic
        from vlgenrm_ray.engines.deepspeed import Learner
        from vlgenrm_ray.policy.updater import Study

        self.job = job
        self.config = job.config
        algorithm, seed = self.config.algorithm, self.config.seed
        self.peers = Peers.here()
        torch.set_num_threads(job.config.num_cpus)
        self.learner: Learner = Learner(
            job.base, self.config.engine, seed=seed, keep_reference=algorithm.kl.coefficient > 0
        )
        ppo = algorithm.algorithm == "ppo"
        self.critic: Critic | None = Critic(job.base, self.config.critic, seed=seed) if ppo else None
        # What was sampled by is what is learnt from: a picture must be as many tokens here as there.
        seen_as = self.config.rollouts.engine.image_processor
        encoder = VlmEncoder(job.base, self.config.images, image_processor=seen_as)
        self.study = Study(self.config, encoder, self.learner, self.critic)
        self.supply = Supply(
            self.peers,
            self._source() if self.peers.first else None,
            lambda: self.learner.weights(trained_only=self.config.engine.freeze_vision, as_learnt=True),
        )
        self.journal = Journal(job, writes=self.peers.first)
        self.course = Course()

    def run(self) -> None:
        from vlgenrm_ray.engines.export import export

        done = self._resume()
        self.journal.begin(done, steps=self.config.steps)
        stopped = "" if done else self._evaluate(0)
        while done < self.config.steps and not stopped:
            self._step(done)
            done += 1
            if done % self.config.evaluation.every == 0 or done == self.config.steps:
                stopped = self._evaluate(done)
            if not stopped:
                self._keep(done)
        export(self.learner, self.job.model)
        self.journal.end(steps=done, stopped=stopped)

    def _source(self) -> "Source":
        """The line to the collector, and the shortest way for weights."""
        from vlgenrm_ray.policy import straight
        from vlgenrm_ray.policy.source import Source

        way, config = self.config.way(), self.config
        if way == "object_store":
            return Source(self.job.collector, retries=config.retries)
        outline = partial(self.learner.outline, trained_only=config.engine.freeze_vision, as_learnt=True)
        sender = partial(straight.sender, backend=way, outline=outline, timeout_s=config.sync.timeout_s)
        return Source(self.job.collector, retries=config.retries, sender=sender)

    # -- one step ----------------------------------------------------------------------------------------------

    def _step(self, step: int) -> None:
        """Learn the step that follows so many."""
        marks = _Marks()
        ahead = self.config.mode == "one_step_off"
        collected = self.supply.take("step", step)
        marks.lap("wait")
        if ahead and step + 1 < self.config.steps:
            # Weights first, so that what is sampled meanwhile is by the present ones.
            self.supply.send(step)
            marks.lap("sync")
            self.supply.ask(step + 1)
        figures = self._learn(step, collected)
        marks.lap("learn")
        if not ahead:
            self.supply.send(step + 1)
            marks.lap("sync")
        self._note(step + 1, collected, figures, marks.seconds)

    def _learn(self, step: int, collected: Collected) -> dict[str, float]:
        from vlgenrm_ray.engines.deepspeed_model import NonFiniteStep

        config = self.config
        scored, fates = lesson.pupils(collected.groups, config.algorithm, max_tokens=config.rollouts.max_tokens)
        planned, tokens, misfits = self.study.lesson(scored, fates, step=step, workers=self.peers.number)
        found = {f"groups_{fate}": float(number) for fate, number in fates.items()} | {"misfits": float(misfits)}
        if not planned.updates:
            return found
        lr = self.learner.lr(step, config.steps)
        critic_lr = self.critic.lr(step, config.steps) if self.critic else 0.0
        try:
            taught = self.study.learn(
                planned, tokens, rank=self.peers.rank, lr=lr, critic_lr=critic_lr, warmup=step < config.critic_warmup
            )
        except NonFiniteStep as error:
            raise StageError(
                f"stage 'policy': the {error.what} of step {step + 1} is not finite; lower policy.engine.learning_rate"
                f"{' or policy.critic.learning_rate' if self.critic else ''}, or use precision: fp32"
            ) from error
        return found | taught | {"lr": lr}

    def _note(self, done: int, collected: Collected, figures: Mapping[str, Any], seconds: Mapping[str, float]) -> None:
        """Write what came of a step. Raises StageError where too many rewards fail."""
        own = lesson.figures(collected)
        timed = {**seconds, "sampling": collected.sampling_s, "scoring": collected.scoring_s}
        self.journal.step(
            {
                "step": done,
                # Seconds since the epoch: between two lines lies all of a step.
                "at": round(time.time(), 4),
                **own,
                **figures,
                "statuses": dict(collected.statuses),
                "failures": dict(collected.details),
                "seconds": {name: round(value, 4) for name, value in timed.items()},
            }
        )
        if (done - 1) % self.config.samples_every == 0:
            self.journal.samples(done, collected)
        self.course.step(own.get("reward"), lesson.usable(collected.statuses, int(figures["misfits"])))
        # What was learnt so far stays in the last checkpoint; the same command goes on from there.
        if reason := self.course.failing(self.config.failures):
            told = "".join(f"; {status}: {detail}" for status, detail in collected.details.items())
            raise StageError(f"stage 'policy': stopped after step {done}: {reason}{told}")

    # -- evaluation --------------------------------------------------------------------------------------------

    def _evaluate(self, done: int) -> str:
        """Measure the weights after `done` steps on held-out questions; export the best; why to stop, or ""."""
        from vlgenrm_ray.engines.export import export

        began = time.monotonic()
        self.supply.send(done)
        collected = self.supply.take("evaluate", done)
        evaluation, hacking = self.config.evaluation, self.config.hacking
        line = self.peers.from_first(lambda: measured(collected, evaluation.measure))
        held_out = line["value" if evaluation.measure else "reward"]
        if held_out is None:
            raise StageError(f"stage 'policy': evaluation after step {done}: no held-out answer could be measured")
        line = {"step": done, "held_out": held_out, "training_reward": self.course.training_reward} | line
        if self.peers.from_first(lambda: self.journal.is_best(line)):
            export(self.learner, self.job.best)
            self.journal.best(line)
        self.course.evaluation(done, held_out=held_out, reward=line["reward"], sight=line["sight"])
        doubt = self.course.blind(self.config.sight) or ""
        self.journal.evaluation(line | {"doubt": doubt, "seconds": round(time.monotonic() - began, 4)})
        # By the reward alone nobody can say whether it is hacked.
        hacked = self.course.hacking(hacking) if hacking is not None and evaluation.measure else None
        return hacked or (doubt if self.config.sight.stop else "")

    # -- going on ----------------------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Restore the last checkpoint, if there is one; the number of steps done."""
        import ray.train
        import torch

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            torch.manual_seed(self.config.seed * 1_000_003 + self.peers.rank)
            return 0
        with checkpoint.as_directory() as name:
            folder = Path(name)
            if self.critic is not None:
                self.critic.load(folder / _CRITIC)
            # Last, for it restores the state of chance as well.
            self.learner.load(folder / _POLICY)
            kept = read_json(folder / _PROGRESS)
        self.course = Course.of(kept["course"])
        return int(kept["steps"])

    def _keep(self, done: int) -> None:
        """A checkpoint every so many steps; the last step is followed by the export, not by a checkpoint."""
        import ray.train

        every = self.config.checkpoint_every
        if not every or done % every or done == self.config.steps:
            return
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.learner.save(folder / _POLICY)
            if self.critic is not None:
                self.critic.save(folder / _CRITIC)
            if self.peers.first:
                kept = {"steps": done, "course": self.course.kept(self.config.failures.window)}
                write_json(folder / _PROGRESS, kept)
            ray.train.report({"steps": done}, checkpoint=ray.train.Checkpoint.from_directory(folder))


class _Marks:
    """Seconds of a step's phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = now - self._mark
        self._mark = now
