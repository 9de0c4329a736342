"""Updates of policy and critic from one step's training batch. Collective: all workers call it together.

`PolicyUpdater.update` prepares micro-batches, computes old and reference log-probabilities and values,
and takes the optimizer steps of the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.batch_plan import MicroBatch, Step
from vlgenrm_ray.engines.vlm_batch import Batch, VlmEncoder
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.policy.advantages import gae, token_moments, token_rewards, whiten
from vlgenrm_ray.policy.algorithms import resolve_algorithm
from vlgenrm_ray.policy.batching import TrainingBatch
from vlgenrm_ray.policy.config import PolicyConfig
from vlgenrm_ray.policy.losses import Loss, MetricAccumulator, ResponseTokens, loss_denominator, value_loss

if TYPE_CHECKING:
    import torch

    from vlgenrm_ray.engines.critic import Critic
    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.deepspeed_model import NonFiniteStep
    from vlgenrm_ray.engines.log_probs import LogProbs


@dataclass(slots=True)
class _MicroBatchTensors:
    """One micro-batch of this worker, with the tensors that its update needs, on the training device."""

    batch: Batch
    sampled: "torch.Tensor"
    """Log-probabilities by the engine, [B, T]."""
    advantages: "torch.Tensor"
    """Advantages of samples [B], or of tokens [B, T] with a critic or with rewards of segments."""
    rewards: "torch.Tensor"
    """Rewards of the samples [B], or of tokens [B, T] with rewards of segments."""
    old: "torch.Tensor | None" = None
    reference: "torch.Tensor | None" = None
    values: "torch.Tensor | None" = None
    returns: "torch.Tensor | None" = None


class PolicyUpdater:
    """Optimizer steps of the policy, and of its critic, on one training worker."""

    def __init__(
        self, config: PolicyConfig, encoder: VlmEncoder, learner: "Learner", critic: "Critic | None", *, rank: int
    ) -> None:
        """Create the updater of one worker.

        Args:
            config: Settings of the training.
            encoder: Encoder of prompts and images.
            learner: Training engine of the policy.
            critic: Training engine of the critic; None for algorithms without one.
            rank: Rank of this worker.
        """
        self.config = config
        self.encoder = encoder
        self.learner = learner
        self.critic = critic
        self.rank = rank
        self._algorithm = resolve_algorithm(config.algorithm.algorithm)

    def update(self, batch: TrainingBatch, *, step: int) -> dict[str, float]:
        """Take the optimizer steps of a training batch.

        Args:
            batch: Samples and plan of the step, equal on all workers.
            step: Number of steps done before; decides the learning rate and the critic's warm-up.

        Returns:
            Metrics of the step over all workers; empty if the batch has no samples.

        Raises:
            StageError: Loss or gradient is not finite.
        """
        from vlgenrm_ray.engines.deepspeed_model import NonFiniteStep

        if not batch.updates:
            return {}
        try:
            return self._update(batch, step)
        except NonFiniteStep as error:
            raise non_finite_error(error, step, has_critic=self.critic is not None) from error

    def _update(self, batch: TrainingBatch, step: int) -> dict[str, float]:
        lr = self.learner.lr(step, self.config.steps)
        critic_lr = self.critic.lr(step, self.config.steps) if self.critic else 0.0
        updates = [[self._to_tensors(batch, micro) for micro in update.of(self.rank)] for update in batch.updates]
        self._compute_old_values(updates)
        accumulators: list[MetricAccumulator] = []
        metrics: dict[str, float] = {"lr": lr}
        for update, micro_batches in zip(batch.updates, updates, strict=True):
            denominator = self._denominator(batch, update)
            if self.critic is not None:
                metrics |= self._update_critic(micro_batches, denominator, critic_lr, accumulators)
            if step >= self.config.critic_warmup:
                metrics |= self._update_policy(micro_batches, denominator, lr, accumulators)
        return metrics | gather_metrics(accumulators)

    # -- preparation -------------------------------------------------------------------------------------------

    def _to_tensors(self, batch: TrainingBatch, micro: MicroBatch) -> _MicroBatchTensors:
        import torch

        samples = [batch.samples[member] for member in micro.members]
        inputs = self.encoder.batch(
            [(sample.tokens, sample.rollout.question.images, 1.0) for sample in samples],
            counts=micro.counts,
            shared_rows=batch.shared_rows(micro),
        )

        def of_tokens(values: Sequence[Sequence[float]]) -> torch.Tensor:
            """Place values of the samples' response tokens in a tensor [B, T]; 0 where there are none."""
            placed = torch.zeros_like(inputs.weights)
            for i, (sample, row) in enumerate(zip(samples, values, strict=True)):
                placed[i, sample.tokens.num_prompt : len(sample.tokens)] = torch.tensor(row)
            return placed

        sampled = of_tokens([sample.rollout.logprobs for sample in samples])
        advantages = torch.tensor([sample.advantage for sample in samples])
        rewards = torch.tensor([sample.reward for sample in samples])
        if any(sample.token_advantages for sample in samples):
            advantages = of_tokens([s.token_advantages or (s.advantage,) * s.tokens.num_targets for s in samples])
        if any(sample.token_rewards for sample in samples):
            rewards = of_tokens([s.token_rewards or (*(0.0,) * (s.tokens.num_targets - 1), s.reward) for s in samples])
        device = self.learner.device
        return _MicroBatchTensors(
            batch=inputs.to(device),
            sampled=sampled.to(device),
            advantages=advantages.to(device),
            rewards=rewards.to(device),
        )

    def _compute_old_values(self, updates: Sequence[Sequence[_MicroBatchTensors]]) -> None:
        """Compute what depends on the weights at the start of the step: log-probabilities, values, advantages."""
        micro_batches = [micro for update in updates for micro in update]
        batches = [micro.batch for micro in micro_batches]
        temperature, kl = self.config.rollouts.temperature, self.config.algorithm.kl
        # With a single update, the log-probabilities that it computes anyway are the old ones.
        if len(updates) > 1 or self.critic is not None or (kl.coefficient and kl.where == "reward"):
            for micro, old in zip(micro_batches, self.learner.logprobs(batches, temperature=temperature), strict=True):
                micro.old = old
        if kl.coefficient:
            references = self.learner.logprobs(batches, reference=True, temperature=temperature)
            for micro, reference in zip(micro_batches, references, strict=True):
                micro.reference = reference
        if self.critic is not None:
            for micro, values in zip(micro_batches, self.critic.values(batches), strict=True):
                micro.values = values
        if self.critic is not None or self._algorithm.whiten:
            self._estimate_advantages(micro_batches)

    def _estimate_advantages(self, micro_batches: Sequence[_MicroBatchTensors]) -> None:
        """Compute whitened advantages of tokens: from the critic's values, or as returns of the group advantages."""
        import torch

        algorithm = self.config.algorithm
        moments = torch.zeros(3, dtype=torch.float64, device=self.learner.device)
        for micro in micro_batches:
            mask = micro.batch.targets
            old = micro.sampled if micro.old is None else micro.old
            if micro.values is not None:
                rewards = token_rewards(micro.rewards, old, micro.reference, mask, algorithm.kl)
                micro.advantages, micro.returns = gae(
                    rewards, micro.values, mask, gamma=algorithm.ppo.gamma, gae_lambda=algorithm.ppo.gae_lambda
                )
            else:
                rewards = token_rewards(micro.advantages, old, micro.reference, mask, algorithm.kl)
                micro.advantages, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, gae_lambda=1.0)
            if micro.batch.counts:
                moments += token_moments(micro.advantages, mask)
        torch.distributed.all_reduce(moments)
        for micro in micro_batches:
            assert micro.advantages is not None
            micro.advantages = whiten(micro.advantages, micro.batch.targets, moments)

    # -- optimizer steps ---------------------------------------------------------------------------------------

    def _update_policy(
        self,
        micro_batches: Sequence[_MicroBatchTensors],
        denominator: float,
        lr: float,
        accumulators: list[MetricAccumulator],
    ) -> dict[str, float]:
        algorithm = self.config.algorithm

        def loss(number: int, batch: Batch, tokens: "LogProbs") -> "torch.Tensor":
            micro = micro_batches[number]
            part = self._algorithm.policy_loss(
                ResponseTokens(
                    mask=batch.targets,
                    new=tokens.values,
                    old=tokens.values.detach() if micro.old is None else micro.old,
                    advantages=micro.advantages,
                    sampled=micro.sampled,
                    reference=micro.reference,
                    entropy=tokens.entropy,
                ),
                algorithm,
                denominator,
            )
            return _record(part, batch, accumulators)

        result = self.learner.learn(
            [micro.batch for micro in micro_batches],
            loss,
            lr=lr,
            temperature=self.config.rollouts.temperature,
            entropy="gradient" if algorithm.entropy_coefficient else "value",
        )
        return {"loss": result.loss, "grad_norm": result.grad_norm}

    def _update_critic(
        self,
        micro_batches: Sequence[_MicroBatchTensors],
        denominator: float,
        lr: float,
        accumulators: list[MetricAccumulator],
    ) -> dict[str, float]:
        assert self.critic is not None

        def loss(number: int, batch: Batch, values: "torch.Tensor") -> "torch.Tensor":
            micro = micro_batches[number]
            assert micro.values is not None
            assert micro.returns is not None
            part = value_loss(values, micro.values, micro.returns, batch.targets, self.config.algorithm, denominator)
            return _record(part, batch, accumulators)

        result = self.critic.learn([micro.batch for micro in micro_batches], loss, lr=lr)
        return {"value_loss": result.loss, "value_grad_norm": result.grad_norm}

    def _denominator(self, batch: TrainingBatch, update: Step) -> float:
        return loss_denominator(
            self.config.algorithm.normalise,
            num_tokens=batch.num_tokens(update),
            num_sequences=batch.num_sequences(update),
            max_tokens=self.config.rollouts.max_tokens,
        )


