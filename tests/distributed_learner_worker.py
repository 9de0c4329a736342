"""Work of two training workers for a test: each configuration of learner and critic, with results written to files."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines.contracts import TensorSpec
from vlgenrm_ray.engines.deepspeed_config import DeepSpeedConfig, LoraConfig
from vlgenrm_ray.records import Example

if TYPE_CHECKING:
    import torch

CONFIGS = {
    "zero-0": DeepSpeedConfig(zero_stage=0, precision="fp32", freeze_vision=True),
    "zero-1": DeepSpeedConfig(zero_stage=1, precision="fp32"),
    "zero-2": DeepSpeedConfig(zero_stage=2, precision="fp32", gradient_checkpointing=True),
    "zero-3": DeepSpeedConfig(zero_stage=3, precision="fp32"),
    "lora": DeepSpeedConfig(zero_stage=3, precision="fp32", lora=LoraConfig(rank=4, alpha=8.0)),
}
WITH_CRITIC = ["zero-1", "lora"]
LEARNING_RATE = 1e-3
TEMPERATURE = 0.7
DENOMINATOR = 50.0
ROWS = 4
"""Rows per worker; rank 0 has the first ones."""
TARGET = 0.6
CRITIC_LEARNING_RATE = 5e-3
CRITIC_STEPS = 5
CRITIC_SAVED_AT = 3


def run_learner_checks(base: Path, folder: Path, examples: list[Example]) -> None:
    """Run all configurations in turn, on every worker. Writes `<configuration>/results-<rank>.pt`."""
    import torch

    for name, config in CONFIGS.items():
        target = folder / name
        target.mkdir(exist_ok=True)
        results = _policy(base, config, target, examples)
        if name in WITH_CRITIC:
            results["critic"] = _critic(base, config, target, examples)
        torch.save(results, target / f"results-{torch.distributed.get_rank()}.pt")


def batches(base: Path, examples: list[Example], worker: int, cuts: tuple[int, ...]) -> list[Any]:
    """Encode a worker's rows in micro-batches of these sizes; each row is a rollout of its example's completion."""
    from vlgenrm_ray.engines.vlm_batch import VlmEncoder

    encoder = VlmEncoder(base, ImageLimits())
    rows = []
    for e in examples[worker * ROWS :][:ROWS]:
        written = encoder.encode(e.images, e.prompt, e.completion)
        rows.append((encoder.encode_rollout(e.images, e.prompt, written.ids[written.num_prompt :]), e.images, 1.0))
    ends = [sum(cuts[: i + 1]) for i in range(len(cuts))]
    return [encoder.batch(rows[end - size : end]) for size, end in zip(cuts, ends, strict=True)]


def shared_prompt_batch(base: Path, examples: list[Example], worker: int, *, shared: bool) -> Any:
    """Encode a worker's rows, each with two more samples of its prompt, in shared rows or in rows of their own."""
    from vlgenrm_ray.engines.vlm_batch import VlmEncoder

    encoder = VlmEncoder(base, ImageLimits())
    rows = []
    for e in examples[worker * ROWS :][:ROWS]:
        written = encoder.encode(e.images, e.prompt, e.completion)
        ids = written.ids[written.num_prompt :]
        rows += [(encoder.encode_rollout(e.images, e.prompt, of), e.images, 1.0) for of in (ids, ids[1:4], ids[::-1])]
    together = [range(3), range(3, 5), range(5, 6), *(range(row, row + 3) for row in range(6, len(rows), 3))]
    return encoder.batch(rows, shared_rows=together if shared else None)


def cross_entropy(_: int, batch: Any, tokens: Any) -> "torch.Tensor":
    return -(tokens.values * batch.weights).sum() / DENOMINATOR


def infinite_gradient(_: int, batch: Any, tokens: Any) -> "torch.Tensor":
    """Return a loss of 0 with an infinite gradient."""
    return ((tokens.values - tokens.values.detach()).clamp(min=0).sqrt() * batch.weights).sum()


