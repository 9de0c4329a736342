"""What the training of a policy came to: the lines on the console."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlgenrm_ray.evaluation.metrics import Estimate, paired_gain


def gain(done: Mapping[str, Any], evaluation: str = "best") -> Estimate | None:
    """Of the held-out measure since the first evaluation, paired by question; None where there was no measure.

    Of the `best` it is flattered: that one was chosen by the same questions. The `last` was not.
    """
    before, after = done["first"]["outcomes"], done[evaluation]["outcomes"]
    return paired_gain(before, after) if before and after else None


def lines(done: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """What `policy/summary.json` of a run folder holds, for people."""
    samples = int(done["samples"])
    failed = done["failed"] / samples if samples else 0.0
    yield f"{done['steps']} steps, {samples:,} samples, {failed:.1%} without a reward, {done['seconds']:.0f} s"
    if done["stopped"]:
        yield f"stopped early: {done['stopped']}"
    first = done["first"]
    name = "reward" if first["value"] is None else "measure"
    num = first["rewarded"] if first["value"] is None else first["num"]
    yield (
        f"held-out {name} {first['held_out']:.3f} -> best {done['best']['held_out']:.3f} "
        f"(step {done['best']['step']}), last {done['last']['held_out']:.3f}, {num} questions"
    )
    for evaluation in ("best", "last"):
        if found := gain(done, evaluation):
            yield (
                f"{evaluation} over first: {found.value:+.3f} (95 %: {found.low:+.3f} to {found.high:+.3f}, "
                f"{found.num} questions, paired)"
            )
    yield from _sight(first, done["last"])
    yield f"models: {folder / 'policy' / 'best'} and {folder / 'policy' / 'model'} (last); curves.svg beside"


def _sight(first: Mapping[str, Any], last: Mapping[str, Any]) -> Iterator[str]:
    """What the judge's rewards owe to the picture, where that was asked."""
    if first.get("sight") is not None and last.get("sight") is not None:
        yield (
            f"the picture adds {first['sight']:+.3f} -> last {last['sight']:+.3f} to the judge's reward "
            f"(blank: {last['blank_reward']:.3f})"
        )
    if last.get("doubt"):
        yield f"warning: {last['doubt']}"