def non_finite_error(error: "NonFiniteStep", step: int, *, has_critic: bool = False) -> StageError:
    """Return the error of a training step, numbered from 0, whose loss or gradient is not finite."""
    return StageError(
        f"stage 'policy': the {error.quantity} of step {step + 1} is not finite; lower "
        f"policy.engine.learning_rate{' or policy.critic.learning_rate' if has_critic else ''}, or use precision: fp32"
    )


def _record(part: Loss, batch: Batch, accumulators: list[MetricAccumulator]) -> "torch.Tensor":
    """Add a micro-batch's metrics, unless it is a filler; return its loss."""
    if batch.counts:
        accumulators.append(part.metrics)
    return part.value


def gather_metrics(accumulators: Sequence[MetricAccumulator]) -> dict[str, float]:
    """Combine the metrics of all micro-batches and workers."""
    import torch

    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, [accumulator.cpu() for accumulator in accumulators])
    # Policy and critic have metrics of different names.
    by_names: dict[frozenset[str], MetricAccumulator] = {}
    for accumulator in (accumulator for worker in gathered for accumulator in worker):
        names = frozenset(accumulator.sums)
        by_names[names] = by_names[names] + accumulator if names in by_names else accumulator
    return {name: value for accumulator in by_names.values() for name, value in accumulator.compute().items()}
