"""What every learning worker does: take a step's samples, learn them, hand the weights back to the engines.

All workers run this file in step; the first one alone talks to the collector and writes what is for others. A version
of the weights is the number of steps learnt, so a sample's staleness is its step less its version.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vlgenrm_ray.engines.vlm_batch import TextError, VlmEncoder
from vlgenrm_ray.errors import StageError, VlGenRMError
from vlgenrm_ray.images import ImageError
from vlgenrm_ray.policy import lesson
from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.job import PolicyJob
from vlgenrm_ray.policy.measure import measured
from vlgenrm_ray.policy.stopping import Evaluation, reward_failures, reward_hacking
from vlgenrm_ray.store import read_json, write_json

_T = TypeVar("_T")


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
        import ray.train
        import torch

        from vlgenrm_ray.engines.critic import Critic
        from vlgenrm_ray.engines.deepspeed import Learner
        from vlgenrm_ray.policy.source import Source
        from vlgenrm_ray.policy.study import Study

        context = ray.train.get_context()
        self.job = job
        self.config = job.config
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        torch.set_num_threads(job.config.num_cpus)
        algorithm, seed = self.config.algorithm, self.config.seed
        self.learner: Learner = Learner(
            job.base, self.config.engine, seed=seed, keep_reference=algorithm.kl.coefficient > 0
        )
        ppo = algorithm.algorithm == "ppo"
        self.critic: Critic | None = Critic(job.base, self.config.critic, seed=seed) if ppo else None
        encoder = VlmEncoder(job.base, self.config.images)
        self.study = Study(self.config, encoder, self.learner, self.critic)
        self.source = Source(job.collector, retries=self.config.retries) if self.rank == 0 else None
        self.sent: int | None = None
        """Version that the engines were last given by this group of workers."""
        self.history: list[Evaluation] = []
        self.rewards: list[float] = []
        """Mean rewards of the steps since the last evaluation."""
        self.statuses: list[Mapping[str, int]] = []
        self.stopped = ""
        """Why the training ended before its last step."""

    def run(self) -> None:
        from vlgenrm_ray.engines.export import export

        start = self._resume()
        self._write(self.job.plan, {"steps": self.config.steps})
        if not start:
            self._evaluate(0)
        for step in range(start, self.config.steps):
            self._step(step)
            done = step + 1
            if done % self.config.evaluation.every == 0 or done == self.config.steps:
                self._evaluate(done)
            if self.stopped:
                break
            self._keep(done)
        export(self.learner, self.job.model)
        self._write(self.job.result, {"steps": done, "stopped": self.stopped})

    # -- one step ----------------------------------------------------------------------------------------------

    def _step(self, step: int) -> None:
        marks = _Marks()
        ahead = self.config.mode == "one_step_off"
        collected = self._take("step", step)
        marks.lap("wait")
        if ahead and step + 1 < self.config.steps:
            # Weights first, so that what is sampled meanwhile is by the present ones.
            self._sync(step)
            marks.lap("sync")
            if self.source is not None:
                self.source.ask("step", step + 1, step)
        figures = self._learn(step, collected)
        marks.lap("learn")
        if not ahead:
            self._sync(step + 1)
            marks.lap("sync")
        self._note(step, collected, figures, marks.seconds)

    def _learn(self, step: int, collected: Collected) -> dict[str, float]:
        from vlgenrm_ray.engines.deepspeed_model import NonFiniteLoss

        config = self.config
        scored, fates = lesson.pupils(collected.groups, config.algorithm, max_tokens=config.rollouts.max_tokens)
        planned, tokens, misfits = self.study.lesson(scored, fates, step=step, workers=self.world_size)
        found = {f"groups_{fate}": float(number) for fate, number in fates.items()} | {"misfits": float(misfits)}
        if not planned.updates:
            return found
        lr = self.learner.lr(step, config.steps)
        critic_lr = self.critic.lr(step, config.steps) if self.critic else 0.0
        try:
            taught = self.study.learn(
                planned, tokens, rank=self.rank, lr=lr, critic_lr=critic_lr, warmup=step < config.critic_warmup
            )
        except NonFiniteLoss as error:
            raise StageError(
                f"stage 'policy': the loss of step {step + 1} is not finite; lower policy.engine.learning_rate, or use "
                "precision: fp32"
            ) from error
        return found | taught | {"lr": lr}

    def _note(
        self, step: int, collected: Collected, figures: Mapping[str, float], seconds: Mapping[str, float]
    ) -> None:
        own = lesson.figures(collected, max_tokens=self.config.rollouts.max_tokens)
        stale = [rollout.step - rollout.version for rollout in collected.rollouts if rollout.ids]
        line = {
            "step": step + 1,
            **own,
            **figures,
            "staleness": sum(stale) / len(stale) if stale else None,
            "statuses": dict(collected.statuses),
            "seconds": {
                **{name: round(value, 4) for name, value in seconds.items()},
                "sampling": round(collected.sampling_s, 4),
                "scoring": round(collected.scoring_s, 4),
            },
        }
        self._append(self.job.metrics, line)
        if step % self.config.samples_every == 0:
            self._append(self.job.samples, _shown(step, collected))
        if "reward" in own:
            self.rewards.append(own["reward"])
        self.statuses.append(collected.statuses)
        # What was learnt so far stays in the last checkpoint; the same command goes on from there.
        if reason := reward_failures(self.statuses, self.config.failures):
            raise StageError(f"stage 'policy': stopped after step {step + 1}: {reason}")

    # -- evaluation --------------------------------------------------------------------------------------------

    def _evaluate(self, done: int) -> None:
        """Measure the weights after `done` steps on held-out questions; export the best; see whether to stop."""
        from vlgenrm_ray.engines.export import export

        self._sync(done)
        collected = self._take("evaluate", done)
        line = self._from_first(lambda: measured(collected, self.config.evaluation.measure))
        training = sum(self.rewards) / len(self.rewards) if self.rewards else line["reward"]
        self._append(self.job.evaluations, {"step": done, "training_reward": training, **line})
        held_out = line["value"] if line["value"] is not None else line["reward"]
        if held_out is None:
            raise StageError(f"stage 'policy': evaluation after step {done}: no held-out answer has a reward")
        if all(held_out > before.held_out for before in self.history):
            export(self.learner, self.job.best)
        reward = training if training is not None else held_out
        self.history.append(Evaluation(step=done, reward=reward, held_out=held_out))
        self.rewards = []
        if self.config.hacking is not None and line["value"] is not None:
            self.stopped = reward_hacking(self.history, self.config.hacking) or ""

    # -- with the engines --------------------------------------------------------------------------------------

    def _take(self, what: str, step: int) -> Collected:
        """What the collector collects for a step; it is given the weights again where it has lost them."""
        while True:
            # The weights that the engines have, or are to have.
            version = step if self.sent is None else self.sent
            found = self._from_first(partial(self._told, what, step, version))
            if found is not None:
                self.sent = version
                return found
            self.sent = None
            self._sync(step)

    def _told(self, what: str, step: int, version: int) -> Collected | None:
        return self.source.told(what, step, version) if self.source else None

    def _sync(self, version: int) -> None:
        """Give the engines the present weights, unless they have them."""
        if self.sent == version:
            return
        weights = self.learner.weights(trained_only=self.config.engine.freeze_vision, as_learnt=True)
        if self.source is None:
            # To take part in gathering them.
            for _ in weights:
                continue
        self._from_first(lambda: self.source.send(weights, version) if self.source else None)
        self.sent = version

    # -- going on ----------------------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Restore the last checkpoint, if there is one; return the number of steps done."""
        import ray.train
        import torch

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            torch.manual_seed(self.config.seed * 1_000_003 + self.rank)
            done = 0
        else:
            with checkpoint.as_directory() as folder:
                self.learner.load(Path(folder) / "policy")
                if self.critic is not None:
                    self.critic.load(Path(folder) / "critic")
                kept = read_json(Path(folder) / "progress.json")
            done = int(kept["steps"])
            self.history = [Evaluation(**one) for one in kept["history"]]
            self.rewards, self.statuses = kept["rewards"], kept["statuses"]
        for path, before in ((self.job.metrics, 1), (self.job.evaluations, 1), (self.job.samples, 0)):
            self._forget(path, done, before)
        return done

    def _forget(self, path: Path, done: int, first: int) -> None:
        """Take away lines of what is about to be done again."""
        if self.rank or not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        last = done if first else done - 1
        kept = [line for line in lines if done and json.loads(line)["step"] <= last]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def _keep(self, done: int) -> None:
        """A checkpoint every so many steps; the last step is followed by the export, not by a checkpoint."""
        import ray.train

        every = self.config.checkpoint_every
        if not every or done % every or done == self.config.steps:
            return
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.learner.save(folder / "policy")
            if self.critic is not None:
                self.critic.save(folder / "critic")
            kept = {
                "steps": done,
                "history": [asdict(one) for one in self.history],
                "rewards": self.rewards,
                "statuses": [dict(one) for one in self.statuses[-self.config.failures.window :]],
            }
            self._write(folder / "progress.json", kept)
            ray.train.report({"steps": done}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    # -- with the others ---------------------------------------------------------------------------------------

    def _from_first(self, ask: Callable[[], _T]) -> _T:
        """What `ask` gives the first worker, on all workers; what it raises there, all raise."""
        import torch.distributed as dist

        told: list[Any] = [None, None]
        if self.rank == 0:
            try:
                told[0] = ask()
            except VlGenRMError as error:
                told[1] = error
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        found: _T = told[0]
        return found

    def _append(self, path: Path, line: Mapping[str, Any]) -> None:
        if self.rank == 0:
            with path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")

    def _write(self, path: Path, value: object) -> None:
        if self.rank == 0:
            write_json(path, value)


class _Marks:
    """Seconds of a step's phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = now - self._mark
        self._mark = now


def _shown(step: int, collected: Collected) -> dict[str, Any]:
    """One question of a step, with all that came of it."""
    group = collected.groups[0]
    question = group[0].question
    answers = [
        {"text": r.text, "reward": r.reward, "status": r.status, "critique": r.critique, "finish": r.finish}
        for r in group
    ]
    return {"step": step, "image": question.image.uri, "question": question.text, "answers": answers}
