"""One step's learning: from samples that count to optimizer steps of the policy, and of its critic. Collective."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.batch_plan import MicroBatch, Step
from vlgenrm_ray.engines.vlm_batch import Batch, TextError, Tokens, VlmEncoder
from vlgenrm_ray.policy.advantages import gae, moments, whitened
from vlgenrm_ray.policy.batching import Lesson, Pupil
from vlgenrm_ray.policy.lesson_plan import plan
from vlgenrm_ray.policy.losses import Loss, ResponseTokens, denominator, policy_loss, value_loss
from vlgenrm_ray.policy.shaping import token_rewards
from vlgenrm_ray.policy.tally import Tally
from vlgenrm_ray.policy.training_config import PolicyConfig

if TYPE_CHECKING:
    import torch

    from vlgenrm_ray.engines.critic import Critic
    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.log_probs import LogProbs


@dataclass(slots=True)
class _Part:
    """One micro-batch of this worker, with what is known of its tokens before the step; all on the learner's device."""

    batch: Batch
    sampled: "torch.Tensor"
    """[B, T]: log-probabilities by the engine."""
    advantages: "torch.Tensor"
    """[B], or [B, T] with a critic."""
    rewards: "torch.Tensor"
    """[B]."""
    old: "torch.Tensor | None" = None
    reference: "torch.Tensor | None" = None
    values: "torch.Tensor | None" = None
    returns: "torch.Tensor | None" = None


