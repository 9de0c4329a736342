"""The four stages from the embedded world to labelled pairs, with a guessing policy and the experts of the pack."""

import random
from pathlib import Path

import pytest

from vlgenrm_ray.curation import experts, pool, preferences, responses
from vlgenrm_ray.curation.experts import ExpertsConfig
from vlgenrm_ray.curation.pool import PoolConfig
from vlgenrm_ray.curation.preferences import PreferencesConfig
from vlgenrm_ray.curation.responses import ResponsesConfig
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines.contracts import Generator, Prompt
from vlgenrm_ray.engines.detectors import DetectorConfig
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.engines.vllm import VllmConfig
from vlgenrm_ray.experts.expert import MatchingConfig
from vlgenrm_ray.records import Origin, Preference, Question
from vlgenrm_ray.shapes import basic, pack_path, world

EXPERTS = ExpertsConfig(
    vocabulary="shapes",
    detector=DetectorConfig(model=str(pack_path("detector")), image_size=96),
    matcher=MatcherConfig(model=str(pack_path("matcher")), template="{}"),
    matching=MatchingConfig(grids=(3,)),
)


@pytest.mark.usefixtures("ray_local")
def test_guessed_responses_give_pairs_with_right_labels(run_folder: Path) -> None:
    # Local, so that Ray sends it to its workers by value: they cannot import this file.
    def guesser(config: VllmConfig) -> Generator:
        """Answer every question with a right or wrong answer to the same question about another scene."""
        from vlgenrm_ray.shapes.corruption import corrupt_answer

        texts: dict[str, list[str]] = {}
        for index in range(3000):
            scene, question = basic.draw_item(99, "train", index)
            wrong = corrupt_answer(scene, question, random.Random(index))
            texts.setdefault(question.text, []).extend([question.reference, wrong])

        def guess(prompt: Prompt, rng: random.Random) -> str:
            return rng.choice(texts.get(prompt.text, ["I cannot tell."]))

        return ScriptedGenerator(guess)

    folders = {name: StageFolder(run_folder / name) for name in ("pool", "responses", "experts", "preferences")}
    pool_config = PoolConfig(source="shapes", split="heldout", count=40)
    policy = {"name": "guesser", "engine": {}, "n": 6, "actors": {"num_cpus": 0.5}}
    pool.run(pool_config, target=folders["pool"], seed=3)
    responses_manifest = responses.run(
        ResponsesConfig.model_validate({"generators": [policy]}),
        source=folders["pool"],
        target=folders["responses"],
        seed=3,
        build=guesser,
    )
    experts.run(EXPERTS, source=folders["responses"], target=folders["experts"])
    config = PreferencesConfig(max_per_question=3)
    manifest = preferences.run(
        config, experts=EXPERTS, source=folders["experts"], target=folders["preferences"], seed=3
    )

    assert responses_manifest.metrics["samplers"]["guesser"]["responses"] == responses_manifest.rows_out
    pairs = list(folders["preferences"].records(Preference))
    dropped = {drop.id for drop in folders["preferences"].dropped()}
    for question in folders["pool"].records(Question):
        assert any(p.question.id == question.id for p in pairs) != (question.id in dropped)
    right = [
        world.response_is_true(p.question, p.chosen) and not world.response_is_true(p.question, p.rejected)
        for p in pairs
    ]
    assert len(pairs) >= 30
    assert sum(right) >= 0.9 * len(right)
    assert set(manifest.metrics["pairs_by_origin"]) >= {Origin.VERIFIED, Origin.EDITED}
    assert sum(manifest.metrics["pairs_by_origin"].values()) == manifest.rows_out == len(pairs)
    again = preferences.run(config, experts=EXPERTS, source=folders["experts"], target=folders["preferences"], seed=3)
    assert again == manifest
