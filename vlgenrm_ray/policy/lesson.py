"""What a step's samples teach: which of them count, by how much, in which micro-batches."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from vlgenrm_ray.engines import shared_prompts
from vlgenrm_ray.engines.batch_plan import MicroBatch, Step, plan_epoch
from vlgenrm_ray.engines.vlm_batch import Tokens
from vlgenrm_ray.policy.advantages import group_advantages
from vlgenrm_ray.policy.collecting import Collected
from vlgenrm_ray.policy.config import AlgorithmConfig
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
    rows: tuple[range, ...]
    """Places in `pupils` that run through the model as one row, their prompt once; all of them, in order."""
    updates: tuple[Step, ...]
    """One per optimizer step; their members are places in `pupils`, those of a row together."""
    fates: Mapping[str, int] = field(default_factory=Counter)
    """Groups by what became of them: `learnt`, `flat`, `left_out`; with a critic all are `learnt`."""

    def families(self, micro: MicroBatch) -> list[range]:
        """Places among a micro-batch's members that share a row."""
        sizes = {row.start: len(row) for row in self.rows}
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


def plan(
    found: Sequence[Pupil],
    tokens: Sequence[Tokens],
    *,
    width: int,
    step: int,
    seed: int,
    updates: int,
    tokens_per_batch: int,
    workers: int,
) -> tuple[tuple[range, ...], tuple[Step, ...]]:
    """Deal samples out to rows, and these to optimizer steps and micro-batches: `Lesson.rows` and `Lesson.updates`.

    Samples of one prompt beside each other share a row where that is cheaper for a decoder of hidden size `width`, and
    leaves some rows for every update and worker.
    """
    if not found:
        return (), ()
    samples_per_row = max(1, len(found) // (updates * workers))
    rows: list[range] = []
    for family in _families(found, tokens):
        sizes = [tokens[place].num_targets for place in family]
        runs = shared_prompts.runs(
            tokens[family.start].num_prompt,
            sizes,
            width=width,
            tokens_per_row=tokens_per_batch,
            samples_per_row=samples_per_row,
        )
        rows += [family[run.start : run.stop] for run in runs]
    planned = plan_epoch(
        [tokens[row.start].num_prompt + sum(tokens[place].num_targets for place in row) for row in rows],
        epoch=step,
        seed=seed,
        examples_per_step=-(-len(rows) // updates),
        tokens_per_batch=tokens_per_batch,
        workers=workers,
    )
    return tuple(rows), tuple(Step(tuple(_samples(each, rows) for each in update.rows)) for update in planned)


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


def _families(found: Sequence[Pupil], tokens: Sequence[Tokens]) -> Iterable[range]:
    """Places of samples beside each other that have a prompt and an image in common."""

    def prompt(place: int) -> tuple[object, ...]:
        made = tokens[place]
        return found[place].rollout.question.image.sha256, made.ids[: made.num_prompt]

    for _, places in groupby(range(len(found)), key=prompt):
        first, *others = places
        yield range(first, first + 1 + len(others))


def _samples(each: Sequence[MicroBatch], rows: Sequence[range]) -> tuple[MicroBatch, ...]:
    """Micro-batches of rows, as such of samples."""
    return tuple(MicroBatch(tuple(place for row in one.members for place in rows[row]), one.counts) for one in each)
