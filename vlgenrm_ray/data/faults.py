"""Faults of storage, files and engines: rows that meet one are dropped, and too many of them stop a stage.

A fault says nothing about the data. A stage in which half of the images cannot be opened, because one host does not
mount their folder, must not succeed with the other half; `max_dropped` is the largest share of rows that it may lose.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlgenrm_ray.errors import FAULTS, StageError
from vlgenrm_ray.records import Dropped

MAX_DROPPED = 0.05
"""Share of the rows of a stage that may meet a fault, if the recipe does not state `max_dropped`."""

_FEW = 7
"""Rows that may meet a fault in any stage, unless `max_dropped` is 0: in a small data set one row is a large share."""
_LOOK_TIMEOUT_S = 30.0
_NO_SUCH_FILE = re.compile(r"(?:^|\s)(/.*?): No such file")


class FaultCounter:
    """Count of the rows of a stage that met a fault."""

    def __init__(self, stage: str, *, num_rows: int, max_dropped: float) -> None:
        """Create a counter.

        Args:
            stage: Name of the stage, for messages.
            num_rows: Rows of the whole stage.
            max_dropped: Largest share of them that may meet a fault, from 0 to 1.
        """
        self.stage = stage
        self.num_rows = num_rows
        self.max_dropped = max_dropped
        self._num_allowed = max(max_dropped * num_rows, _FEW if max_dropped else 0)
        self.counts: Counter[str] = Counter()
        """Reason -> rows."""
        self.examples: dict[str, str] = {}
        """Reason -> one row with its problem."""

    def add(self, faults: Iterable[Dropped]) -> None:
        """Add one drop for each row that met a fault."""
        for fault in faults:
            self.counts[fault.reason] += 1
            self.examples.setdefault(fault.reason, fault.detail if fault.id in fault.detail else _label(fault))

    @property
    def exceeds_limit(self) -> bool:
        """True if more rows met a fault than `max_dropped` allows."""
        return self.counts.total() > self._num_allowed

    def check(self) -> None:
        """Raise StageError if the limit is exceeded, with the commonest reason, an example and the remedy."""
        if not self.exceeds_limit:
            return
        num_faults, share = self.counts.total(), self.counts.total() / self.num_rows
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
        example = self.examples[self.counts.most_common(1)[0][0]]
        raise StageError(
            f"stage '{self.stage}' stopped: {num_faults} of {self.num_rows} rows cannot be used because of faults "
            f"({reasons}), more than max_dropped {self.max_dropped:g} allows. For example {example}{_places(example)}. "
            "Remove the cause and run the same command again, which processes these rows again; or accept the loss "
            f"with --set max_dropped={min(1.0, share + 0.01):.2f}"
        )


def _label(fault: Dropped) -> str:
    return f"{fault.id}: {fault.detail or fault.reason}"


def fault_of(drops: Sequence[Dropped]) -> Dropped | None:
    """Return the first drop of a row that speaks of a fault, or None."""
    return next((drop for drop in drops if drop.reason in FAULTS), None)


def _places(example: str) -> str:
    """Say on which hosts of the cluster the missing file of an example is; "" if that explains nothing."""
    match = _NO_SUCH_FILE.search(example)
    seen_by = _hosts_with(match[1]) if match else {}
    having = sorted(host for host, exists in seen_by.items() if exists)
    lacking = sorted(host for host, exists in seen_by.items() if not exists)
    if not having or not lacking:
        return ""
    return (
        f" (the file is on {', '.join(having)} and not on {', '.join(lacking)}: all nodes must see the images at the "
        "same path)"
    )


def _hosts_with(path: str) -> dict[str, bool]:
    """Ask every node of the connected cluster for a file: host -> whether it is there."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []
    if len(nodes) < 2:
        return {}
    look = ray.remote(num_cpus=0)(_look)
    placed = [look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)) for node in nodes]
    try:
        return dict(ray.get([task.remote(path) for task in placed], timeout=_LOOK_TIMEOUT_S))
    except RayError:  # A node died, or does not answer. The message does without.
        return {}


def _look(path: str) -> tuple[str, bool]:
    import socket

    return socket.gethostname(), Path(path).is_file()
