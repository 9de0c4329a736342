"""What a step's samples teach: which of them count, by how much, in which micro-batches."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vlgenrm_ray.engines.batch_plan import MicroBatch, Step
from vlgenrm_ray.policy.advantages import group_advantages
from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.config import AlgorithmConfig
from vlgenrm_ray.policy.lesson_plan import Rows
from vlgenrm_ray.policy.rollouts import Group
from vlgenrm_ray.policy.scored import OK
from vlgenrm_ray.policy.shaping import shaped
from vlgenrm_ray.records import Rollout

MISFIT = "longer than policy.tokens_per_batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pupil:
    """One sample that counts."""

    rollout: Rollout
    reward: float
    """As shaped."""
    advantage: float
    """Relative to its group; with a critic 0, for its tokens have their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A step's samples that count, and the parts they are learnt in."""

    pupils: tuple[Pupil, ...]
    rows: Rows
    """Places in `pupils` that run through the model as one row, their prompt once."""
    updates: tuple[Step, ...]
    """One per optimizer step; their members are places in `pupils`, those of a row together."""
    fates: Mapping[str, int] = field(default_factory=Counter)
    """Groups by what became of them: `learnt`, `flat`, `left_out`; with a critic all are `learnt`."""

    def families(self, micro: MicroBatch) -> list[range]:
        """Places among a micro-batch's members that share a row."""
        sizes = {row[0]: len(row) for row in self.rows}
        found: list[range] = []
        while (begin := found[-1].stop if found else 0) < len(micro.members):
            found.append(range(begin, begin + sizes[micro.members[begin]]))
        return found

    def counts(self, update: Step) -> tuple[int, int]:
        """Tokens and sequences of one optimizer step, over all workers."""
        members = update.members()
        return sum(len(self.pupils[m].rollout.ids) for m in members), len(members)


def pupils(groups: Sequence[Group], config: AlgorithmConfig, *, max_tokens: int) -> tuple[list[Pupil], Counter[str]]:
    """The samples of a step that have a reward and count, and the fates of their groups."""
    rewards = [[_shaped(rollout, config, max_tokens) for rollout in group] for group in groups]
    if config.algorithm == "ppo":
        scored = [
            Pupil(rollout=rollout, reward=reward, advantage=0.0)
            for rollout, reward in _pairs(groups, rewards)
            if reward is not None and rollout.ids
        ]
        return scored, Counter({"learnt": len(groups)})
    judged = group_advantages(rewards, config)
    found = [
        Pupil(rollout=rollout, reward=reward, advantage=advantage)
        for (rollout, reward), advantage in zip(
            _pairs(groups, rewards), (a for group in judged for a in group.advantages), strict=True
        )
        if reward is not None and advantage is not None and rollout.ids
    ]
    return found, Counter(group.fate for group in judged)


def usable(statuses: Mapping[str, int], misfits: int) -> Mapping[str, int]:
    """Samples of each status, with those that have a reward and fit no micro-batch under a name of their own: nothing
    can be learnt from them either."""
    return {**statuses, OK: statuses[OK] - misfits, MISFIT: misfits} if misfits else statuses


def figures(collected: Collected) -> dict[str, float]:
    """Rewards, lengths, failures and staleness (steps learnt meanwhile) of a step's samples, for its line of metrics.

    What nothing is known of is left out."""
    rollouts = collected.rollouts
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    lengths = [len(rollout.ids) for rollout in rollouts if rollout.ids]
    failed = sum(number for status, number in collected.statuses.items() if status != OK)
    found = {
        "samples": float(sum(collected.statuses.values())),
        "failed": float(failed),
        "replaced_groups": float(collected.num_replaced),
    }
    if rewards:
        mean = sum(rewards) / len(rewards)
        found |= {"reward": mean, "reward_std": (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5}
    if lengths:
        cut = sum(rollout.finish == "length" for rollout in rollouts)
        stale = sum(rollout.step - rollout.version for rollout in rollouts if rollout.ids)
        found |= {
            "length": sum(lengths) / len(lengths),
            "cut_share": cut / len(lengths),
            "staleness": stale / len(lengths),
        }
    return found


def _shaped(rollout: Rollout, config: AlgorithmConfig, max_tokens: int) -> float | None:
    return shaped(
        rollout.reward,
        num_tokens=len(rollout.ids),
        cut=rollout.finish == "length",
        max_tokens=max_tokens,
        config=config.overlong,
    )


def _pairs(
    groups: Sequence[Group], rewards: Sequence[Sequence[float | None]]
) -> Iterable[tuple[Rollout, float | None]]:
    for group, of_group in zip(groups, rewards, strict=True):
        yield from zip(group, of_group, strict=True)
