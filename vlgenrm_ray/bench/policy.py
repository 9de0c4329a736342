"""Speed of policy training: relative to TRL's GRPOTrainer, by phase, and one-step-off relative to synchronous.

Trainings run one at a time, each in a process of its own, on the cores that this process may use. They alternate in
order and reverse order, so a drift of the machine affects all alike. Only steady steps count: neither the warm-up
steps, nor the last one, which overlaps with no further step.

Our engine and our learner have half of the cores each, in both modes. Giving all cores to each of them in turn was
not faster, because most of the engine's time is single-threaded Python. TRL has all cores in its one process.

TRL generates with transformers, or with vLLM in its process (`vllm_mode: colocate`); the faster of the two counts. Its
batch is a whole step, which was faster than any division of it. It writes no more logs than ours and decodes with a
cache.

`python -m vlgenrm_ray.bench.policy RECIPE FOLDER CPUS` runs our side; `trl_side.py` runs the other one.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import Field
from rich.console import Console

from vlgenrm_ray import config, recipe
from vlgenrm_ray.bench import processes
from vlgenrm_ray.bench.statistics import median_metrics, ratio_per_turn
from vlgenrm_ray.bench.table import ReportRow, run_and_report, select_parts
from vlgenrm_ray.bench.trl_side import GENERATION_BACKENDS, GenerationBackend, grpo_arguments
from vlgenrm_ray.cluster import ray_compat
from vlgenrm_ray.config import PolicyRunConfig
from vlgenrm_ray.engines.vllm_config import environment
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.errors import InputError, StageError
from vlgenrm_ray.policy.run_logging import read_lines
from vlgenrm_ray.rewards.config import RewardConfig
from vlgenrm_ray.settings import Settings

Part = Literal["trl", "phases", "one_step_off"]
PARTS: tuple[Part, ...] = ("trl", "phases", "one_step_off")
Mode = Literal["synchronous", "one_step_off"]
_MODES: tuple[Mode, ...] = ("synchronous", "one_step_off")
_TIMEOUT_S = 3600.0
_PHASE_LABELS = {
    "wait": "samples and rewards",
    "learn": "learning",
    "sync": "weights to the engine",
    "other": "all else",
}


class PolicyBenchConfig(Settings):
    """Parts and sizes of a run."""

    parts: tuple[Part, ...] = PARTS
    steps: int = Field(default=8, ge=1)
    """Measured steps of each training."""
    warmup: int = Field(default=3, ge=1)
    """Steps before the measured ones."""
    turns: int = Field(default=2, ge=1)
    """Measurements of each training."""
    micro_batches: int = Field(default=1, ge=1)
    """Micro-batches of a step in TRL."""
    generations: tuple[GenerationBackend, ...] = GENERATION_BACKENDS
    """Generation backends of TRL; the fastest counts."""


def run(
    path: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    parts: Sequence[str] = (),
    steps: int = 8,
    turns: int = 2,
    seed: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure policy training and print the table.

    Args:
        path: Policy recipe; None: `shapes_grpo`.
        overrides: Settings of the recipe to change, `a.b=value`.
        parts: Parts to run; empty: all.
        steps: Measured steps of each training.
        turns: Measurements of each training.
        seed: Seed of the training; None: the recipe's.
        out: JSON file for the report.

    Returns:
        The report.

    Raises:
        InputError: A part is unknown, the recipe cannot be measured, TRL is missing, or there are too few cores.
    """
    training = config.load_policy(
        path or shipped_recipe("shapes_grpo"), (*overrides, *([] if seed is None else [f"seed={seed}"]))
    )
    bench_config = PolicyBenchConfig.model_validate(
        {"parts": select_parts(parts, default=PARTS, known=PARTS), "steps": steps, "turns": turns}
    )
    console = Console(highlight=False)
    bench = PolicyBench(bench_config, training, lambda line: console.print(line, markup=False))
    console.print(f"seed {training.seed}  cores {bench.cores}  steps {steps} after {bench_config.warmup}", markup=False)
    settings = {"seed": training.seed, "settings": bench.settings()}
    return run_and_report(bench.run, bench.results, build_rows, console=console, settings=settings, out=out)


