"""From preferences to critiques, over a scripted judge."""

import random
from dataclasses import replace

import factories
import pytest

from vlgenrm_ray.data.arrow import arrow_schema
from vlgenrm_ray.data.flow import ActorPoolConfig
from vlgenrm_ray.data.store import StageFolder, units_table, write_units
from vlgenrm_ray.engines.contracts import Prompt
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge
from vlgenrm_ray.records import Critique, ImageRef, Preference, Side
from vlgenrm_ray.reward import critiques

JUDGE = JudgeConfig(prompt="shapes_cot", direct_prompt="shapes_direct", num_critiques=3)


@pytest.fixture
def pair(tmp_path: object) -> Preference:
    from PIL import Image

    from vlgenrm_ray.data.images import ImageLimits, probe

    path = f"{tmp_path}/a.png"
    Image.new("RGB", (16, 16)).save(path)
    return factories.preference(question=factories.question(image=probe(path, ImageLimits())))


def truthful(prompt: Prompt, chance: random.Random) -> str:
    return "Verdict: Yes" if "Response: Yes" in prompt.text else "Verdict: No"


def judge(script: object = truthful) -> Judge:
    return Judge(JUDGE, ScriptedGenerator(script, confidence=0.9))  # type: ignore[arg-type]


def test_each_side_gets_k_critiques_with_ids_that_extend_the_pair_id(pair: Preference) -> None:
    (unit,) = critiques.write_critiques(judge(), [pair], round=2, hint=False)
    assert [c.id for c in unit.records] == [f"q0/p0/{side}/c{k}" for side in ("chosen", "rejected") for k in range(3)]
    assert {(c.side, c.verdict, c.round) for c in unit.records} == {(Side.CHOSEN, "yes", 2), (Side.REJECTED, "no", 2)}
    assert [c.p_yes for c in unit.records] == [pytest.approx(0.9)] * 3 + [pytest.approx(0.1)] * 3
    assert unit.num_tokens == sum(c.num_tokens for c in unit.records) > 0
    assert unit.dropped == ()


def test_an_unreadable_critique_is_kept_and_abstains(pair: Preference) -> None:
    (unit,) = critiques.write_critiques(judge({"": "I see nothing."}), [pair], round=1, hint=False)
    assert len(unit.records) == 6
    assert {(c.verdict, c.p_yes, c.verdict_mass) for c in unit.records} == {(None, None, 0.0)}


def test_a_pair_with_a_refused_side_is_dropped_and_the_others_stay(pair: Preference) -> None:
    missing = ImageRef(uri="/nowhere/b.png", sha256="0", width=16, height=16)
    without_image = factories.preference("q1/p0", question=factories.question("q1", image=missing))
    long = replace(pair, id="q2/p0", rejected="no " * 10_000)
    units = critiques.write_critiques(judge(), [without_image, pair, long], round=1, hint=False)
    assert [(u.id, len(u.records), [d.reason for d in u.dropped]) for u in units] == [
        ("q1/p0", 0, ["image_missing"]),
        ("q0/p0", 6, []),
        ("q2/p0", 0, ["prompt_too_long"]),
    ]
    assert units[2].dropped[0].detail.startswith("rejected: ")
    assert {d.stage for u in units for d in u.dropped} == {"critiques"}


def test_a_hint_adds_critiques_if_none_is_right_and_is_not_in_their_prompt(pair: Preference) -> None:
    def follows_hint(prompt: Prompt, chance: random.Random) -> str:
        if prompt.prefix:
            return " Yes"  # Without the hint this judge says yes after any rationale.
        return "It is not there.\nVerdict: No" if "The verdict is No" in prompt.text else "Verdict: Yes"

    (unit,) = critiques.write_critiques(judge(follows_hint), [pair], round=1, hint=True)
    assert [c.id for c in unit.records] == [
        *(f"q0/p0/chosen/c{k}" for k in range(3)),
        *(f"q0/p0/rejected/c{k}" for k in range(6)),
    ]
    hinted = unit.records[6:]
    assert {(c.text, c.verdict) for c in hinted} == {("It is not there.\nVerdict: No", "no")}
    assert [c.p_yes for c in hinted] == [pytest.approx(0.9)] * 3, "the probability of the judge without the hint"


def test_metrics_count_readable_critiques(tmp_path: object, pair: Preference) -> None:
    def half(prompt: Prompt, chance: random.Random) -> str:
        return "Verdict: Yes" if "Response: Yes" in prompt.text else "I see nothing."

    folder = StageFolder(f"{tmp_path}/critiques")
    folder.begin("f", {})
    write_units(folder, Critique, critiques.write_critiques(judge(half), [pair], round=1, hint=False))
    metrics = critiques.critique_metrics(folder.read_committed().total().metric_sums or {})
    assert (metrics["num_critiques"], metrics["readable_share"], metrics["right_share"]) == (6, 0.5, 1.0)
    assert metrics["mean_verdict_mass"] == pytest.approx(0.5)
    assert metrics["tokens_per_critique"] == pytest.approx(3.5)


def test_the_fingerprint_depends_on_the_settings_and_not_on_the_number_of_actors() -> None:
    config = critiques.CritiquesConfig()
    more = config.model_copy(update={"actors": ActorPoolConfig(num_actors=4)})
    hinted = config.model_copy(update={"hint": True})
    same = critiques.fingerprint(config, JUDGE, 1)
    assert critiques.fingerprint(more, JUDGE, 1) == same
    assert critiques.fingerprint(hinted, JUDGE, 1) != same
    assert critiques.fingerprint(config, JUDGE.model_copy(update={"num_critiques": 2}), 1) != same
    assert critiques.fingerprint(config, JUDGE, 2) != same


def test_the_actor_maps_a_table_to_units(pair: Preference) -> None:
    from vlgenrm_ray.data.arrow import to_table

    actor = critiques.CritiqueActor(critiques.CritiquesConfig(), JUDGE, 1, lambda config: ScriptedGenerator(truthful))
    table = actor(to_table(Preference, [pair]))
    assert table.num_rows == 1
    assert table.schema == units_table(Critique, []).schema
    assert table.column("records").type.value_type.num_fields == len(arrow_schema(Critique))
