"""A stage whose real engine is killed: another one continues, and no row is lost or doubled."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from vlgenrm_ray.data.flow import ActorPoolConfig
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.engines.vllm import VllmConfig, VllmGenerator
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.records import Critique, Preference
from vlgenrm_ray.reward.critiques import CritiquesConfig, run
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.shapes.pairs import gold_pairs

NUM_PAIRS = 12
ENGINE = VllmConfig(max_model_len=512, kv_cache_gib=0.25, threads=1)
CONFIG = CritiquesConfig(engine=ENGINE, num_critiques=1, actors=ActorPoolConfig(num_cpus=0.5, batch_size=4))
JUDGE = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=1, max_tokens=32)


class KilledOnceGenerator(VllmGenerator):
    """An engine in a process of its own, which is killed between its first two batches, unless `killed` exists."""

    def __init__(self, killed: Path, config: VllmConfig) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        super().__init__(config)
        self.killed = killed
        self.num_batches = 0

    def generate(self, *arguments: Any, **options: Any) -> list[Any]:
        self.num_batches += 1
        if self.num_batches == 2 and not self.killed.exists():
            engines = [p for p in psutil.Process().children(recursive=True) if "EngineCore" in " ".join(p.cmdline())]
            assert engines
            self.killed.touch()
            for engine in engines:
                engine.kill()
            psutil.wait_procs(engines)
        return super().generate(*arguments, **options)


def test_another_engine_continues_the_stage(ray_local: None, tmp_path: Path) -> None:
    source = StageFolder(tmp_path / "preferences")
    source.begin("settings", {})
    pairs = list(gold_pairs(tmp_path / "images", seed=0, split="heldout", count=NUM_PAIRS))
    write_units(source, Preference, [Unit(id=p.question.id, records=(p,)) for p in pairs])
    source.finish(seconds=0.0)
    target, killed = StageFolder(tmp_path / "critiques"), tmp_path / "killed"
    build = partial(KilledOnceGenerator, killed)
    model = str(pack_path("vlm"))
    manifest = run(CONFIG, judge=JUDGE, model=model, round=1, source=source, target=target, build=build)
    assert killed.exists()
    assert (manifest.rows_in, manifest.dropped) == (NUM_PAIRS, {})
    ids = [critique.id for critique in target.records(Critique)]
    assert len(ids) == len(set(ids)) == 2 * NUM_PAIRS
