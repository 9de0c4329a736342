"""Console summary of a policy's training."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlgenrm_ray.evaluation.metrics import Estimate, paired_gain
from vlgenrm_ray.policy.evaluation import DECODINGS


def measure_gain(summary: Mapping[str, Any], evaluation: str = "best") -> Estimate | None:
    """Estimate the gain of the held-out measure since the first evaluation, paired by question.

    The gain of `best` is biased upwards, because the same questions selected it; that of `last` is not.

    Args:
        summary: Content of `policy/summary.json`.
        evaluation: `best` or `last`.

    Returns:
        The gain with its interval; None if the run had no measure.
    """
    before, after = summary["first"]["outcomes"], summary[evaluation]["outcomes"]
    return paired_gain(before, after) if before and after else None


def summary_lines(summary: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Format the summary of a run as lines of text.

    Args:
        summary: Content of `policy/summary.json`.
        folder: Run folder.
    """
    samples = int(summary["samples"])
    failed = summary["failed"] / samples if samples else 0.0
    yield f"{summary['steps']} steps, {samples:,} samples, {failed:.1%} without a reward, {summary['seconds']:.0f} s"
    if summary["stopped"]:
        yield f"stopped early: {summary['stopped']}"
    first = summary["first"]
    name = "reward" if first["value"] is None else "measure"
    num_questions = first["num_rewarded"] if first["value"] is None else first["num_measured"]
    yield (
        f"held-out {name} {first['held_out']:.3f} -> best {summary['best']['held_out']:.3f} "
        f"(step {summary['best']['step']}), last {summary['last']['held_out']:.3f}, {num_questions} questions"
    )
    for evaluation in ("best", "last"):
        if gain := measure_gain(summary, evaluation):
            yield (
                f"{evaluation} over first: {gain.value:+.3f} (95 %: {gain.low:+.3f} to {gain.high:+.3f}, "
                f"{gain.num} questions, paired)"
            )
    yield from decoding_lines(summary.get("decoding", ()))
    yield from _excess_lines(first, summary["last"])
    yield from _image_lines(first, summary["last"])
    yield f"models: {folder / 'policy' / 'best'} and {folder / 'policy' / 'model'} (last), and curves.svg"


def decoding_lines(decoding: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Format the held-out measure by ways of decoding, before and after the training, with paired gains."""
    if len(decoding) < 2:
        return
    before, after = decoding[0], decoding[-1]
    yield f"held-out measure by decoding, k = {after['k']}, {after['num_questions']} questions (gain: paired, 95 %)"
    for name in DECODINGS:
        gain = paired_gain(before["outcomes"][name], after["outcomes"][name])
        yield (
            f"  {name:<10} {before[name]:.3f} -> {after[name]:.3f}  "
            f"{gain.value * 100:+5.1f} [{gain.low * 100:+.1f}, {gain.high * 100:+.1f}]"
        )


def _excess_lines(first: Mapping[str, Any], last: Mapping[str, Any]) -> Iterator[str]:
    """Format by how much the reward exceeds the measure on the held-out answers, if the run had both."""
    if any(line[name] is None for line in (first, last) for name in ("reward", "value")):
        return
    before, after = (line["reward"] - line["value"] for line in (first, last))
    yield f"held-out reward minus measure {before:+.3f} -> last {after:+.3f}; exploited if it rises"


def _image_lines(first: Mapping[str, Any], last: Mapping[str, Any]) -> Iterator[str]:
    """Format the image's contribution to the judge's reward, if it was measured, and the warning about it."""
    if first["image_reward_gain"] is not None and last["image_reward_gain"] is not None:
        yield (
            f"the image adds {first['image_reward_gain']:+.3f} -> last {last['image_reward_gain']:+.3f} to the judge's "
            f"reward (blank: {last['blank_image_reward']:.3f})"
        )
    if last["warning"]:
        yield f"warning: {last['warning']}"
