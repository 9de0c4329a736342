"""Training samples of a step, and their division into optimizer steps, shared rows and micro-batches.

`build_training_samples` turns rollouts into samples with advantages; `plan_micro_batches` divides them. Both are pure
and give the same result on every worker.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from vlgenrm_ray.engines import shared_prompts
from vlgenrm_ray.engines.batch_plan import MicroBatch, Step, plan_step
from vlgenrm_ray.engines.vlm_batch import TextError, Tokens, VlmEncoder
from vlgenrm_ray.policy.advantages import GroupStatus, shape_reward
from vlgenrm_ray.policy.algorithms import resolve_algorithm
from vlgenrm_ray.policy.config import AlgorithmConfig, PolicyConfig
from vlgenrm_ray.policy.rollouts import RolloutGroup
from vlgenrm_ray.policy.segments import place_at_ends, segment_rewards, spread_over_tokens, token_ranges
from vlgenrm_ray.records import Rollout
from vlgenrm_ray.rewards.reward import OK

SKIPPED = "longer than policy.tokens_per_batch"
"""Status under which skipped samples are counted."""
Rows = tuple[tuple[int, ...], ...]
"""Positions of samples that share a row of the model's input, by row."""


# -- samples ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One rollout to train on."""

    rollout: Rollout
    reward: float
    """Reward after shaping."""
    advantage: float
    """Advantage relative to its group, the mean over its segments if they have their own; 0 with a critic, which gives
    an advantage to each token."""
    tokens: Tokens
    """Prompt and response as the model's input."""
    token_advantages: tuple[float, ...] = ()
    """Advantage of each token of the response, for rewards of segments; (): `advantage` for all of them."""
    token_rewards: tuple[float, ...] = ()
    """With a critic: reward of each token, for rewards of segments; (): `reward` at the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSamples:
    """All samples of a step to train on, and the count of what was left out."""

    samples: tuple[TrainingSample, ...]
    group_statuses: Mapping[GroupStatus, int]
    """Number of groups by status; with a critic all are used."""
    num_skipped: int
    """Samples with an advantage that are longer than `tokens_per_batch` or cannot be encoded."""
    num_unaligned: int = 0
    """Samples whose segments could not be aligned with their tokens: one reward for all tokens is used."""

    def metrics(self) -> dict[str, float]:
        """Return the counts for the step's line of metrics, and the mean number of segments if there are any."""
        groups = {f"groups_{status}": float(self.group_statuses.get(status, 0)) for status in GroupStatus}
        segments = [len(sample.rollout.segments) for sample in self.samples]
        by_segment = {
            "segments": sum(segments) / max(len(segments), 1),
            "samples_unaligned": float(self.num_unaligned),
        }
        return groups | {"samples_skipped": float(self.num_skipped)} | (by_segment if any(segments) else {})

    def usable(self, statuses: Mapping[str, int]) -> Mapping[str, int]:
        """Return the counts with skipped samples moved from `ok` to `SKIPPED`: they have a reward, but are not used."""
        if not self.num_skipped:
            return statuses
        return {**statuses, OK: statuses[OK] - self.num_skipped, SKIPPED: self.num_skipped}


def build_training_samples(
    groups: Sequence[RolloutGroup], config: PolicyConfig, encoder: VlmEncoder
) -> TrainingSamples:
    """Build the training samples of a step: shape rewards, compute advantages, encode prompts and responses.

    Args:
        groups: Rollouts by question, with rewards.
        config: Settings of algorithm, response length and micro-batches.
        encoder: Encoder of the policy's prompts and images.

    Returns:
        Samples that have a reward, an advantage, a response, and fit into a micro-batch; in the order of the rollouts.
    """
    algorithm, max_tokens = config.algorithm, config.rollouts.max_tokens
    rollouts = [rollout for group in groups for rollout in group]
    advantages, statuses = _advantages(groups, algorithm, max_tokens=max_tokens)
    samples: list[TrainingSample] = []
    num_skipped = num_unaligned = 0
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        reward = shaped_reward(rollout, algorithm, max_tokens=max_tokens)
        if reward is None or advantage is None or not rollout.ids:
            continue
        tokens = _encode(rollout, encoder, config.tokens_per_batch)
        if tokens is None:
            num_skipped += 1
            continue
        sample = TrainingSample(
            rollout=rollout, reward=reward, advantage=sum(advantage) / len(advantage), tokens=tokens
        )
        if rollout.segments:
            pieces = encoder.token_texts(rollout.ids)
            if "".join(pieces) == rollout.text:
                sample = _with_segments(sample, pieces, advantage, config)
            else:
                num_unaligned += 1
        samples.append(sample)
    return TrainingSamples(
        samples=tuple(samples), group_statuses=Counter(statuses), num_skipped=num_skipped, num_unaligned=num_unaligned
    )


