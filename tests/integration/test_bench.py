"""The bench of the service, all its parts but the engines: over a scripted service, with processes to watch."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from fake_service import FakeInlineService, listening
from serving_examples import png

from vlgenrm_ray.bench import servers, serving, soak
from vlgenrm_ray.bench.serving import BenchConfig, ServingBench, needed
from vlgenrm_ray.bench.serving_table import rows
from vlgenrm_ray.bench.work import Piece
from vlgenrm_ray.judge.judge import JudgeConfig
from vlgenrm_ray.serving.config import ServingConfig

JUDGE = JudgeConfig(prompt="shapes_cot", num_critiques=2, max_tokens=160)
PIECE = Piece(png(), "Is there a red circle?", "0.25")


def test_the_service_alone_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[float] = []

    @contextmanager
    def scripted_service(arguments: Any, *, cache_mib: float) -> Iterator[tuple[str, int]]:
        caches.append(cache_mib)
        with listening(FakeInlineService()) as url:
            yield url, os.getpid()

    monkeypatch.setattr(servers, "service", scripted_service)
    # As many as the scripted service takes on at once.
    monkeypatch.setattr(serving, "LEVELS", (1, 4, 4))
    monkeypatch.setattr(soak, "_EVERY_S", 0.05)
    monkeypatch.setattr(soak, "_PARTS", {"ingress": "sleep 30"})
    bench = BenchConfig(parts=("cache", "critiques", "overhead", "soak"), items=8, soak_s=0.5)
    pieces = [replace(PIECE, response=str(i / 100)) for i in range(needed(8))]
    sleeper = subprocess.Popen(["sleep", "30"])
    try:
        results = ServingBench(bench, ServingConfig(judge=JUDGE), (), pieces, lambda line: None).run()
    finally:
        sleeper.kill()
        sleeper.wait()
    assert caches == [0.0, 64.0, 1.0]
    assert set(results) == {"cache", "critiques", "overhead", "soak"}
    assert set(results["critiques"]) == {"1", "4"}
    assert abs(results["soak"]["memory"]["ingress"]["mib_per_min"]["value"]) < 1.0
    assert len(list(rows(results))) == 2 + 4 + 2 + 1