class PolicyBench:
    """One run of the bench; `results` holds the metrics by part, over the turns that are finished."""

    def __init__(self, bench: PolicyBenchConfig, config: PolicyRunConfig, log: Callable[[str], None]) -> None:
        """Prepare a run of the bench; the method `run` starts it.

        Args:
            bench: Parts and sizes.
            config: Recipe of the training.
            log: Receives lines of progress.

        Raises:
            InputError: The recipe cannot be measured, TRL is missing, or there are too few cores.
        """
        self.bench = bench
        self.results: dict[str, Any] = {}
        self.cores = len(os.sched_getaffinity(0))
        self._log = log
        total_steps = bench.warmup + bench.steps + 1
        threads = max(1, self.cores // 2)
        self.recipes = {mode: reduce_recipe(config, steps=total_steps, threads=threads, mode=mode) for mode in _MODES}
        """Recipes of our side, by mode."""
        backends = bench.generations if "trl" in bench.parts else ()
        self.trl = {
            name: grpo_arguments(self.recipes["synchronous"], generation=name, micro_batches=bench.micro_batches)
            for name in backends
        }
        """Arguments of TRL's trainer, by generation backend."""
        if self.trl and find_spec("trl") is None:
            raise InputError("--parts trl: TRL is not installed; cluster/requirements-dev.txt says which version")
        if "one_step_off" in bench.parts and self.cores < 2:
            raise InputError("--parts one_step_off: an engine and a learner with a core each need two cores")

    def run(self) -> dict[str, Any]:
        """Run all trainings and return the metrics of all parts. Raises StageError if a training fails."""
        with TemporaryDirectory() as name:
            folder = Path(name)
            trainings: dict[str, Callable[[Path], Throughput]] = {
                mode: partial(self._train_ours, config)
                for mode, config in self.recipes.items()
                if mode == "synchronous" or mode in self.bench.parts
            }
            for generation in self.trl:
                # Our first training writes the questions that TRL reads.
                trainings[generation] = partial(self._train_trl, generation, folder / "synchronous-1")
            for measured in self._alternate(trainings, folder):
                self._summarize(measured)
        return self.results

    def settings(self) -> dict[str, Any]:
        """Return the settings of both sides, for the report."""
        return {
            "bench": self.bench.model_dump(mode="json"),
            "ours": {mode: config.model_dump(mode="json") for mode, config in self.recipes.items()},
            "trl": self.trl,
        }

    def _summarize(self, measured: Mapping[str, Sequence["Throughput"]]) -> None:
        parts, ours = self.bench.parts, measured["synchronous"]
        if "trl" in parts:
            self.results["trl"] = compare_throughput(ours, {name: measured[name] for name in self.trl})
        if "phases" in parts:
            self.results["phases"] = phase_shares(ours)
        if "one_step_off" in parts:
            self.results["one_step_off"] = compare_throughput(measured["one_step_off"], {"synchronous": ours})

    def _alternate(
        self, trainings: Mapping[str, Callable[[Path], "Throughput"]], folder: Path
    ) -> Iterator[dict[str, list["Throughput"]]]:
        """Run the trainings turn by turn; yield all measurements so far after each turn."""
        measured: dict[str, list[Throughput]] = {name: [] for name in trainings}
        for turn in range(1, self.bench.turns + 1):
            for name in trainings if turn % 2 else reversed(list(trainings)):
                throughput = trainings[name](folder / f"{name}-{turn}")
                measured[name].append(throughput)
                self._log(f"turn {turn} of {self.bench.turns}: {name:<12} {throughput.rate:>8.2f} samples/s")
            yield measured

    def _train_ours(self, config: PolicyRunConfig, target: Path) -> "Throughput":
        target.mkdir(parents=True)
        path = target / "recipe.yaml"
        path.write_text(recipe.dump(config), encoding="utf-8")
        cpus = config.policy.num_cpus + int(config.policy.rollouts.num_cpus)
        command = [sys.executable, "-m", "vlgenrm_ray.bench.policy", str(path), str(target), str(cpus)]
        # Ray lowers the priority of its workers; TRL, the other side of the comparison, has the normal one.
        processes.run_to_end(command, ray_compat.FULL_PRIORITY_WORKERS, timeout_s=_TIMEOUT_S)
        return self._read_throughput(target / "policy" / "metrics.jsonl")

    def _train_trl(self, name: GenerationBackend, run_folder: Path, target: Path) -> "Throughput":
        command = [sys.executable, "-m", "vlgenrm_ray.bench.trl_side", str(run_folder), name]
        command += [str(self.bench.micro_batches), str(target)]
        threads = str(self.cores)
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        if name == "vllm":
            variables |= environment(self.recipes["synchronous"].policy.rollouts.engine)
        processes.run_to_end(command, variables, timeout_s=_TIMEOUT_S)
        return self._read_throughput(target / "metrics.jsonl")

    def _read_throughput(self, path: Path) -> "Throughput":
        return measure_throughput(read_lines(path), warmup=self.bench.warmup, steps=self.bench.steps)


def reduce_recipe(
    training: PolicyRunConfig, *, steps: int, threads: int, mode: Mode = "synchronous"
) -> PolicyRunConfig:
    """Reduce a recipe to its training steps.

    The reward is the recipe's evaluation function. Nothing is served, and as little as possible is saved or evaluated.

    Args:
        training: Recipe of a training on CPUs.
        steps: Number of steps.
        threads: Threads of the engine, and of the learner.
        mode: Synchronous or one-step-off.

    Raises:
        InputError: The recipe has no evaluation function, or uses GPUs.
    """
    policy = training.policy
    if not policy.evaluation.measure:
        raise InputError("policy.evaluation.measure: the bench's reward is the function named there, and it is empty")
    if policy.num_gpus or policy.rollouts.num_gpus:
        raise InputError(
            "policy.num_gpus, policy.rollouts.num_gpus: the bench divides CPU cores between both sides; set both to 0"
        )
    rollouts = policy.rollouts
    engine = rollouts.engine.model_copy(update={"threads": threads})
    changes = {
        "rewards": (RewardConfig(name="measure", function=policy.evaluation.measure),),
        "mode": mode,
        "steps": steps,
        "critic_warmup": 0,
        "rollouts": rollouts.model_copy(update={"num_engines": 1, "num_cpus": float(threads), "engine": engine}),
        "workers": 1,
        "num_cpus": threads,
        "checkpoint_every": 0,
        "samples_every": steps,
        "evaluation": policy.evaluation.model_copy(update={"every": steps, "num_samples": 0}),
        "reward_hacking": None,
    }
    return training.model_copy(
        update={
            "judge_service": None,
            "pool": training.pool.model_copy(update={"count": policy.questions_per_step * steps}),
            "heldout": training.heldout.model_copy(update={"count": 1}),
            "policy": policy.model_copy(update=changes),
        }
    )


# -- throughput --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Work and time of the steady steps of one training."""

    steps: int
    seconds: float
    samples: float
    tokens: float
    """Sampled tokens."""
    reward: float
    """Mean over the steps."""
    phases: Mapping[str, float]
    """Seconds of each phase, summed over the steps. Phases need not cover a whole step."""

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds

    def metrics(self) -> dict[str, float]:
        """Return rates, and means per step."""
        rates = {
            "samples_per_s": self.rate,
            "tokens_per_s": self.tokens / self.seconds,
            "tokens_per_sample": self.tokens / self.samples,
            "reward": self.reward,
            "step_s": self.seconds / self.steps,
        }
        return rates | {f"{name}_s": seconds / self.steps for name, seconds in self.phases.items()}


def measure_throughput(lines: Sequence[Mapping[str, Any]], *, warmup: int, steps: int) -> Throughput:
    """Compute the throughput of a training over the steps after its warm-up.

    A step lasts from the end (`timestamp`, in seconds) of the previous step to its own.

    Args:
        lines: Metrics of the training, a line per step.
        warmup: Steps to skip, at least 1.
        steps: Steps to measure.

    Raises:
        StageError: A step is missing.
    """
    if [line["step"] for line in lines[: warmup + steps]] != list(range(1, warmup + steps + 1)):
        raise StageError(
            f"{warmup} steps and {steps} more were to be measured; there are {len(lines)} lines of metrics"
        )
    steady = lines[warmup : warmup + steps]
    return Throughput(
        steps=steps,
        seconds=steady[-1]["timestamp"] - lines[warmup - 1]["timestamp"],
        samples=math.fsum(line["samples"] for line in steady),
        tokens=math.fsum(line["samples"] * line["length"] for line in steady),
        reward=math.fsum(line["reward"] for line in steady) / steps,
        phases={name: math.fsum(line["seconds"][name] for line in steady) for name in steady[0]["seconds"]},
    )


def compare_throughput(ours: Sequence[Throughput], theirs: Mapping[str, Sequence[Throughput]]) -> dict[str, Any]:
    """Compare our samples per second to those of the fastest of the others.

    Args:
        ours: Measurements of our side, one per turn.
        theirs: Measurements of the others by name, one per turn.

    Returns:
        Median metrics of all, the name of the fastest other, the ratio of medians, and the ratio of each turn.
    """
    others = {name: median_metrics([turn.metrics() for turn in turns]) for name, turns in theirs.items()}
    fastest = max(others, key=lambda name: others[name]["samples_per_s"])
    mine = median_metrics([turn.metrics() for turn in ours])
    return {
        "ours": mine,
        "others": others,
        "fastest": fastest,
        "ratio": round(mine["samples_per_s"] / others[fastest]["samples_per_s"], 3),
        "ratios": ratio_per_turn([turn.rate for turn in ours], [turn.rate for turn in theirs[fastest]]),
    }


def phase_shares(turns: Sequence[Throughput]) -> dict[str, float]:
    """Return the share of a step, in percent, of each phase (`wait` for samples and rewards, ...) and of the rest."""
    shares = {
        name: 100.0 * sum(turn.phases[name] for turn in turns) / sum(turn.seconds for turn in turns)
        for name in ("wait", "learn", "sync")
    }
    shares["other"] = 100.0 - sum(shares.values())
    return {name: round(share, 2) for name, share in shares.items()}


# -- table -------------------------------------------------------------------------------------------------------------


def build_rows(results: Mapping[str, Any]) -> Iterator[ReportRow]:
    """Build the rows of the table, part by part."""
    if comparison := results.get("trl"):
        sides = {"ours": comparison["ours"]} | {f"TRL, {name}": side for name, side in comparison["others"].items()}
        label = "samples/s over TRL's GRPOTrainer"
        yield ReportRow(label=label, measured=comparison["ratio"], minimum=2.0, details=_format_sides(sides))
    if shares := results.get("phases"):
        for name, phase in _PHASE_LABELS.items():
            maximum = 5.0 if name == "sync" else None
            yield ReportRow(label=f"share of a step: {phase}", measured=shares[name], unit="%", maximum=maximum)
    if comparison := results.get("one_step_off"):
        sides = {"one-step-off": comparison["ours"], "synchronous": comparison["others"]["synchronous"]}
        label = "samples/s, one-step-off to synchronous"
        yield ReportRow(label=label, measured=comparison["ratio"], minimum=1.2, details=_format_sides(sides))


def _format_sides(sides: Mapping[str, Mapping[str, float]]) -> str:
    return "\n".join(
        f"{name:<18} {side['samples_per_s']:>8.2f}/s  {side['step_s']:>7.3f} s a step, "
        f"{side['tokens_per_sample']:>5.1f} tokens a sample"
        for name, side in sides.items()
    )


# -- our side ----------------------------------------------------------------------------------------------------------


def train_ours(recipe_path: Path, run_folder: Path, num_cpus: int) -> None:
    """Run a recipe to its end on a Ray of its own, as `vlgenrm policy` does.

    Ray counts `num_cpus` CPUs, which may exceed the machine's: engine and learner may each use all cores in turn.
    """
    from vlgenrm_ray import policy_pipeline
    from vlgenrm_ray.cluster import connection

    training = config.load_policy(recipe_path)
    connection.connect("local", num_cpus=num_cpus, offline=True)
    policy_pipeline.run(training, run_folder)


if __name__ == "__main__":
    train_ours(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