def _with_segments(
    sample: TrainingSample, pieces: Sequence[str], advantages: Sequence[float], config: PolicyConfig
) -> TrainingSample:
    """Give the tokens of each segment of a sample its advantage or, with a critic, its reward."""
    ranges = token_ranges(pieces, sample.rollout.segments)
    if not config.algorithm.uses_critic:
        return replace(sample, token_advantages=spread_over_tokens(advantages, ranges))
    rewards = segment_rewards(sample.rollout, config.algorithm, max_tokens=config.rollouts.max_tokens)
    assert rewards is not None
    return replace(sample, token_rewards=place_at_ends(rewards, ranges))


def shaped_reward(rollout: Rollout, config: AlgorithmConfig, *, max_tokens: int) -> float | None:
    """Return the reward of a rollout after shaping; None if it has none or must not be used."""
    return shape_reward(
        rollout.reward,
        num_tokens=len(rollout.ids),
        truncated=rollout.finish == "length",
        max_tokens=max_tokens,
        config=config.overlong,
    )


def group_statuses(groups: Sequence[RolloutGroup], config: AlgorithmConfig, *, max_tokens: int) -> list[GroupStatus]:
    """Return the status of each group in training, from its shaped rewards."""
    return _advantages(groups, config, max_tokens=max_tokens)[1]


def _advantages(
    groups: Sequence[RolloutGroup], config: AlgorithmConfig, *, max_tokens: int
) -> tuple[list[tuple[float, ...] | None], list[GroupStatus]]:
    """Return the advantages of all samples in order, and the status of each group.

    A sample has one advantage, or one per segment if any sample of the step has segments; None if it must not be used.
    """
    algorithm = resolve_algorithm(config.algorithm)
    if algorithm.group_advantages is None:
        return [(0.0,) for group in groups for _ in group], [GroupStatus.USED] * len(groups)
    if any(rollout.segments for group in groups for rollout in group):
        assert algorithm.segment_advantages is not None, "PolicyConfig refuses segments for other algorithms"
        rewards = [[segment_rewards(rollout, config, max_tokens=max_tokens) for rollout in group] for group in groups]
        by_segment = algorithm.segment_advantages(rewards, config)
        return [a for group in by_segment for a in group.advantages], [group.status for group in by_segment]
    whole = [[shaped_reward(rollout, config, max_tokens=max_tokens) for rollout in group] for group in groups]
    by_sample = algorithm.group_advantages(whole, config)
    advantages: list[tuple[float, ...] | None] = [
        None if a is None else (a,) for group in by_sample for a in group.advantages
    ]
    return advantages, [group.status for group in by_sample]


def _encode(rollout: Rollout, encoder: VlmEncoder, max_tokens: int) -> Tokens | None:
    """Return prompt and response as tokens; None if there are too many tokens or they cannot be encoded."""
    try:
        tokens = encoder.encode_rollout(rollout.question.images, rollout.question.text, rollout.ids)
    # An engine may sample image tokens, which would change the prompt when read back.
    except TextError:
        return None
    return tokens if len(tokens) <= max_tokens else None


# -- micro-batches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingBatch:
    """Samples of a step, and the optimizer steps and micro-batches they are divided into."""

    samples: tuple[TrainingSample, ...]
    rows: Rows
    """Positions in `samples` that go through the model as one row, with their prompt once."""
    updates: tuple[Step, ...]
    """One entry per optimizer step; its members are positions in `samples`; members of a row are adjacent."""

    def shared_rows(self, micro: MicroBatch) -> list[range]:
        """Return the rows of a micro-batch, each as a range of positions in `micro.members`."""
        row_sizes = {row[0]: len(row) for row in self.rows}
        ranges: list[range] = []
        while (begin := ranges[-1].stop if ranges else 0) < len(micro.members):
            ranges.append(range(begin, begin + row_sizes[micro.members[begin]]))
        return ranges

    def num_tokens(self, update: Step) -> int:
        """Return the response tokens of an optimizer step, over all workers."""
        return sum(len(self.samples[member].rollout.ids) for member in update.members())

    def num_sequences(self, update: Step) -> int:
        """Return the samples of an optimizer step, over all workers."""
        return len(update.members())


