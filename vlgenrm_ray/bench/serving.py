"""Speed of the judge's service: relative to `vllm serve`, with and without its cache, K = 8 to K = 1, and its memory.

Servers run one at a time, each with one engine of the same settings, on the cores that this process may use; the load
generator uses the same cores. `vllm serve` and the service alternate in the order ours, theirs, theirs, ours, so a
drift of the machine affects both alike.
"""

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import Field
from rich.console import Console

from vlgenrm_ray.bench import items, load, servers
from vlgenrm_ray.bench.clients import RewardReading, ServiceClient, VllmServeClient
from vlgenrm_ray.bench.items import BenchItem
from vlgenrm_ray.bench.load import LoadResult, PostRequest
from vlgenrm_ray.bench.statistics import fit_slope, median_metrics, percentile, ratio_per_turn
from vlgenrm_ray.bench.table import ReportRow, run_and_report, select_parts
from vlgenrm_ray.entrypoints import serving_config
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.remote import RemoteJudge, ScoreInput
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.settings import Settings

Part = Literal["vllm", "cache", "critiques", "overhead", "soak"]
PARTS: tuple[Part, ...] = ("vllm", "cache", "critiques", "overhead")
"""Parts of a run by default."""
LEVELS = (1, 8, 64)
"""Numbers of requests in flight."""
_MANY_CRITIQUES = 8
"""K that the part `critiques` compares to K = 1."""
_MIB = 1 << 20
_SAMPLE_INTERVAL_S = 1.0
_SETTLING_SHARE = 0.5
"""Share of the soak test that is not measured: meanwhile caches fill up to their bounds, and heaps to the size that
batches of all shapes need."""
NUM_WINDOWS = 10
"""Parts of the soak test in which scores are counted: a service that slows down has fewer in the last ones."""
_PROCESS_TITLES = {"ingress": "ServeReplica:vlgenrm:ingress", "engine": "EngineCore"}
"""Processes of the service whose memory is measured, by a part of their titles."""


class ServingBenchConfig(Settings):
    """Parts and sizes of a run."""

    parts: tuple[Part, ...] = PARTS
    items: int = Field(default=256, ge=8)
    """Responses scored at each number of requests in flight; a quarter of them at 1."""
    turns: int = Field(default=2, ge=1)
    """Measurements of each server in the part `vllm`."""
    soak_s: float = Field(default=0.0, ge=0.0)
    """Duration of the part `soak`, in seconds."""


