"""What a policy's training asks of learner and critic, asked of each configuration and written down, for a test."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.engines import weight_sync
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
"""Of each worker: the first this many examples are the first worker's."""
TARGET = 0.6
CRITIC_LEARNING_RATE = 5e-3
CRITIC_STEPS = 5
CRITIC_KEPT_AT = 3


def laboratory(base: Path, folder: Path, made: list[Example]) -> None:
    """Runs on every worker: all configurations in turn. Writes `<configuration>/found-<worker>.pt`."""
    import torch

    for name, config in CONFIGS.items():
        target = folder / name
        target.mkdir(exist_ok=True)
        found = _policy(base, config, target, made)
        if name in WITH_CRITIC:
            found["critic"] = _critic(base, config, target, made)
        torch.save(found, target / f"found-{torch.distributed.get_rank()}.pt")


def batches(base: Path, made: list[Example], worker: int, cuts: tuple[int, ...]) -> list[Any]:
    """A worker's rows in micro-batches of these sizes; each row is a rollout of its example's completion."""
    from vlgenrm_ray.engines.vlm_batch import VlmEncoder

    encoder = VlmEncoder(base, ImageLimits())
    rows = []
    for e in made[worker * ROWS :][:ROWS]:
        written = encoder.encode(e.image, e.prompt, e.completion)
        rows.append((encoder.rollout(e.image, e.prompt, written.ids[written.num_prompt :]), e.image, 1.0))
    ends = [sum(cuts[: i + 1]) for i in range(len(cuts))]
    return [encoder.batch(rows[end - size : end]) for size, end in zip(cuts, ends, strict=True)]


def families(base: Path, made: list[Example], worker: int, *, shared: bool) -> Any:
    """A worker's rows, each with a second and a third sample of its prompt: some in one row, or each in its own."""
    from vlgenrm_ray.engines.vlm_batch import VlmEncoder

    encoder = VlmEncoder(base, ImageLimits())
    rows = []
    for e in made[worker * ROWS :][:ROWS]:
        written = encoder.encode(e.image, e.prompt, e.completion)
        ids = written.ids[written.num_prompt :]
        rows += [(encoder.rollout(e.image, e.prompt, of), e.image, 1.0) for of in (ids, ids[1:4], ids[::-1])]
    together = [range(3), range(3, 5), range(5, 6), *(range(row, row + 3) for row in range(6, len(rows), 3))]
    return encoder.batch(rows, families=together if shared else None)


def cross_entropy(_: int, batch: Any, tokens: Any) -> "torch.Tensor":
    return -(tokens.values * batch.weights).sum() / DENOMINATOR


def steep(_: int, batch: Any, tokens: Any) -> "torch.Tensor":
    """0 where it is, and of infinite slope."""
    return ((tokens.values - tokens.values.detach()).clamp(min=0).sqrt() * batch.weights).sum()


def _policy(base: Path, config: DeepSpeedConfig, folder: Path, made: list[Example]) -> dict[str, Any]:
    """One learner takes its rows whole; another, which has its first learning in common with it, in parts."""
    import torch.distributed as dist

    from vlgenrm_ray.engines.deepspeed import Learner
    from vlgenrm_ray.engines.deepspeed_model import NonFiniteGradient, NonFiniteLoss
    from vlgenrm_ray.engines.export import export

    whole, parts = (batches(base, made, dist.get_rank(), cuts) for cuts in ((ROWS,), (1, ROWS - 1)))
    learner = Learner(base, config, seed=0, keep_reference=True)
    found: dict[str, Any] = {
        "before": learner.logprobs(whole)[0],
        "tempered": learner.logprobs(whole, temperature=TEMPERATURE)[0],
    }

    def tempered(number: int, batch: Any, tokens: Any) -> "torch.Tensor":
        found[f"learning-{number}"], found[f"entropy-{number}"] = tokens.values.detach(), tokens.entropy
        return cross_entropy(number, batch, tokens) - tokens.entropy.sum() / DENOMINATOR

    options: dict[str, Any] = {"temperature": TEMPERATURE, "entropy": "gradient"}
    found["steps"] = [learner.learn(whole, tempered, lr=0.0, **options)]
    found["entropy"] = found["entropy-0"].detach()
    found["learning"] = found["learning-0"]
    found["steps"] += [learner.learn(whole, cross_entropy, lr=LEARNING_RATE) for _ in range(2)]
    found["after"] = learner.logprobs(whole)[0]
    found["reference"] = learner.logprobs(whole, reference=True)[0]
    found["weights"] = dict(learner.weights())
    assert learner.outline() == [weight_sync.entry(*one) for one in found["weights"].items()]
    found["trained"] = [name for name, _ in learner.weights(trained_only=True)]
    export(learner, folder / "model")
    learner.close()

    learner = Learner(base, config, seed=0)
    with pytest.raises(ValueError, match="keep_reference"):
        learner.logprobs(whole, reference=True)
    padded = [*parts, replace(parts[0], counts=False)]
    found["cut"] = [learner.learn(padded, tempered, lr=0.0, **options)]
    found["cut"].append(learner.learn(padded, cross_entropy, lr=LEARNING_RATE))
    found["cut"].append(learner.step(parts, denominator=DENOMINATOR, lr=LEARNING_RATE))
    found["cut_after"] = learner.logprobs(whole)[0]
    for shared in (False, True):
        batch = families(base, made, dist.get_rank(), shared=shared)
        step = learner.learn([batch], tempered, lr=0.0, **options)
        found[f"shared: {shared}"] = learner.logprobs([batch])[0], found["entropy-0"].detach(), step
    with pytest.raises(NonFiniteGradient):
        learner.learn(parts, steep, lr=LEARNING_RATE)
    found["unharmed"] = learner.logprobs(whole)[0]
    with pytest.raises(NonFiniteLoss) as caught:
        learner.learn(parts, lambda n, b, t: cross_entropy(n, b, t) * (float("inf") if n else 1.0), lr=LEARNING_RATE)
    found["accused"] = list(caught.value.examples)
    learner.close()
    return {name: value for name, value in found.items() if "-" not in name}


def _critic(base: Path, config: DeepSpeedConfig, folder: Path, made: list[Example]) -> dict[str, Any]:
    import torch.distributed as dist

    from vlgenrm_ray.engines.critic import Critic

    whole = batches(base, made, dist.get_rank(), (ROWS,))

    def squares(_: int, batch: Any, values: "torch.Tensor") -> "torch.Tensor":
        return ((values - TARGET) * batch.targets).square().sum() / DENOMINATOR

    critic = Critic(base, config, seed=0)
    found: dict[str, Any] = {"begin": critic.values(whole)}
    losses = []
    for step in range(CRITIC_STEPS):
        if step == CRITIC_KEPT_AT:
            (folder / "critic").mkdir(exist_ok=True)
            critic.save(folder / "critic")
        losses.append(critic.learn(whole, squares, lr=CRITIC_LEARNING_RATE).loss)
    found |= {"losses": losses, "end": critic.values(whole)}
    found["families"] = [
        critic.values([families(base, made, dist.get_rank(), shared=shared)])[0] for shared in (False, True)
    ]
    critic.close()
    critic = Critic(base, config, seed=1)
    critic.load(folder / "critic")
    found["resumed"] = [
        critic.learn(whole, squares, lr=CRITIC_LEARNING_RATE).loss for _ in range(CRITIC_KEPT_AT, CRITIC_STEPS)
    ]
    found["resumed_end"] = critic.values(whole)
    critic.close()
    return found