def plan_micro_batches(
    samples: Sequence[TrainingSample],
    *,
    shared_width: int | None,
    step: int,
    seed: int,
    num_updates: int,
    tokens_per_batch: int,
    num_workers: int,
) -> TrainingBatch:
    """Divide the samples of a step into optimizer steps, rows and micro-batches.

    Groups are shuffled from (seed, step) and divided into `num_updates` optimizer steps of equally many samples (fewer
    if there are fewer samples). Neighbouring samples with the same prompt and image share a row if that makes the
    optimizer step cheaper.

    Args:
        samples: Samples of the step; samples of a group are adjacent.
        shared_width: Hidden size of the decoder, which decides the cost of shared rows; None: never share.
        step: Number of the training step.
        seed: Seed of the run.
        num_updates: Optimizer steps.
        tokens_per_batch: Largest number of padded tokens of a micro-batch.
        num_workers: Training workers; each gets equally many micro-batches.
    """
    groups = _by_prompt(samples)
    random.Random(f"{seed}/{step}").shuffle(groups)
    group_of = {position: number for number, group in enumerate(groups) for position in group}
    order = [position for group in groups for position in group]
    num_updates = min(num_updates, len(order))
    tokens = [sample.tokens for sample in samples]
    rows: list[tuple[int, ...]] = []
    updates: list[Step] = []
    for i in range(num_updates):
        members = order[len(order) * i // num_updates : len(order) * (i + 1) // num_updates]
        parts = [tuple(positions) for _, positions in groupby(members, key=group_of.__getitem__)]
        update_rows, update = _plan_update(parts, tokens, shared_width, tokens_per_batch, num_workers)
        rows += update_rows
        updates.append(update)
    return TrainingBatch(samples=tuple(samples), rows=tuple(rows), updates=tuple(updates))


def _by_prompt(samples: Sequence[TrainingSample]) -> list[tuple[int, ...]]:
    """Return the positions of neighbouring samples with the same prompt and images."""

    def prompt(position: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
        sample = samples[position]
        return tuple(image.sha256 for image in sample.rollout.question.images), sample.tokens.prompt

    return [tuple(positions) for _, positions in groupby(range(len(samples)), key=prompt)]


def _plan_update(
    parts: Sequence[tuple[int, ...]], tokens: Sequence[Tokens], width: int | None, budget: int, num_workers: int
) -> tuple[list[tuple[int, ...]], Step]:
    """Plan one optimizer step on parts of groups.

    Tries ever fewer samples per row, which keeps more workers busy, and returns the cheapest plan.
    """
    best: tuple[list[tuple[int, ...]], Step] | None = None
    lowest_cost = 0
    max_samples = max(map(len, parts)) if width else 1
    while max_samples:
        rows = [row for part in parts for row in _share_rows(part, tokens, width, budget, max_samples)]
        lengths = [shared_prompts.row_length([tokens[position] for position in row]) for row in rows]
        step = plan_step(range(len(rows)), lengths, tokens_per_batch=budget, workers=num_workers)
        # Workers run the micro-batches of one entry at the same time, and wait for the slowest.
        cost = sum(max(_cost(micro, rows, lengths, width or 1) for micro in parallel) for parallel in step.rows)
        if best is None or cost < lowest_cost:
            best, lowest_cost = (rows, _expand_rows(step, rows)), cost
        max_samples //= 2
    assert best is not None
    return best


def _share_rows(
    part: tuple[int, ...], tokens: Sequence[Tokens], width: int | None, budget: int, max_samples: int
) -> list[tuple[int, ...]]:
    """Divide samples of one prompt into rows."""
    if width is None:
        return [(position,) for position in part]
    runs = shared_prompts.divide_into_rows(
        tokens[part[0]].num_prompt,
        [tokens[position].num_targets for position in part],
        width=width,
        tokens_per_row=budget,
        samples_per_row=max_samples,
    )
    return [part[run.start : run.stop] for run in runs]


def _cost(micro: MicroBatch, rows: Sequence[tuple[int, ...]], lengths: Sequence[int], width: int) -> int:
    """Return the cost of a micro-batch whose members are rows."""
    longest, shared = max(lengths[row] for row in micro.members), any(len(rows[row]) > 1 for row in micro.members)
    return len(micro.members) * shared_prompts.row_cost(longest, shared=shared, width=width)


def _expand_rows(step: Step, rows: Sequence[tuple[int, ...]]) -> Step:
    """Replace the members of a plan, which are rows, by the samples in them."""
    return Step(
        tuple(
            tuple(
                MicroBatch(tuple(position for row in micro.members for position in rows[row]), micro.counts)
                for micro in parallel
            )
            for parallel in step.rows
        )
    )
