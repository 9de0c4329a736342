"""Settings in a judge's model folder: kind and calibration, and that everybody who loads it applies them."""

import asyncio
from pathlib import Path

import pytest
from PIL import Image
from serving_examples import sees, worker

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.engines.export import write_folder
from vlgenrm_ray.engines.scripted import ScriptedGenerator
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.judge.config import JudgeConfig
from vlgenrm_ray.judge.judge import Judge, JudgeInput
from vlgenrm_ray.judge.model_settings import JudgeModelSettings, read_settings, with_model_settings, write_settings
from vlgenrm_ray.judge.verdict import calibrate_reward
from vlgenrm_ray.serving.engine import ScoreTask
from vlgenrm_ray.serving.model_version import ModelVersion
from vlgenrm_ray.shapes import pack_path

ITEM = JudgeInput(id="a", images=(Image.new("RGB", (16, 16)),), question="What is it?", response="A star.")


def head(folder: Path, **settings: object) -> Path:
    """A folder that says that it is a discriminative judge."""
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(JudgeModelSettings(kind="discriminative", **settings), folder)
    (folder / "judge_prompt.txt").write_text("{question} / {response}: right?\n")
    return folder


class UndecidedGenerator(ScriptedGenerator):
    """Gives both verdicts a tiny probability, and records the sampling."""

    def generate(self, prompts, sampling: Sampling, seeds=None) -> list[list[Sample] | Refusal]:  # type: ignore[no-untyped-def]
        self.sampling, self.prompts = sampling, prompts
        return super().generate(prompts, sampling, seeds)


def test_a_folder_without_settings_is_a_pointwise_judge(tmp_path: Path) -> None:
    config = JudgeConfig(num_critiques=3)
    assert read_settings(tmp_path) == JudgeModelSettings()
    assert with_model_settings(config, tmp_path) == config.with_kind("pointwise")
    assert with_model_settings(config, Path("Qwen/no-folder-here")) == config.with_kind("pointwise")


def test_a_generative_model_scores_if_the_recipe_says_so(tmp_path: Path) -> None:
    config = with_model_settings(JudgeConfig(kind="discriminative", direct_prompt="shapes_direct"), tmp_path)
    assert config.is_discriminative
    assert config.direct_prompt == "shapes_direct"


def test_a_discriminative_judge_scores_without_a_text_whatever_the_recipe_says(tmp_path: Path) -> None:
    config = with_model_settings(JudgeConfig(num_critiques=8, aggregator="vote"), head(tmp_path))
    generator = UndecidedGenerator({"right?": "Yes"}, confidence=0.6)
    (judgement,) = Judge(config, generator).score([ITEM])
    assert generator.prompts[0].text == "What is it? / A star.: right?"
    assert generator.sampling == Sampling(
        n=1, temperature=0.0, max_tokens=1, tracked_words=("Yes", "No"), only_tracked=True
    )
    assert (judgement.status, judgement.critiques, judgement.num_asked, judgement.num_tokens) == ("ok", (), 0, 0)
    assert judgement.verdict_mass == pytest.approx(1.0)
    (empty,) = Judge(config, generator).score([JudgeInput(id="b", images=(), question="What?", response=" ")])
    assert (empty.reward, empty.status) == (None, "empty_text")


@pytest.mark.parametrize("mass", [1e-30, 0.05, 1.0])
def test_the_score_needs_no_mass_of_the_verdict(tmp_path: Path, mass: float) -> None:
    class Faint(ScriptedGenerator):
        def _token(self, piece: str, watch: tuple[str, ...]):  # type: ignore[no-untyped-def]
            from vlgenrm_ray.engines.contracts import Token

            return Token(id=1, text="Yes", tracked_probabilities={"Yes": 0.8 * mass, "No": 0.2 * mass})

    (judgement,) = Judge(with_model_settings(JudgeConfig(), head(tmp_path)), Faint({"right?": "Yes"})).score([ITEM])
    assert judgement.reward == pytest.approx(0.8)


def test_the_calibration_of_the_folder_is_applied_unless_the_recipe_states_one(tmp_path: Path) -> None:
    write_settings(JudgeModelSettings(reward_temperature=2.0, reward_bias=0.5), tmp_path)
    stated = JudgeConfig(kind="pointwise", reward_temperature=3.0)
    assert with_model_settings(stated, tmp_path) == stated
    config = with_model_settings(JudgeConfig(num_critiques=1), tmp_path)
    (judgement,) = Judge(config, ScriptedGenerator({"": "Verdict: Yes"}, confidence=0.9)).score([ITEM])
    assert judgement.reward == pytest.approx(calibrate_reward(0.9, 2.0, 0.5))
    assert judgement.critiques[0].p_yes == pytest.approx(0.9)


def test_damaged_settings_are_refused_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "judge.json").write_text('{"kind": "oracle"}')
    with pytest.raises(InputError, match=r"judge\.json: cannot be read as the settings of a judge"):
        read_settings(tmp_path)


def test_a_calibration_makes_another_version_of_the_same_model(tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_folder({}, base=pack_path("vlm"), target=model, texts={"judge_prompt.txt": "{question}"})
    digest, version = model_folder.digest(model), model_folder.version(model)
    write_settings(JudgeModelSettings(reward_temperature=2.0), model)
    assert model_folder.digest(model) == digest
    assert model_folder.version(model) != version
    write_settings(JudgeModelSettings(reward_temperature=2.5), model)
    assert model_folder.version(model) != version


def test_a_model_trained_from_a_judge_does_not_inherit_what_describes_it(tmp_path: Path) -> None:
    base, trained = tmp_path / "base", tmp_path / "trained"
    write_folder({}, base=pack_path("vlm"), target=base, texts={"judge_prompt.txt": "{question}", "judge.json": "{}"})
    assert (base / "config.json").exists()
    write_folder({}, base=base, target=trained)
    assert not (trained / "judge.json").exists()
    assert not (trained / "judge_prompt.txt").exists()
    assert (trained / "config.json").exists()


def test_a_served_engine_follows_the_settings_of_the_model_that_it_loads(tmp_path: Path) -> None:
    plain, calibrated = ModelVersion(number=1, folder=str(tmp_path / "plain"), name="plain-1"), head(tmp_path / "head")

    def right(prompt: Prompt, rng: object) -> str:
        return "Yes" if "right?" in prompt.text else "Verdict: Yes"

    async def run() -> None:
        engine = worker(scripts={plain.folder: sees, str(calibrated): right})
        task = ScoreTask(
            images=(),
            question="What is there?",
            response="A star.",
            config=JudgeConfig(num_critiques=2),
            deadline_s=9.0,
        )
        _, (critiqued,) = await engine.judge([task], plain)
        assert len(critiqued.critiques) == 2
        _, (scored,) = await engine.judge([task], ModelVersion(number=2, folder=str(calibrated), name="head-2"))
        assert (scored.critiques, scored.num_asked) == ((), 0)
        assert scored.reward is not None

    asyncio.run(run())
