"""Throughput of the critiques stage's actor relative to its bare engine: same prompts, images, K, seeds and process.

The actor opens images, renders prompts, generates, parses verdicts and writes records; the bare engine only generates,
from prompts rendered in advance. Both run in turn, and the ratio of their median tokens per second is the result.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from vlgenrm_ray import config
from vlgenrm_ray.bench.statistics import ratio_per_turn
from vlgenrm_ray.data import images
from vlgenrm_ray.data.arrow import to_table
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder, units_table
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Generator, Prompt, Sampling
from vlgenrm_ray.entrypoints import shipped_recipe
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge
from vlgenrm_ray.records import Critique, Preference, Side
from vlgenrm_ray.reward.critiques import judge_item, write_critiques


def run(path: Path | None, *, run_folder: Path, overrides: Sequence[str] = (), pairs: int) -> None:
    """Measure with vLLM in this process, without Ray, and print the result.

    Args:
        path: Recipe whose judge and engine are used; None: `shapes`.
        run_folder: Run whose preferences are the prompts.
        overrides: Settings of the recipe to change, `a.b=value`.
        pairs: Number of preferences to critique.

    Raises:
        InputError: The run holds no preference.
    """
    from vlgenrm_ray.engines.vllm import VllmGenerator

    settings = config.load(path or shipped_recipe("shapes"), tuple(overrides))
    folder = str(model_folder.locate(settings.base))
    generator = VllmGenerator(settings.critiques.engine.model_copy(update={"model": folder}))
    metrics = bench_critiques(
        generator,
        settings.judge,
        StageFolder(run_folder / "preferences"),
        limits=settings.critiques.images,
        pairs=pairs,
    )
    console = Console(highlight=False)
    for name, value in metrics.items():
        console.print(f"{name:<24} {value}")


def bench_critiques(
    generator: Generator, judge: JudgeConfig, source: StageFolder, *, limits: ImageLimits, pairs: int, repeats: int = 3
) -> dict[str, Any]:
    """Measure the actor and the bare engine in turn.

    Args:
        generator: Engine of both sides.
        judge: Prompt, sampling and number of critiques.
        source: Stage folder of preferences.
        limits: Bounds for the images.
        pairs: Number of preferences to critique.
        repeats: Measurements of each side, after one to warm up.

    Returns:
        Median tokens per second of both sides, their ratio, and the ratios of the single measurements.

    Raises:
        InputError: `source` holds no preference.
    """
    preferences = list(islice(source.records(Preference), pairs))
    if not preferences:
        raise InputError(f"--run: {source.path} holds no preference; finish a run first (vlgenrm demo)")
    items = [judge_item(preference, side) for preference in preferences for side in Side]
    template = prompts.load(judge.prompt)
    batch = [
        Prompt(
            images=(images.read(preference.question.image, limits),),
            text=prompts.render(template, item.question, item.response),
        )
        for preference, item in zip([p for p in preferences for _ in Side], items, strict=True)
    ]
    sampling = Sampling(
        n=judge.num_critiques, temperature=judge.temperature, top_p=judge.top_p, max_tokens=judge.max_tokens
    )

    def generate_bare() -> int:
        outcomes = generator.generate(batch, sampling, list(range(len(batch))))
        return sum(len(s.tokens) for outcome in outcomes if isinstance(outcome, list) for s in outcome)

    critic = Judge(judge, generator, limits)

    def run_stage() -> int:
        # From Arrow rows to Arrow rows, as the actor does.
        to_table(Preference, preferences)
        units = write_critiques(critic, preferences, round=1, hint=False)
        units_table(Critique, units)
        return sum(u.num_tokens for u in units)

    generate_bare()
    run_stage()
    bare_rates: list[float] = []
    stage_rates: list[float] = []
    for _ in range(repeats):
        bare_rates.append(_tokens_per_s(generate_bare))
        stage_rates.append(_tokens_per_s(run_stage))
    bare, stage = statistics.median(bare_rates), statistics.median(stage_rates)
    return {
        "pairs": len(preferences),
        "critiques_per_response": judge.num_critiques,
        "bare_tokens_per_s": round(bare, 1),
        "stage_tokens_per_s": round(stage, 1),
        "ratio": round(stage / bare, 3),
        "ratios": ratio_per_turn(stage_rates, bare_rates),
    }


def _tokens_per_s(generate: Callable[[], int]) -> float:
    start = time.perf_counter()
    num_tokens = generate()
    return num_tokens / (time.perf_counter() - start)