class Study:
    """Learns steps, on one worker of several."""

    def __init__(self, config: PolicyConfig, encoder: VlmEncoder, learner: "Learner", critic: "Critic | None") -> None:
        self.config = config
        self.encoder = encoder
        self.learner = learner
        self.critic = critic

    def lesson(
        self, pupils: Sequence[Pupil], fates: Any, *, step: int, workers: int
    ) -> tuple[Lesson, list[Tokens], int]:
        """The step's plan, the same on all workers; each pupil's tokens; how many samples do not fit a micro-batch."""
        kept: list[Pupil] = []
        tokens: list[Tokens] = []
        for pupil in pupils:
            rollout = pupil.rollout
            try:
                made = self.encoder.rollout(rollout.question.image, rollout.question.text, rollout.ids)
            # An engine that lets image tokens through; its sample would be read as another prompt.
            except TextError:
                continue
            if len(made) <= self.config.tokens_per_batch:
                kept.append(pupil)
                tokens.append(made)
        rows, updates = plan(
            tokens,
            [pupil.rollout.question.image.sha256 for pupil in kept],
            width=self.learner.shared_width,
            step=step,
            seed=self.config.seed,
            updates=self.config.updates_per_step,
            tokens_per_batch=self.config.tokens_per_batch,
            workers=workers,
        )
        lesson = Lesson(pupils=tuple(kept), rows=rows, updates=updates, fates=fates)
        return lesson, tokens, len(pupils) - len(kept)

    def learn(
        self, lesson: Lesson, tokens: Sequence[Tokens], *, rank: int, lr: float, critic_lr: float, warmup: bool
    ) -> dict[str, float]:
        """Take the lesson's optimizer steps; the step's figures, over all workers. Raises NonFiniteStep.

        `warmup`: the critic alone learns.
        """
        parts = [[self._part(lesson, tokens, micro) for micro in update.of(rank)] for update in lesson.updates]
        self._before(parts, updates=len(lesson.updates))
        tallies: list[Tally] = []
        found: dict[str, float] = {}
        for update, mine in zip(lesson.updates, parts, strict=True):
            over = self._denominator(lesson, update)
            if self.critic is not None:
                found |= self._teach_critic(mine, over, critic_lr, tallies)
            if not warmup:
                found |= self._teach_policy(mine, over, lr, tallies)
        return found | self._together(tallies)

    # -- parts -------------------------------------------------------------------------------------------------

    def _part(self, lesson: Lesson, tokens: Sequence[Tokens], micro: MicroBatch) -> _Part:
        import torch

        pupils = [lesson.pupils[member] for member in micro.members]
        samples = [
            (tokens[m], pupil.rollout.question.image, 1.0) for m, pupil in zip(micro.members, pupils, strict=True)
        ]
        batch = self.encoder.batch(samples, counts=micro.counts, families=lesson.families(micro))
        sampled = torch.zeros_like(batch.weights)
        for i, ((made, _, _), pupil) in enumerate(zip(samples, pupils, strict=True)):
            sampled[i, made.num_prompt : len(made)] = torch.tensor(pupil.rollout.logprobs)
        device = self.learner.device
        return _Part(
            batch=batch.to(device),
            sampled=sampled.to(device),
            advantages=torch.tensor([pupil.advantage for pupil in pupils], device=device),
            rewards=torch.tensor([pupil.reward for pupil in pupils], device=device),
        )

    def _before(self, parts: Sequence[Sequence[_Part]], *, updates: int) -> None:
        """What must be known with the weights that the step begins with."""
        every = [part for mine in parts for part in mine]
        batches = [part.batch for part in every]
        temperature, kl = self.config.rollouts.temperature, self.config.algorithm.kl
        # With a single update the log-probabilities it computes anyway are the old ones.
        if updates > 1 or self.critic is not None:
            for part, old in zip(every, self.learner.logprobs(batches, temperature=temperature), strict=True):
                part.old = old
        if kl.coefficient:
            told = self.learner.logprobs(batches, reference=True, temperature=temperature)
            for part, reference in zip(every, told, strict=True):
                part.reference = reference
        if self.critic is not None:
            for part, values in zip(every, self.critic.values(batches), strict=True):
                part.values = values
            self._estimate(every)

    def _estimate(self, parts: Sequence[_Part]) -> None:
        """Advantages and returns of tokens, by the critic."""
        import torch

        algorithm = self.config.algorithm
        whole = torch.zeros(3, dtype=torch.float64, device=self.learner.device)
        for part in parts:
            mask = part.batch.targets
            assert part.old is not None
            assert part.values is not None
            rewards = token_rewards(part.rewards, part.old, part.reference, mask, algorithm.kl)
            ppo = algorithm.ppo
            part.advantages, part.returns = gae(rewards, part.values, mask, gamma=ppo.gamma, gae_lambda=ppo.gae_lambda)
            if part.batch.counts:
                whole += moments(part.advantages, mask)
        torch.distributed.all_reduce(whole)
        if algorithm.ppo.whiten:
            for part in parts:
                part.advantages = whitened(part.advantages, part.batch.targets, whole)

    # -- optimizer steps ---------------------------------------------------------------------------------------

    def _teach_policy(self, parts: Sequence[_Part], over: float, lr: float, tallies: list[Tally]) -> dict[str, float]:
        algorithm = self.config.algorithm

        def loss(number: int, batch: Batch, tokens: "LogProbs") -> "torch.Tensor":
            part = parts[number]
            made = policy_loss(
                ResponseTokens(
                    mask=batch.targets,
                    new=tokens.values,
                    old=tokens.values.detach() if part.old is None else part.old,
                    advantages=part.advantages,
                    sampled=part.sampled,
                    reference=part.reference,
                    entropy=tokens.entropy,
                ),
                algorithm,
                over,
            )
            return _counted(made, batch, tallies)

        done = self.learner.learn(
            [part.batch for part in parts],
            loss,
            lr=lr,
            temperature=self.config.rollouts.temperature,
            entropy="gradient" if algorithm.entropy_coefficient else "value",
        )
        return {"loss": done.loss, "grad_norm": done.grad_norm}

    def _teach_critic(self, parts: Sequence[_Part], over: float, lr: float, tallies: list[Tally]) -> dict[str, float]:
        assert self.critic is not None

        def loss(number: int, batch: Batch, values: "torch.Tensor") -> "torch.Tensor":
            part = parts[number]
            assert part.values is not None
            assert part.returns is not None
            made = value_loss(values, part.values, part.returns, batch.targets, self.config.algorithm, over)
            return _counted(made, batch, tallies)

        done = self.critic.learn([part.batch for part in parts], loss, lr=lr)
        return {"value_loss": done.loss, "value_grad_norm": done.grad_norm}

    def _denominator(self, lesson: Lesson, update: Step) -> float:
        num_tokens, num_sequences = lesson.counts(update)
        return denominator(
            self.config.algorithm.normalise,
            num_tokens=num_tokens,
            num_sequences=num_sequences,
            max_tokens=self.config.rollouts.max_tokens,
        )

    def _together(self, tallies: Sequence[Tally]) -> dict[str, float]:
        """The tallies of all micro-batches and workers, as figures."""
        import torch

        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, [tally.cpu() for tally in tallies])
        found: dict[frozenset[str], Tally] = {}
        for tally in (tally for part in parts for tally in part):
            names = frozenset(tally.sums)
            found[names] = found[names] + tally if names in found else tally
        return {name: value for tally in found.values() for name, value in tally.figures().items()}


def _counted(made: Loss, batch: Batch, tallies: list[Tally]) -> "torch.Tensor":
    if batch.counts:
        tallies.append(made.tally)
    return made.value
