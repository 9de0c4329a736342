"""What `vlgenrm bench` calls: measure, print, write down."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vlgenrm_ray import config
from vlgenrm_ray.bench import table
from vlgenrm_ray.bench.table import Row
from vlgenrm_ray.engines import model_folder, vllm_config
from vlgenrm_ray.entrypoints import serving_config, shipped_recipe
from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    from vlgenrm_ray.bench.policy import PolicyBench
    from vlgenrm_ray.bench.serving import ServingBench


def bench_critiques(path: Path | None, *, run: Path, overrides: Sequence[str] = (), pairs: int) -> None:
    """Print the critiques actor's speed as a ratio to its bare engine's; in this process, without Ray."""
    from vlgenrm_ray.bench.critiques import bench_critiques
    from vlgenrm_ray.data.store import StageFolder
    from vlgenrm_ray.engines.vllm import VllmGenerator

    settings = config.load(path or shipped_recipe("shapes"), tuple(overrides))
    folder = str(model_folder.locate(settings.base))
    generator = VllmGenerator(settings.critiques.engine.model_copy(update={"model": folder}))
    found = bench_critiques(
        generator,
        settings.judge,
        StageFolder(run / "preferences"),
        limits=settings.critiques.images,
        pairs=pairs,
    )
    console = Console(highlight=False)
    for name, value in found.items():
        console.print(f"{name:<24} {value}")


def bench_serving(
    model: str,
    *,
    path: Path | None = None,
    overrides: Sequence[str] = (),
    parts: Sequence[str] = (),
    items: int = 256,
    turns: int = 2,
    soak_s: float = 0.0,
    data: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure the service beside `vllm serve`; print and return the figures, and write them to `out`."""
    from vlgenrm_ray.bench import serving as measuring
    from vlgenrm_ray.bench import work
    from vlgenrm_ray.bench.serving_table import rows

    chosen = _parts(parts, measuring.PARTS, (*measuring.PARTS, "soak"))
    chosen += ("soak",) if soak_s and "soak" not in parts else ()
    asked = measuring.BenchConfig.model_validate(
        {"parts": chosen, "items": items, "turns": turns, "soak_s": soak_s or 60.0}
    )
    served = serving_config(model, path=path, overrides=overrides, replicas=1)
    count = measuring.needed(items)
    pieces = work.of_file(data, count) if data else work.of_shapes(count, seed=seed)
    arguments = ["--model", served.engine.model, *(["--config", str(path)] if path else [])]
    arguments += [word for override in overrides for word in ("--set", override)]
    console = Console(highlight=False)
    console.print(f"seed {seed}  items {items}  K {served.judge.num_critiques}", markup=False)
    bench = measuring.ServingBench(asked, served, arguments, pieces, lambda line: console.print(line, markup=False))
    found = {"seed": seed, "judge": served.judge.model_dump(mode="json"), "bench": asked.model_dump(mode="json")}
    _measured(bench, found, rows, console, out)
    if agreed := bench.results.get("vllm"):
        console.print(f"rewards, ours and vllm serve's: {agreed['rewards']}", markup=False, soft_wrap=True)
    return found


def bench_policy(
    path: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    parts: Sequence[str] = (),
    steps: int = 8,
    turns: int = 2,
    seed: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure a policy's training; print and return the figures, and write them to `out`."""
    from vlgenrm_ray.bench import policy as measuring
    from vlgenrm_ray.bench.policy_table import rows

    recipe = config.load_policy(
        path or shipped_recipe("shapes_grpo"), (*overrides, *([] if seed is None else [f"seed={seed}"]))
    )
    asked = measuring.PolicyBenchConfig.model_validate(
        {"parts": _parts(parts, measuring.PARTS, measuring.PARTS), "steps": steps, "turns": turns}
    )
    console = Console(highlight=False)
    bench = measuring.PolicyBench(asked, recipe, lambda line: console.print(line, markup=False))
    console.print(f"seed {recipe.seed}  cores {bench.cores}  steps {steps} after {asked.warmup}", markup=False)
    found = {"seed": recipe.seed, "settings": bench.settings()}
    return _measured(bench, found, rows, console, out)


def _parts(chosen: Sequence[str], default: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Of a bench. Raises InputError for one that it has not."""
    if unknown := sorted(set(chosen) - set(known)):
        raise InputError(f"--parts: {unknown[0]!r} is none of {', '.join(known)}")
    return tuple(chosen or default)


def _measured(
    bench: "PolicyBench | ServingBench",
    found: dict[str, Any],
    rows: Callable[[Mapping[str, Any]], Iterable[Row]],
    console: Console,
    out: Path | None,
) -> dict[str, Any]:
    """Run a bench; `found` with its results, which are printed, and written to `out`."""
    found["versions"], found["cores"] = vllm_config.versions(), len(os.sched_getaffinity(0))
    try:
        bench.run()
    finally:
        # What was measured before a failure is worth having.
        found["results"] = bench.results
        for line in table.lines(rows(bench.results)):
            console.print(line, markup=False)
        if out:
            out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found
