"""Bench of the service with a fake service: all parts but the comparison with vllm serve."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from fake_service import FakeInlineService, listening
from serving_examples import png

from vlgenrm_ray.bench import servers, serving
from vlgenrm_ray.bench.items import BenchItem
from vlgenrm_ray.bench.serving import ServingBench, ServingBenchConfig, build_rows, required_items
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.serving.config import ServingConfig

JUDGE = JudgeConfig(prompt="shapes_cot", num_critiques=2, max_tokens=160)
ITEM = BenchItem(png(), "Is there a red circle?", "0.25")


def test_all_parts_of_the_service_alone_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[float] = []

    @contextmanager
    def fake_service(arguments: Any, *, cache_mib: float) -> Iterator[tuple[str, int]]:
        caches.append(cache_mib)
        with listening(FakeInlineService()) as url:
            yield url, os.getpid()

    monkeypatch.setattr(servers, "service", fake_service)
    # The fake service accepts four requests at once.
    monkeypatch.setattr(serving, "LEVELS", (1, 4, 4))
    monkeypatch.setattr(serving, "_SAMPLE_INTERVAL_S", 0.05)
    monkeypatch.setattr(serving, "_PROCESS_TITLES", {"ingress": "sleep 30"})
    bench = ServingBenchConfig(parts=("cache", "critiques", "overhead", "soak"), items=8, soak_s=0.5)
    items = [replace(ITEM, response=str(i / 100)) for i in range(required_items(8))]
    sleeper = subprocess.Popen(["sleep", "30"])
    try:
        results = ServingBench(bench, ServingConfig(judge=JUDGE), (), items, lambda line: None).run()
    finally:
        sleeper.kill()
        sleeper.wait()
    assert caches == [0.0, 64.0, 1.0]
    assert set(results) == {"cache", "critiques", "overhead", "soak"}
    assert set(results["critiques"]) == {"1", "4"}
    assert abs(results["soak"]["memory"]["ingress"]["mib_per_min"]["value"]) < 1.0
    assert len(list(build_rows(results))) == 2 + 4 + 2 + 2
