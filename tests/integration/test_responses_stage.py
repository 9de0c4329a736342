"""The responses stage on Ray Data with two scripted generators."""

from pathlib import Path

import pytest
from PIL import Image

from vlgenrm_ray.curation import responses
from vlgenrm_ray.curation.responses import ResponsesConfig
from vlgenrm_ray.data import images
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.data.store import StageFolder, Unit, write_units
from vlgenrm_ray.engines.contracts import Generator
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.engines.vllm import VllmConfig
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.records import Question, Response


def pool_of(run_folder: Path, count: int) -> StageFolder:
    run_folder.mkdir()
    Image.new("RGB", (16, 16)).save(run_folder / "a.png")
    image = images.probe(str(run_folder / "a.png"), ImageLimits())
    pool = StageFolder(run_folder / "pool")
    pool.begin("f", {})
    pair = {"chosen": "A cat.", "rejected": "A dog."}
    questions = [
        Question(id=f"q{i}", image=image, text=f"{i}?", source="test", **(pair if i % 10 == 0 else {}))
        for i in range(count)
    ]
    write_units(pool, Question, [Unit(id=q.id, records=(q,)) for q in questions])
    pool.finish(seconds=0.0)
    return pool


def test_a_missing_model_is_named_before_anything_starts(run_folder: Path) -> None:
    config = ResponsesConfig.model_validate({"generators": [{"name": "a", "engine": {"model": "/no/such"}}]})
    with pytest.raises(InputError, match="no such folder"):
        responses.run(config, source=pool_of(run_folder, 1), target=StageFolder(run_folder / "responses"))


@pytest.mark.usefixtures("ray_local")
def test_two_generators_in_one_stream(run_folder: Path) -> None:
    # Local, so that Ray sends it to its workers by value: they cannot import this file.
    def parrot(config: VllmConfig) -> Generator:
        return ScriptedGenerator(lambda prompt, chance: f"{config.model} says {chance.randint(0, 3)}.")

    generators = [
        {"name": name, "engine": {"model": name}, "n": n, "share": share, "actors": {"num_cpus": 0.5, "batch_size": 16}}
        for name, n, share in (("little", 3, 1.0), ("large", 2, 0.5))
    ]
    config = ResponsesConfig.model_validate({"generators": generators})
    pool, target = pool_of(run_folder, 50), StageFolder(run_folder / "responses")
    manifest = responses.run(config, source=pool, target=target, seed=5, build=parrot)
    units = {unit.id: unit for unit in target.units(Response)}
    assert set(units) == {f"q{i}" for i in range(50)}
    assert [r.sampler for r in units["q10"].records] == ["imported/chosen", "imported/rejected"]
    num_by_both = 0
    for unit in units.values():
        numbers = sorted(int(x.id.rpartition("/r")[2]) for x in (*unit.records, *unit.dropped))
        assert numbers in ([0, 1], [0, 1, 2], [0, 1, 2, 3, 4])
        num_by_both += len(numbers) == 5
        assert {d.reason for d in unit.dropped} <= {"duplicate_text"}
        for response in unit.records:
            assert response.sampler.startswith("imported") or response.text.startswith(response.sampler)
    assert 10 < num_by_both < 40
    assert manifest.rows_out == sum(s["responses"] for s in manifest.metrics["samplers"].values())
