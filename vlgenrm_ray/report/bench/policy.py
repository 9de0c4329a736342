"""The speed of a policy's training, as ratios within one run: to TRL's GRPOTrainer, and one-step-off to synchronous.

Trainings run one at a time, each in a process of its own, on the cores that this process may use, and take turns there
and back, so that a drift of the machine harms all alike. Only steady steps count: not the first ones, which warm up,
nor the last, which has no next one beside it.

Ours has an engine and a learner. In a synchronous step they take turns, and each has all cores; so has TRL, in its one
process. One-step-off is compared where each of both has a core of its own, in both modes.

TRL generates with transformers, and with vLLM in its process (`vllm_mode: colocate`); the faster one is what we are
compared to. Its batch is the whole step's at once, which was faster than any division of it; it keeps no more log than
we do, and decodes with a cache.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import Field

from vlgenrm_ray import recipe
from vlgenrm_ray.config import PolicyRunConfig
from vlgenrm_ray.engines.vllm_config import environment
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.policy.journal import read_lines
from vlgenrm_ray.report.bench import processes
from vlgenrm_ray.report.bench.figures import middle
from vlgenrm_ray.report.bench.policy_work import Mode, Pace, pace, work
from vlgenrm_ray.report.bench.trl_arguments import GENERATIONS, Generation, arguments
from vlgenrm_ray.settings import Settings

Part = Literal["trl", "phases", "one_step_off"]
PARTS: tuple[Part, ...] = ("trl", "phases", "one_step_off")
_LIMIT_S = 3600.0
_MODES: tuple[Mode, ...] = ("synchronous", "one_step_off")


class PolicyBenchConfig(Settings):
    """How much is measured."""

    parts: tuple[Part, ...] = PARTS
    steps: int = Field(default=8, ge=1)
    """Of each training that count."""
    warmup: int = Field(default=3, ge=1)
    """Steps before them."""
    turns: int = Field(default=2, ge=1)
    micro_batches: int = Field(default=1, ge=1)
    """That TRL deals a step's samples out to."""
    generations: tuple[Generation, ...] = GENERATIONS
    """How TRL generates: the fastest counts."""


