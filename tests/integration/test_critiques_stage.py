"""The critiques stage on Ray Data: accounting, continuation, refused inputs."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from free_cpus import all_cpus_are_free

from vlgenrm_ray.data.flow import ActorPoolConfig
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.engines.vllm import VllmConfig
from vlgenrm_ray.errors import ConfigError, EngineLostError, InputError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.records import Critique, Preference
from vlgenrm_ray.reward.critiques import CritiquesConfig, run
from vlgenrm_ray.shapes import pack_path
from vlgenrm_ray.shapes.pairs import gold_pairs

CONFIG = CritiquesConfig(num_critiques=2, actors=ActorPoolConfig(num_cpus=0.5, batch_size=8))
JUDGE = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=3)


def scripted(config: VllmConfig) -> ScriptedGenerator:
    return ScriptedGenerator(lambda p, chance: "Verdict: Yes" if chance.random() < 0.5 else "Verdict: No")


def stage(path: Path, pairs: Sequence[Preference]) -> StageFolder:
    folder = StageFolder(path)
    folder.begin("settings", {})
    write_units(folder, Preference, [Unit(id=p.question.id, records=(p,)) for p in pairs])
    folder.finish(seconds=0.0)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> StageFolder:
    """25 pairs of the embedded world, the first without its image."""
    pairs = list(gold_pairs(tmp_path / "images", seed=0, split="heldout", count=25))
    missing = replace(pairs[0].question.image, uri=str(tmp_path / "gone.png"))
    pairs[0] = replace(pairs[0], question=replace(pairs[0].question, image=missing))
    return stage(tmp_path / "preferences", pairs)


def test_every_preference_has_critiques_or_a_reason(ray_local: None, tmp_path: Path, source: StageFolder) -> None:
    target = StageFolder(tmp_path / "critiques")
    manifest = run(CONFIG, judge=JUDGE, model="none", round=1, source=source, target=target, build=scripted)
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (25, 24 * 4, {"image_missing": 1})
    assert manifest.metrics["readable_share"] == 1.0
    assert manifest.num_tokens == sum(c.num_tokens for c in target.records(Critique))
    with pytest.raises(ConfigError, match="other settings"):
        run(CONFIG, judge=JUDGE, model="none", round=2, source=source, target=target, build=scripted)


class LostOnceGenerator(ScriptedGenerator):
    """A scripted engine that is lost at its second batch, unless the file `lost` says that this has happened."""

    def __init__(self, lost: Path) -> None:
        super().__init__(lambda p, chance: "Verdict: Yes")
        self.lost = lost
        self.num_calls = 0

    def generate(self, *arguments: Any, **options: Any) -> Any:
        self.num_calls += 1
        if self.num_calls > 1 and not self.lost.exists():
            self.lost.touch()
            raise EngineLostError("its process died")
        return super().generate(*arguments, **options)


def test_an_actor_whose_engine_is_lost_is_restarted_and_no_row_is_lost_or_doubled(
    ray_local: None, tmp_path: Path, source: StageFolder
) -> None:
    target, lost = StageFolder(tmp_path / "critiques"), tmp_path / "lost"
    build = partial(_lost_once, lost)
    manifest = run(CONFIG, judge=JUDGE, model="none", round=1, source=source, target=target, build=build)
    assert lost.exists()
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (25, 24 * 4, {"image_missing": 1})
    ids = [critique.id for critique in target.records(Critique)]
    assert len(ids) == len(set(ids)) == 24 * 4


def _lost_once(lost: Path, config: VllmConfig) -> LostOnceGenerator:
    return LostOnceGenerator(lost)


def test_a_killed_stage_continues_where_it_stopped(ray_local: None, tmp_path: Path, source: StageFolder) -> None:
    target = StageFolder(tmp_path / "critiques")
    last = list(source.records(Preference))[-1]

    def dies_on_last(config: VllmConfig) -> ScriptedGenerator:
        def script(prompt: Prompt, chance: object) -> str:
            assert f"{last.question.text}\nResponse: {last.chosen}" not in prompt.text, "killed here"
            return "Verdict: Yes"

        return ScriptedGenerator(script)

    with pytest.raises(Exception, match="killed here") as caught:
        run(CONFIG, judge=JUDGE, model="none", round=1, source=source, target=target, build=dies_on_last)
    assert all_cpus_are_free(), f"held by {caught}"
    assert target.manifest() is None
    done = {u.id: u for u in target.units(Critique)}
    run(CONFIG, judge=JUDGE, model="none", round=1, source=source, target=target, build=scripted)
    after = {u.id: u for u in target.units(Critique)}
    assert len(after) == 25
    assert {i: after[i] for i in done} == done, "committed rows are not written again"


def test_a_bad_model_folder_is_named_before_any_actor_starts(tmp_path: Path, source: StageFolder) -> None:
    with pytest.raises(InputError, match="nowhere"):
        run(CONFIG, judge=JUDGE, model=tmp_path / "nowhere", round=1, source=source, target=StageFolder(tmp_path / "c"))


def test_the_real_model_writes_readable_critiques(ray_local: None, tmp_path: Path, source: StageFolder) -> None:
    engine = VllmConfig(max_model_len=512, kv_cache_gib=0.1)
    config = CONFIG.model_copy(update={"engine": engine, "actors": ActorPoolConfig(num_cpus=1, batch_size=32)})
    judge = JUDGE.model_copy(update={"max_tokens": 160})
    manifest = run(
        config, judge=judge, model=pack_path("vlm"), round=1, source=source, target=StageFolder(tmp_path / "c")
    )
    assert (manifest.rows_in, manifest.rows_out) == (25, 24 * 4)
    assert manifest.metrics["readable_share"] > 0.8
    assert manifest.metrics["mean_verdict_mass"] > 0.8
