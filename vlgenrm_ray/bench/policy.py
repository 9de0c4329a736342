"""The speed of a policy's training, as ratios within one run: to TRL's GRPOTrainer, and one-step-off to synchronous.

Trainings run one at a time, each in a process of its own, on the cores that this process may use, and take turns there
and back, so that a drift of the machine harms all alike. Only steady steps count: not the first ones, which warm up,
nor the last, which has no next one beside it.

Ours has an engine and a learner, and each has half of the cores, in both modes: all of them for each, in turns, was
not faster, for most of an engine's time is one thread's Python. TRL has all cores, in its one process.

TRL generates with transformers, and with vLLM in its process (`vllm_mode: colocate`); the faster one is what we are
compared to. Its batch is the whole step's at once, which was faster than any division of it; it keeps no more log than
we do, and decodes with a cache.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import Field

from vlgenrm_ray import recipe
from vlgenrm_ray.bench import processes
from vlgenrm_ray.bench.figures import middle
from vlgenrm_ray.bench.policy_work import Mode, Pace, pace, work
from vlgenrm_ray.bench.trl_arguments import GENERATIONS, Generation, arguments
from vlgenrm_ray.cluster import ray_compat
from vlgenrm_ray.config import PolicyRunConfig
from vlgenrm_ray.engines.vllm_config import environment
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.policy.run_logging import read_lines
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
    """One run; `results` holds its figures by part, of the turns that are done."""

    def __init__(self, bench: PolicyBenchConfig, config: PolicyRunConfig, tell: Callable[[str], None]) -> None:
        """Raises InputError for a recipe that cannot be measured so, or too few cores."""
        self.bench = bench
        self.results: dict[str, Any] = {}
        self.cores = len(os.sched_getaffinity(0))
        self._tell = tell
        total = bench.warmup + bench.steps + 1
        threads = max(1, self.cores // 2)
        self.ours = {mode: work(config, steps=total, threads=threads, mode=mode) for mode in _MODES}
        """What ours is told, by mode."""
        self.trl = {
            name: arguments(self.ours["synchronous"], generation=name, micro_batches=bench.micro_batches)
            for name in (bench.generations if "trl" in bench.parts else ())
        }
        """The arguments of TRL's trainer."""
        if self.trl and find_spec("trl") is None:
            raise InputError("--parts trl: TRL is not installed; cluster/requirements-dev.txt says which version")
        if "one_step_off" in bench.parts and self.cores < 2:
            raise InputError("--parts one_step_off: an engine and a learner with a core each need two cores")

    def run(self) -> dict[str, Any]:
        """All parts' figures. Raises StageError where a training fails."""
        parts = self.bench.parts
        with TemporaryDirectory() as name:
            folder = Path(name)
            runs: dict[str, Callable[[Path], Pace]] = {
                mode: partial(self._ours, config)
                for mode, config in self.ours.items()
                if mode == "synchronous" or mode in parts
            }
            for generation in self.trl:
                # Our first run comes first: it makes the questions.
                runs[generation] = partial(self._trl, generation, folder / "synchronous-1")
            for found in self._in_turns(runs, folder):
                self._sum_up(found)
        return self.results

    def _sum_up(self, found: Mapping[str, Sequence[Pace]]) -> None:
        parts, ours = self.bench.parts, found["synchronous"]
        if "trl" in parts:
            self.results["trl"] = compared(ours, {name: found[name] for name in self.trl})
        if "phases" in parts:
            self.results["phases"] = shares(ours)
        if "one_step_off" in parts:
            self.results["one_step_off"] = compared(found["one_step_off"], {"synchronous": ours})

    def settings(self) -> dict[str, Any]:
        """Of both sides, for the report."""
        return {
            "bench": self.bench.model_dump(mode="json"),
            "ours": {mode: config.model_dump(mode="json") for mode, config in self.ours.items()},
            "trl": self.trl,
        }

    # -- sides -------------------------------------------------------------------------------------------------

    def _in_turns(self, runs: Mapping[str, Callable[[Path], Pace]], folder: Path) -> Iterator[dict[str, list[Pace]]]:
        """What is measured by the end of each turn."""
        found: dict[str, list[Pace]] = {name: [] for name in runs}
        for turn in range(1, self.bench.turns + 1):
            for name in runs if turn % 2 else reversed(list(runs)):
                one = runs[name](folder / f"{name}-{turn}")
                found[name].append(one)
                self._tell(f"turn {turn} of {self.bench.turns}: {name:<12} {one.rate:>8.2f} samples/s")
            yield found

    def _ours(self, config: PolicyRunConfig, target: Path) -> Pace:
        target.mkdir(parents=True)
        path = target / "recipe.yaml"
        path.write_text(recipe.dump(config), encoding="utf-8")
        cpus = config.policy.num_cpus + int(config.policy.rollouts.num_cpus)
        command = [sys.executable, "-m", "vlgenrm_ray.bench.our_side", str(path), str(target), str(cpus)]
        # Ray would put its workers behind all else; what they are compared to is their equal.
        processes.finish(command, ray_compat.FULL_PRIORITY_WORKERS, limit_s=_LIMIT_S)
        return self._pace(target / "policy" / "metrics.jsonl")

    def _trl(self, name: Generation, run: Path, target: Path) -> Pace:
        command = [sys.executable, "-m", "vlgenrm_ray.bench.trl_side", str(run), name]
        command += [str(self.bench.micro_batches), str(target)]
        threads = str(self.cores)
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        if name == "vllm":
            variables |= environment(self.ours["synchronous"].policy.rollouts.engine)
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