def _policy(base: Path, config: DeepSpeedConfig, folder: Path, examples: list[Example]) -> dict[str, Any]:
    """Train one learner on whole rows, and another, whose first steps are the same, on parts of them."""
    import torch.distributed as dist

    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.deepspeed_model import NonFiniteGradient, NonFiniteLoss
    from vlgenrm_ray.engines.export import export

    whole, parts = (batches(base, examples, dist.get_rank(), cuts) for cuts in ((ROWS,), (1, ROWS - 1)))
    learner = Learner(base, config, seed=0, keep_reference=True)
    results: dict[str, Any] = {
        "before": learner.logprobs(whole)[0],
        "tempered": learner.logprobs(whole, temperature=TEMPERATURE)[0],
    }

    def tempered(number: int, batch: Any, tokens: Any) -> "torch.Tensor":
        results[f"training-{number}"], results[f"entropy-{number}"] = tokens.values.detach(), tokens.entropy
        return cross_entropy(number, batch, tokens) - tokens.entropy.sum() / DENOMINATOR

    options: dict[str, Any] = {"temperature": TEMPERATURE, "entropy": "gradient"}
    results["steps"] = [learner.learn(whole, tempered, lr=0.0, **options)]
    results["entropy"] = results["entropy-0"].detach()
    results["training"] = results["training-0"]
    results["steps"] += [learner.learn(whole, cross_entropy, lr=LEARNING_RATE) for _ in range(2)]
    results["after"] = learner.logprobs(whole)[0]
    results["reference"] = learner.logprobs(whole, reference=True)[0]
    results["weights"] = dict(learner.weights())
    assert learner.tensor_specs() == [TensorSpec.of(*one) for one in results["weights"].items()]
    results["trained"] = [name for name, _ in learner.weights(trained_only=True)]
    export(learner, folder / "model")
    learner.close()

    learner = Learner(base, config, seed=0)
    with pytest.raises(ValueError, match="keep_reference"):
        learner.logprobs(whole, reference=True)
    padded = [*parts, replace(parts[0], counts=False)]
    results["cut"] = [learner.learn(padded, tempered, lr=0.0, **options)]
    results["cut"].append(learner.learn(padded, cross_entropy, lr=LEARNING_RATE))
    results["cut"].append(learner.step(parts, denominator=DENOMINATOR, lr=LEARNING_RATE))
    results["cut_after"] = learner.logprobs(whole)[0]
    for shared in (False, True):
        batch = shared_prompt_batch(base, examples, dist.get_rank(), shared=shared)
        step = learner.learn([batch], tempered, lr=0.0, **options)
        results[f"shared: {shared}"] = learner.logprobs([batch])[0], results["entropy-0"].detach(), step
    with pytest.raises(NonFiniteGradient):
        learner.learn(parts, infinite_gradient, lr=LEARNING_RATE)
    results["after_failed_steps"] = learner.logprobs(whole)[0]
    with pytest.raises(NonFiniteLoss) as caught:
        learner.learn(parts, lambda n, b, t: cross_entropy(n, b, t) * (float("inf") if n else 1.0), lr=LEARNING_RATE)
    results["non_finite_examples"] = list(caught.value.examples)
    learner.close()
    return {name: value for name, value in results.items() if "-" not in name}


def _critic(base: Path, config: DeepSpeedConfig, folder: Path, examples: list[Example]) -> dict[str, Any]:
    import torch.distributed as dist

    from vlgenrm_ray.engines.critic import Critic

    whole = batches(base, examples, dist.get_rank(), (ROWS,))

    def squares(_: int, batch: Any, values: "torch.Tensor") -> "torch.Tensor":
        return ((values - TARGET) * batch.targets).square().sum() / DENOMINATOR

    critic = Critic(base, config, seed=0)
    results: dict[str, Any] = {"begin": critic.values(whole)}
    losses = []
    for step in range(CRITIC_STEPS):
        if step == CRITIC_SAVED_AT:
            (folder / "critic").mkdir(exist_ok=True)
            critic.save(folder / "critic")
        losses.append(critic.learn(whole, squares, lr=CRITIC_LEARNING_RATE).loss)
    results |= {"losses": losses, "end": critic.values(whole)}
    results["shared_prompts"] = [
        critic.values([shared_prompt_batch(base, examples, dist.get_rank(), shared=shared)])[0]
        for shared in (False, True)
    ]
    critic.close()
    critic = Critic(base, config, seed=1)
    critic.load(folder / "critic")
    results["resumed"] = [
        critic.learn(whole, squares, lr=CRITIC_LEARNING_RATE).loss for _ in range(CRITIC_SAVED_AT, CRITIC_STEPS)
    ]
    results["resumed_end"] = critic.values(whole)
    critic.close()
    return results
