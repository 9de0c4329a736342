"""What trainers of a policy are given to do, and how fast they did it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlgenrm_ray.config import PolicyRunConfig
from vlgenrm_ray.errors import InputError, StageError
from vlgenrm_ray.rewards.config import RewardConfig

Mode = Literal["synchronous", "one_step_off"]


def work(recipe: PolicyRunConfig, *, steps: int, threads: int, mode: Mode = "synchronous") -> PolicyRunConfig:
    """A recipe cut down to its steps: so many, on an engine and a learner of so many threads each.

    Its reward is the function that it measures by; nothing is served, and next to nothing is kept or evaluated. Raises
    InputError for a recipe without such a function, or for GPUs.
    """
    policy = recipe.policy
    if not policy.evaluation.measure:
        raise InputError("policy.evaluation.measure: the bench's reward is the function named there, and it is empty")
    if policy.num_gpus or policy.rollouts.num_gpus:
        raise InputError("policy.num_gpus, policy.rollouts.num_gpus: the bench shares out CPU cores; set both to 0")
    rollouts = policy.rollouts
    engine = rollouts.engine.model_copy(update={"threads": threads})
    changes = {
        "rewards": (RewardConfig(name="measure", function=policy.evaluation.measure),),
        "mode": mode,
        "steps": steps,
        "critic_warmup": 0,
        "rollouts": rollouts.model_copy(update={"num_engines": 1, "num_cpus": float(threads), "engine": engine}),
        "workers": 1,
        "num_cpus": threads,
        "checkpoint_every": 0,
        "samples_every": steps,
        "evaluation": policy.evaluation.model_copy(update={"every": steps}),
        "reward_hacking": None,
    }
    return recipe.model_copy(
        update={
            "judge_service": None,
            "pool": recipe.pool.model_copy(update={"count": policy.questions_per_step * steps}),
            "heldout": recipe.heldout.model_copy(update={"count": 1}),
            "policy": policy.model_copy(update=changes),
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Steady steps of one training."""

    steps: int
    seconds: float
    samples: float
    tokens: float
    """Sampled."""
    reward: float
    """Mean over the steps."""
    phases: Mapping[str, float]
    """Seconds of each phase, over all steps; what no phase has is no phase's."""

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds

    def figures(self) -> dict[str, float]:
        """For the report: rates, and means over steps."""
        found = {
            "samples_per_s": self.rate,
            "tokens_per_s": self.tokens / self.seconds,
            "tokens_per_sample": self.tokens / self.samples,
            "reward": self.reward,
            "step_s": self.seconds / self.steps,
        }
        return found | {f"{name}_s": seconds / self.steps for name, seconds in self.phases.items()}


def pace(lines: Sequence[Mapping[str, Any]], *, warmup: int, steps: int) -> Pace:
    """Of the lines of metrics of a training, the `steps` after the first `warmup`, of which there is at least one.

    A step lasts from the end (`timestamp`, in seconds) of the one before to its own. Raises StageError for lines of
    fewer steps, or of other ones.
    """
    if [line["step"] for line in lines[: warmup + steps]] != list(range(1, warmup + steps + 1)):
        raise StageError(f"{warmup} steps and {steps} more were to be measured; {len(lines)} lines of metrics came")
    measured = lines[warmup : warmup + steps]
    return Pace(
        steps=steps,
        seconds=measured[-1]["timestamp"] - lines[warmup - 1]["timestamp"],
        samples=math.fsum(line["samples"] for line in measured),
        tokens=math.fsum(line["samples"] * line["length"] for line in measured),
        reward=math.fsum(line["reward"] for line in measured) / steps,
        phases={name: math.fsum(line["seconds"][name] for line in measured) for name in measured[0]["seconds"]},
    )