def run(
    model: str,
    *,
    path: Path | None = None,
    overrides: Sequence[str] = (),
    parts: Sequence[str] = (),
    num_items: int = 256,
    turns: int = 2,
    soak_s: float = 0.0,
    data: Path | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure the service and print the table.

    Args:
        model: Model folder, hub name or `pack:vlm`.
        path: Recipe whose judge and engine are used; None: `shapes`.
        overrides: Settings of the recipe to change, `a.b=value`.
        parts: Parts to run; empty: all but `soak`, which `soak_s` adds.
        num_items: Responses scored at each number of requests in flight.
        turns: Measurements of each server in the part `vllm`.
        soak_s: Duration of the soak test in seconds.
        data: JSON Lines file with the responses; None: drawn from the embedded world.
        seed: Seed of the drawn responses.
        out: JSON file for the report.

    Returns:
        The report.

    Raises:
        InputError: A part is unknown, or the data cannot be used.
    """
    chosen = select_parts(parts, default=PARTS, known=(*PARTS, "soak"))
    chosen += ("soak",) if soak_s and "soak" not in parts else ()
    bench_config = ServingBenchConfig.model_validate(
        {"parts": chosen, "items": num_items, "turns": turns, "soak_s": soak_s or 60.0}
    )
    config = serving_config(model, path=path, overrides=overrides, replicas=1)
    count = required_items(num_items)
    bench_items = items.read_items(data, count) if data else items.draw_shapes_items(count, seed=seed)
    arguments = ["--model", config.engine.model, *(["--config", str(path)] if path else [])]
    arguments += [word for override in overrides for word in ("--set", override)]
    console = Console(highlight=False)
    console.print(f"seed {seed}  items {num_items}  K {config.judge.num_critiques}", markup=False)
    bench = ServingBench(bench_config, config, arguments, bench_items, lambda line: console.print(line, markup=False))
    settings = {
        "seed": seed,
        "judge": config.judge.model_dump(mode="json"),
        "bench": bench_config.model_dump(mode="json"),
    }
    report = run_and_report(bench.run, bench.results, build_rows, console=console, settings=settings, out=out)
    if comparison := bench.results.get("vllm"):
        console.print(f"rewards, ours and vllm serve's: {comparison['rewards']}", markup=False, soft_wrap=True)
    return report


def required_items(num_items: int) -> int:
    """Return how many different items a run needs: `num_items` per level, and those that warm the servers up."""
    return len(LEVELS) * num_items + LEVELS[-1]


class ServingBench:
    """One run of the bench; `results` holds the metrics of the parts that are finished."""

    def __init__(
        self,
        bench: ServingBenchConfig,
        serving: ServingConfig,
        arguments: Sequence[str],
        bench_items: Sequence[BenchItem],
        log: Callable[[str], None],
    ) -> None:
        """Prepare a run of the bench; the method `run` starts it.

        Args:
            bench: Parts and sizes.
            serving: Configuration of the service.
            arguments: Arguments of `vlgenrm serve` that give this configuration.
            bench_items: At least `required_items(bench.items)` items.
            log: Receives lines of progress.
        """
        self.bench = bench
        self.serving = serving
        self.results: dict[str, Any] = {}
        self._arguments = arguments
        self._items = bench_items
        self._log = log

    def run(self) -> dict[str, Any]:
        """Measure all parts. Raises EngineLostError if a server does not become ready."""
        if "vllm" in self.bench.parts:
            self.results["vllm"] = self._compare_with_vllm()
        if {"cache", "critiques", "overhead"} & set(self.bench.parts):
            self._measure_service_alone()
        if "soak" in self.bench.parts:
            # A small cache is full from the beginning, so it does not grow while memory is measured.
            with self._service(cache_mib=1.0) as (url, pid):
                client = ServiceClient(self.serving.judge)
                self._warm_up(url, client)
                self._log(f"soaking for {self.bench.soak_s:g} s")
                self.results["soak"] = soak_service(
                    url,
                    pid,
                    client,
                    self._items[: self.bench.items],
                    seconds=self.bench.soak_s,
                    concurrency=LEVELS[-1],
                )
        return self.results

    # -- comparison with vllm serve --------------------------------------------------------------------------------

    def _compare_with_vllm(self) -> dict[str, Any]:
        service_client = ServiceClient(self.serving.judge)
        vllm_client = VllmServeClient(self.serving.judge, self.serving.engine.model)
        ours: list[list[LoadResult]] = []
        theirs: list[list[LoadResult]] = []
        for turn in range(self.bench.turns):
            for is_ours in (turn % 2 == 0, turn % 2 == 1):
                name = "the service" if is_ours else "vllm serve"
                self._log(f"turn {turn + 1} of {self.bench.turns}: {name}")
                if is_ours:
                    with self._service(cache_mib=0.0) as (url, _):
                        ours.append(self._measure_levels(url, service_client))
                else:
                    with servers.vllm_serve(self.serving.engine) as (url, _):
                        theirs.append(self._measure_levels(url, vllm_client))
        levels: dict[str, dict[str, Any]] = {}
        for i, level in enumerate(LEVELS):
            mine = median_metrics([turn[i].metrics() for turn in ours])
            other = median_metrics([turn[i].metrics() for turn in theirs])
            levels[str(level)] = {
                "ours": mine,
                "vllm": other,
                "ratios": ratio_per_turn([turn[i].rate for turn in ours], [turn[i].rate for turn in theirs]),
                "ratio": round(mine["scores_per_s"] / other["scores_per_s"], 3),
            }
        agreement = compare_rewards(
            _parse_replies(service_client, ours[0]), _parse_replies(vllm_client, theirs[0]), self.serving.judge
        )
        return {"levels": levels, "rewards": agreement}

    def _measure_levels(self, url: str, client: ServiceClient | VllmServeClient) -> list[LoadResult]:
        self._warm_up(url, client)
        results = []
        for i, level in enumerate(LEVELS):
            # Each level has texts and images that are new to the server, the same for both servers.
            level_items = self._items[i * self.bench.items :][: self._num_items(level)]
            requests = [client.build_request(item) for item in level_items]
            results.append(load.send_requests(url, requests, concurrency=level))
            self._log(f"  {level:>2} at a time: {results[-1].rate:.2f} scores/s")
        return results

    # -- the service alone -----------------------------------------------------------------------------------------

    def _measure_service_alone(self) -> None:
        client, parts = ServiceClient(self.serving.judge), self.bench.parts
        repeated = items.repeat_blocks(self._items[: self.bench.items], 4 * LEVELS[1])
        requests = [client.build_request(item) for item in repeated]
        self._log("the service without its cache")
        with self._service(cache_mib=0.0) as (url, _):
            self._warm_up(url, client)
            if "overhead" in parts:
                self.results["overhead"] = self._measure_overhead(url)
            if "critiques" in parts:
                self.results["critiques"] = self._measure_critiques(url)
            without = load.send_requests(url, requests, concurrency=LEVELS[1]) if "cache" in parts else None
        if without is not None:
            self._log("the service with its cache")
            with self._service(cache_mib=self.serving.limits.cache_mib) as (url, _):
                self._warm_up(url, client)
                half = load.send_requests(url, requests, concurrency=LEVELS[1])
                full = load.send_requests(url, requests, concurrency=LEVELS[1])
            self.results["cache"] = {
                "without": without.metrics(),
                "half_repeated": half.metrics() | {"ratio": round(half.rate / without.rate, 3)},
                "fully_cached": full.metrics() | {"ratio": round(full.rate / without.rate, 3)},
            }

    def _measure_overhead(self, url: str) -> dict[str, Any]:
        """Measure the package's client, one response at a time: with an image new to the service, then a known one.

        A trainer scores a group of responses to the same image, so the second case is the typical one.
        """
        level_items = self._items[: self._num_items(1)]
        with RemoteJudge(url) as judge:
            new = [_time_overhead(judge, item, seed=0) for item in level_items]
            known = [_time_overhead(judge, item, seed=1) for item in level_items]
        return {
            "engine_p50_ms": round(1000 * percentile([engine for _, engine in known], 0.5), 2),
            **{
                f"{name}_{label}_ms": round(1000 * percentile([overhead for overhead, _ in times], share), 2)
                for name, times in (("new", new), ("known", known))
                for label, share in (("p50", 0.5), ("p99", 0.99))
            },
        }

    def _measure_critiques(self, url: str) -> dict[str, Any]:
        """Measure the cost of K = 8 relative to K = 1, one request at a time and several."""
        metrics: dict[str, Any] = {}
        for level in (LEVELS[0], LEVELS[1]):
            level_items = self._items[: self._num_items(level)]
            results: dict[int, list[LoadResult]] = {}
            # K = 1 comes first and last, so a drift of the machine affects both alike.
            for num_critiques in (1, _MANY_CRITIQUES, _MANY_CRITIQUES, 1):
                client = ServiceClient(self.serving.judge.model_copy(update={"num_critiques": num_critiques}))
                requests = [client.build_request(item) for item in level_items]
                results.setdefault(num_critiques, []).append(load.send_requests(url, requests, concurrency=level))
            one, many = (
                median_metrics([result.metrics() for result in results[num_critiques]])
                for num_critiques in (1, _MANY_CRITIQUES)
            )
            metrics[str(level)] = {
                "k1": one,
                f"k{_MANY_CRITIQUES}": many,
                "latency_ratio": round(many["p50_ms"] / one["p50_ms"], 3),
                "cost_ratio": round(one["scores_per_s"] / many["scores_per_s"], 3),
            }
        return metrics

    def _service(self, *, cache_mib: float) -> AbstractContextManager[tuple[str, int]]:
        return servers.service(self._arguments, cache_mib=cache_mib)

    def _warm_up(self, url: str, client: ServiceClient | VllmServeClient) -> None:
        """Send the last items, which no part measures."""
        requests = [client.build_request(item) for item in self._items[-min(LEVELS[-1], self.bench.items) :]]
        load.send_requests(url, requests[:8], concurrency=1)
        load.send_requests(url, requests[8:], concurrency=LEVELS[1])

    def _num_items(self, level: int) -> int:
        return self.bench.items if level > 1 else max(self.bench.items // 4, 8)


def _time_overhead(judge: RemoteJudge, item: BenchItem, *, seed: int) -> tuple[float, float]:
    """Return the seconds of a round trip beyond the engine's time, and the engine's time.

    Raises StageError if the reply did not come from the engine.
    """
    score_input = ScoreInput(image=item.image, question=item.question, response=item.response, seed=seed)
    start = time.perf_counter()
    (reply,) = judge.score([score_input])
    total_s, engine_s = time.perf_counter() - start, reply.timings.engine_s
    if reply.cached or reply.reward is None:
        raise StageError(f"a response has {reply.status.value}{' from the cache' if reply.cached else ''}")
    return total_s - engine_s, engine_s


def _parse_replies(client: ServiceClient | VllmServeClient, levels: Sequence[LoadResult]) -> list[RewardReading]:
    return [client.parse_reply(reply) for level in levels for reply in level.replies]


def compare_rewards(
    ours: Sequence[RewardReading], theirs: Sequence[RewardReading], judge: JudgeConfig
) -> dict[str, Any]:
    """Check that both servers did the same work, and compare their rewards.

    Returns:
        Number of items, of items without a reward on each side, mean absolute difference, and share within 0.01.

    Raises:
        StageError: A reply has fewer critiques than requested.
    """
    expected = 1 if judge.mode == "direct" else judge.num_critiques
    if incomplete := [reading for reading in (*ours, *theirs) if reading.num_critiques != expected]:
        raise StageError(f"{len(incomplete)} replies do not have {expected} critiques; the servers are not comparable")
    differences = [
        abs(a.reward - b.reward)
        for a, b in zip(ours, theirs, strict=True)
        if a.reward is not None and b.reward is not None
    ]
    return {
        "num": len(ours),
        "ours_without": sum(reading.reward is None for reading in ours),
        "vllm_without": sum(reading.reward is None for reading in theirs),
        "mean_difference": round(math.fsum(differences) / len(differences), 4) if differences else None,
        "equal_within_0.01": round(sum(d <= 0.01 for d in differences) / len(differences), 3) if differences else None,
    }


# -- soak test ---------------------------------------------------------------------------------------------------------


def soak_service(
    url: str, pid: int, client: ServiceClient, bench_items: Sequence[BenchItem], *, seconds: float, concurrency: int
) -> dict[str, Any]:
    """Keep the service at full load and measure whether its memory stays constant.

    Each request has a seed of its own, so that the cache answers none.

    Args:
        url: Address of the service.
        pid: Process that all processes of the service descend from.
        client: Builds the requests.
        bench_items: Items to score, repeated in a cycle.
        seconds: Duration.
        concurrency: Requests in flight.

    Returns:
        Duration, number and rate of scores, scores in each of `NUM_WINDOWS` equal parts of the duration, and per
        process its resident memory and the rise of it in MiB per minute.
    """
    sampler = MemorySampler(pid)
    deadline = time.monotonic() + seconds

    def requests() -> Iterator[PostRequest]:
        for seed in itertools.count():
            if time.monotonic() >= deadline:
                return
            yield client.build_request(bench_items[seed % len(bench_items)], seed=seed)

    start = time.monotonic()
    sampler.start()
    try:
        times = load.completion_times(url, requests(), concurrency=concurrency)
    finally:
        sampler.stop()
    elapsed = time.monotonic() - start
    return {
        "seconds": round(elapsed, 1),
        "scores": len(times),
        "scores_per_s": round(len(times) / elapsed, 2),
        "windows": count_by_window(times, seconds),
        "memory": sampler.metrics(),
    }


def count_by_window(times: Sequence[float], seconds: float) -> list[int]:
    """Count times in `NUM_WINDOWS` equal parts of the first `seconds`; those of the last requests are left out."""
    windows = [0] * NUM_WINDOWS
    for t in times:
        if t < seconds:
            windows[int(t / seconds * NUM_WINDOWS)] += 1
    return windows


def pace_ratio(windows: Sequence[int]) -> float:
    """Return the scores in the second half of the windows, relative to those in the first half.

    The first window is left out: caches and queues fill up in it.
    """
    half = len(windows) // 2
    first, second = windows[1:half], windows[half:]
    return (sum(second) / len(second)) / (sum(first) / len(first)) if sum(first) else math.nan


class MemorySampler:
    """Thread that samples the resident memory of the service's processes once a second."""

    def __init__(self, pid: int) -> None:
        """Find the processes below `pid`. Raises StageError if one is missing."""
        children = psutil.Process(pid).children(recursive=True)
        self._processes = {
            name: [p for p in children if title in _command_line(p)] for name, title in _PROCESS_TITLES.items()
        }
        if missing := [name for name, processes in self._processes.items() if not processes]:
            raise StageError(f"soak: the service has no process of its {', '.join(missing)} to measure")
        self._times: list[float] = []
        self._sizes: dict[str, list[float]] = {name: [] for name in self._processes}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        """Start sampling."""
        self._thread.start()

    def stop(self) -> None:
        """Stop sampling and wait for the thread."""
        self._stopped.set()
        self._thread.join()

    def metrics(self) -> dict[str, Any]:
        """Return per process the memory at the end in MiB, and its rise; empty with fewer than three samples."""
        num_skipped = int(len(self._times) * _SETTLING_SHARE)
        minutes = [t / 60 for t in self._times[num_skipped:]]
        if len(minutes) < 3:
            return {}
        return {
            name: {
                "mib": round(sizes[-1], 1),
                "mib_per_min": {k: round(v, 3) for k, v in asdict(fit_slope(minutes, sizes[num_skipped:])).items()},
            }
            for name, sizes in self._sizes.items()
        }

    def _sample(self) -> None:
        while not self._stopped.wait(_SAMPLE_INTERVAL_S):
            sizes = {name: sum(p.memory_info().rss for p in group) for name, group in self._processes.items()}
            self._times.append(time.monotonic())
            for name, size in sizes.items():
                self._sizes[name].append(size / _MIB)


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# -- table -------------------------------------------------------------------------------------------------------------


def build_rows(results: Mapping[str, Any]) -> Iterator[ReportRow]:
    """Build the rows of the table, part by part."""
    if comparison := results.get("vllm"):
        for level, metrics in comparison["levels"].items():
            details = "\n".join(
                f"{name:<11} {side['scores_per_s']:>8.2f}/s  p50 {side['p50_ms']:>7.1f}  p99 {side['p99_ms']:>7.1f} ms"
                for name, side in (("the service", metrics["ours"]), ("vllm serve", metrics["vllm"]))
            )
            label = f"scores/s over vllm serve, {level} at a time"
            yield ReportRow(label=label, measured=metrics["ratio"], minimum=0.95, details=details)
    if cache := results.get("cache"):
        base = f"{cache['without']['scores_per_s']:.4g}/s"
        for name, case, minimum in (("half_repeated", "half repeated", 1.8), ("fully_cached", "all cached", 10.0)):
            details = f"{cache[name]['scores_per_s']:.4g}/s, without cache {base}"
            label = f"scores/s by the cache, {case}"
            yield ReportRow(label=label, measured=cache[name]["ratio"], minimum=minimum, details=details)
    for level, metrics in results.get("critiques", {}).items():
        one, many = metrics["k1"], metrics[f"k{_MANY_CRITIQUES}"]
        latencies = f"{many['p50_ms']:.0f} / {one['p50_ms']:.0f} ms"
        rates = f"{one['scores_per_s']:.4g} / {many['scores_per_s']:.4g} per s"
        for name, details in (("latency", latencies), ("cost", rates)):
            label = f"{name} of K = 8 to K = 1, {level} at a time"
            yield ReportRow(label=label, measured=metrics[f"{name}_ratio"], maximum=2.5, details=details)
    if overhead := results.get("overhead"):
        details = f"p99 {overhead['known_p99_ms']:g} ms; the engine's own {overhead['engine_p50_ms']:g}"
        label = "p50 beyond the engine's time"
        yield ReportRow(label=label, measured=overhead["known_p50_ms"], unit="ms", maximum=5.0, details=details)
        details = f"p99 {overhead['new_p99_ms']:g} ms"
        yield ReportRow(label="    with a new image", measured=overhead["new_p50_ms"], unit="ms", details=details)
    if soak := results.get("soak"):
        for name, metrics in soak["memory"].items():
            rise = metrics["mib_per_min"]
            details = f"95 %: {rise['low']:.2f} to {rise['high']:.2f}; {metrics['mib']:.0f} MiB"
            label = f"memory of {name} over {soak['seconds']:.0f} s"
            yield ReportRow(label=label, measured=rise["value"], unit="MiB/min", details=details)
        if windows := soak.get("windows"):
            ratio = pace_ratio(windows)
            details = f"scores in {len(windows)} equal windows: {' '.join(map(str, windows))}"
            yield ReportRow(label="pace of the second half to the first", measured=round(ratio, 3), details=details)
