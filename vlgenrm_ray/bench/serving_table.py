"""The rows of the service's bench."""

from collections.abc import Iterator, Mapping
from typing import Any

from vlgenrm_ray.bench.table import Row


def rows(results: Mapping[str, Any]) -> Iterator[Row]:
    """Every figure of the results, in order."""
    if found := results.get("vllm"):
        for level, at in found["levels"].items():
            ours, theirs = at["ours"], at["vllm"]
            beside = "\n".join(
                f"{name:<11} {side['scores_per_s']:>8.2f}/s  p50 {side['p50_ms']:>7.1f}  p99 {side['p99_ms']:>7.1f} ms"
                for name, side in (("the service", ours), ("vllm serve", theirs))
            )
            yield Row(
                what=f"scores/s to vllm serve's, {level} at a time", measured=at["ratio"], least=0.95, beside=beside
            )
    if found := results.get("cache"):
        base = f"{found['without']['scores_per_s']:.4g}/s"
        for name, what, least in (("half_repeated", "half repeated", 1.8), ("fully_cached", "all cached", 10.0)):
            beside = f"{found[name]['scores_per_s']:.4g}/s, without cache {base}"
            yield Row(what=f"scores/s by the cache, {what}", measured=found[name]["ratio"], least=least, beside=beside)
    for level, at in results.get("critiques", {}).items():
        for name, what in (("latency_ratio", "latency"), ("cost_ratio", "cost")):
            beside = (
                f"{at['k8']['p50_ms']:.0f} / {at['k1']['p50_ms']:.0f} ms"
                if name == "latency_ratio"
                else (f"{at['k1']['scores_per_s']:.4g} / {at['k8']['scores_per_s']:.4g} per s")
            )
            yield Row(what=f"{what} of K = 8 to K = 1, {level} at a time", measured=at[name], most=2.5, beside=beside)
    if found := results.get("overhead"):
        beside = f"p99 {found['known_p99_ms']:g} ms; the engine's own {found['engine_p50_ms']:g}"
        yield Row(
            what="p50 beyond the engine's time", measured=found["known_p50_ms"], unit="ms", most=5.0, beside=beside
        )
        beside = f"p99 {found['new_p99_ms']:g} ms"
        yield Row(what="    with a picture new to it", measured=found["new_p50_ms"], unit="ms", beside=beside)
    if found := results.get("soak"):
        for name, part in found["memory"].items():
            rise = part["mib_per_min"]
            beside = f"95 %: {rise['low']:.2f} to {rise['high']:.2f}; {part['mib']:.0f} MiB"
            what = f"memory of {name} over {found['seconds']:.0f} s"
            yield Row(what=what, measured=rise["value"], unit="MiB/min", beside=beside)
