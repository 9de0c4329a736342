"""The critiques stage's actor against its bare engine: the same prompts, images, K and seeds in the same process.

The actor opens images, renders prompts, generates, reads verdicts and writes records; the bare engine only generates,
from prompts made beforehand. The two take turns, and the ratio of their median tokens per second is the result.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from vlgenrm_ray.data import images
from vlgenrm_ray.data.arrow import to_table
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder, units_table
from vlgenrm_ray.engines.contracts import Generator, Prompt, Sampling
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge import prompts
from vlgenrm_ray.judge.judge import Judge, JudgeConfig
from vlgenrm_ray.records import Critique, Preference, Side
from vlgenrm_ray.reward.critiques import judge_item, write_critiques


def bench_critiques(
    generator: Generator, judge: JudgeConfig, source: StageFolder, *, limits: ImageLimits, pairs: int, repeats: int = 3
) -> dict[str, Any]:
    """Tokens per second of both, medians over `repeats` after one unmeasured turn each, and their ratio.

    Raises InputError if `source` holds no preference.
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

    def bare() -> int:
        outcomes = generator.generate(batch, sampling, list(range(len(batch))))
        return sum(len(s.tokens) for outcome in outcomes if isinstance(outcome, list) for s in outcome)

    asker = Judge(judge, generator, limits)

    def stage() -> int:
        # From Arrow rows to Arrow rows, as the actor works.
        to_table(Preference, preferences)
        units = write_critiques(asker, preferences, round=1, hint=False)
        units_table(Critique, units)
        return sum(u.num_tokens for u in units)

    bare(), stage()
    rates: dict[str, list[float]] = {"bare": [], "stage": []}
    for _ in range(repeats):
        rates["bare"].append(_rate(bare))
        rates["stage"].append(_rate(stage))
    return {
        "pairs": len(preferences),
        "critiques_per_response": judge.num_critiques,
        "bare_tokens_per_s": round(statistics.median(rates["bare"]), 1),
        "stage_tokens_per_s": round(statistics.median(rates["stage"]), 1),
        "ratio": round(statistics.median(rates["stage"]) / statistics.median(rates["bare"]), 3),
        "ratios": _ratios(rates["stage"], rates["bare"]),
    }


def _rate(work: Callable[[], int]) -> float:
    began = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - began)


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [round(a / b, 3) for a, b in zip(above, below, strict=True)]