class PolicyBench:
    """One run. `run` measures part by part; `results` holds what is there so far."""

    def __init__(self, bench: PolicyBenchConfig, config: PolicyRunConfig, tell: Callable[[str], None]) -> None:
        """Raises InputError for a recipe that cannot be measured so, or too few cores."""
        self.bench = bench
        self.results: dict[str, Any] = {}
        self.cores = len(os.sched_getaffinity(0))
        self._tell = tell
        total = bench.warmup + bench.steps + 1
        self._together = work(config, steps=total, threads=self.cores)
        self._apart = {mode: work(config, steps=total, threads=1, mode=mode) for mode in _MODES}
        self.trl = {
            name: arguments(self._together, generation=name, micro_batches=bench.micro_batches)
            for name in (bench.generations if "trl" in bench.parts else ())
        }
        """The arguments of TRL's trainer."""
        if self.trl and find_spec("trl") is None:
            raise InputError("--parts trl: TRL is not installed; cluster/requirements-dev.txt says which version")
        if "one_step_off" in bench.parts and self.cores < 2:
            raise InputError("--parts one_step_off: an engine and a learner with a core each need two cores")

    def run(self) -> dict[str, Any]:
        """All parts' figures. Raises StageError where a training fails."""
        with TemporaryDirectory() as name:
            if {"trl", "phases"} & set(self.bench.parts):
                self._steps(Path(name) / "together")
            if "one_step_off" in self.bench.parts:
                self._modes(Path(name) / "apart")
        return self.results

    def settings(self) -> dict[str, Any]:
        """Of both sides, for the report."""
        return {
            "bench": self.bench.model_dump(mode="json"),
            "ours": self._together.model_dump(mode="json"),
            "trl": self.trl,
        }

    # -- parts -------------------------------------------------------------------------------------------------

    def _steps(self, folder: Path) -> None:
        runs: dict[str, Callable[[Path], Pace]] = {"ours": partial(self._ours, self._together)}
        for name in self.trl:
            # Our first run comes first: it makes the questions.
            runs[name] = partial(self._trl, name, folder / "ours-1")
        found = self._in_turns(runs, folder)
        ours = found.pop("ours")
        if found:
            self.results["trl"] = compared(ours, found)
        if "phases" in self.bench.parts:
            self.results["phases"] = shares(ours)

    def _modes(self, folder: Path) -> None:
        found = self._in_turns({mode: partial(self._ours, config) for mode, config in self._apart.items()}, folder)
        off = found.pop("one_step_off")
        self.results["one_step_off"] = compared(off, found)

    def _in_turns(self, runs: Mapping[str, Callable[[Path], Pace]], folder: Path) -> dict[str, list[Pace]]:
        found: dict[str, list[Pace]] = {name: [] for name in runs}
        for turn in range(1, self.bench.turns + 1):
            for name in runs if turn % 2 else reversed(list(runs)):
                one = runs[name](folder / f"{name}-{turn}")
                found[name].append(one)
                self._tell(f"turn {turn} of {self.bench.turns}: {name:<12} {one.rate:>8.2f} samples/s")
        return found

    # -- sides -------------------------------------------------------------------------------------------------

    def _ours(self, config: PolicyRunConfig, target: Path) -> Pace:
        target.mkdir(parents=True)
        path = target / "recipe.yaml"
        path.write_text(recipe.dump(config), encoding="utf-8")
        cpus = config.policy.num_cpus + int(config.policy.rollouts.num_cpus)
        command = [sys.executable, "-m", "vlgenrm_ray.report.bench.our_side", str(path), str(target), str(cpus)]
        # Ray would put its workers behind all else; what they are compared to is their equal.
        processes.finish(command, {"RAY_worker_niceness": "0"}, limit_s=_LIMIT_S)
        return self._pace(target / "policy" / "metrics.jsonl")

    def _trl(self, name: Generation, run: Path, target: Path) -> Pace:
        command = [sys.executable, "-m", "vlgenrm_ray.report.bench.trl_side", str(run), name]
        command += [str(self.bench.micro_batches), str(target)]
        threads = str(self.cores)
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        if name == "vllm":
            variables |= environment(self._together.policy.rollouts.engine)
        processes.finish(command, variables, limit_s=_LIMIT_S)
        return self._pace(target / "metrics.jsonl")

    def _pace(self, path: Path) -> Pace:
        return pace(read_lines(path), warmup=self.bench.warmup, steps=self.bench.steps)


def compared(ours: Sequence[Pace], theirs: Mapping[str, Sequence[Pace]]) -> dict[str, Any]:
    """Samples a second by turns, and ours to those of the fastest of the others."""
    others = {name: middle([turn.figures() for turn in turns]) for name, turns in theirs.items()}
    fastest = max(others, key=lambda name: others[name]["samples_per_s"])
    mine = middle([turn.figures() for turn in ours])
    return {
        "ours": mine,
        "others": others,
        "fastest": fastest,
        "ratio": round(mine["samples_per_s"] / others[fastest]["samples_per_s"], 3),
        "ratios": [round(a.rate / b.rate, 3) for a, b in zip(ours, theirs[fastest], strict=True)],
    }


def shares(turns: Sequence[Pace]) -> dict[str, float]:
    """What part of a step, in percent, is spent on waiting for samples and rewards, on learning, on handing out the
    weights, and on all else.
    """
    found = {
        name: 100.0 * sum(turn.phases[name] for turn in turns) / sum(turn.seconds for turn in turns)
        for name in ("wait", "learn", "sync")
    }
    found["other"] = 100.0 - sum(found.values())
    return {name: round(share, 2) for name, share in found.items()}
