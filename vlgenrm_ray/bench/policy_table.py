"""The rows of the policy's bench."""

from collections.abc import Iterator, Mapping
from typing import Any

from vlgenrm_ray.bench.table import Row

_PHASES = {"wait": "samples and rewards", "learn": "learning", "sync": "weights to the engine", "other": "all else"}


def rows(results: Mapping[str, Any]) -> Iterator[Row]:
    """Every figure of the results, in order."""
    if found := results.get("trl"):
        named = {"ours": found["ours"]} | {f"TRL, {name}": other for name, other in found["others"].items()}
        yield Row(what="samples/s to TRL's GRPOTrainer", measured=found["ratio"], least=2.0, beside=_sides(named))
    if found := results.get("phases"):
        for name, what in _PHASES.items():
            yield Row(
                what=f"share of a step: {what}", measured=found[name], unit="%", most=5.0 if name == "sync" else None
            )
    if found := results.get("one_step_off"):
        named = {"one-step-off": found["ours"], "synchronous": found["others"]["synchronous"]}
        yield Row(
            what="samples/s, one-step-off to synchronous", measured=found["ratio"], least=1.2, beside=_sides(named)
        )


def _sides(named: Mapping[str, Mapping[str, float]]) -> str:
    return "\n".join(
        f"{name:<18} {side['samples_per_s']:>8.2f}/s  {side['step_s']:>7.3f} s a step, "
        f"{side['tokens_per_sample']:>5.1f} tokens a sample"
        for name, side in named.items()
    )
