"""What a round leaves behind: where its model came from, on what data, by which settings, and how it was judged."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vlgenrm_ray.data.store import Manifest
from vlgenrm_ray.reward.rounds import Round


def lineage(done: Round, prepared: Mapping[str, Manifest]) -> dict[str, Any]:
    """A finished round as plain values: every number of it, or the hash of what holds the numbers.

    `prepared` are the stages before the first round. A manifest has rows in, out and dropped by reason, seconds,
    tokens, the fingerprint of its settings, the hashes of its inputs and data, and its own measurements (kept share,
    margin histogram, label-flip rate, accuracy with interval, calibration, blind baselines).
    """
    return {
        "round": done.round,
        "model": str(done.model),
        "parent": None if done.parent is None else str(done.parent),
        "stages": {name: asdict(manifest) for name, manifest in done.stages.items()},
        "training": done.training,
        "prepared": {name: asdict(manifest) for name, manifest in prepared.items()},
    }
