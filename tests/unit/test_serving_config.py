"""How a recipe's judge is served, and how many engines a cluster holds."""

import socket

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from vlgenrm_ray import cli, config
from vlgenrm_ray.cluster.resources import Cluster, Node
from vlgenrm_ray.commands import serving, shipped_recipe
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.serving import launch
from vlgenrm_ray.serving.canary import Canary
from vlgenrm_ray.serving.config import CanaryConfig, ServingConfig
from vlgenrm_ray.shapes import pack_path

RECIPE = shipped_recipe("shapes")


def test_what_the_section_leaves_out_is_as_in_judge_and_evaluation() -> None:
    settings = config.load(RECIPE, ("serving.limits.max_queue=7", "evaluation.engine.threads=3"))
    found = config.serving(settings)
    assert found.judge == settings.judge
    assert (found.engine.threads, found.limits.max_queue) == (3, 7)
    assert config.serving(settings, replicas=2).replicas == 2


def test_of_a_section_the_settings_left_out_are_inherited_and_checked_together() -> None:
    overrides = ("evaluation.engine.threads=3", "serving.engine.dtype=float32", "serving.judge.num_critiques=8")
    settings = config.load(RECIPE, overrides)
    found = config.serving(settings)
    assert found.engine == settings.evaluation.engine.model_copy(update={"dtype": "float32", "max_images": 2})
    assert found.judge == settings.judge.model_copy(update={"num_critiques": 8})
    cold = config.load(RECIPE, ("judge.temperature=0", "judge.num_critiques=1", "critiques.num_critiques=1"))
    several = cold.model_copy(update={"serving": ServingConfig.model_validate({"judge": {"num_critiques": 4}})})
    with pytest.raises(ConfigError, match="temperature 0 with num_critiques 4"):
        config.serving(several)


@pytest.mark.parametrize(("name", "most"), [("shapes", 2), ("qwen3_vl_4b", 8), ("qwen2_5_vl_7b", 8)])
def test_recipes_are_served_with_several_images(name: str, most: int) -> None:
    settings = config.load(shipped_recipe(name))
    engine = config.serving(settings).engine
    assert (engine.max_images, settings.evaluation.engine.max_images) == (most, 1)
    assert engine.model == settings.evaluation.engine.model


def test_the_shapes_recipe_serves_the_experts_that_its_stage_uses() -> None:
    settings = config.load(RECIPE)
    found = config.serving(settings).experts
    assert found is not None
    assert (found.detector, found.matcher) == (settings.experts.detector, settings.experts.matcher)
    assert (found.vocabulary, found.matching) == (settings.experts.vocabulary, settings.experts.matching)
    assert ServingConfig().experts is None


def test_tokens_come_from_the_environment_as_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLGENRM_API_TOKEN", "secret")
    monkeypatch.delenv("VLGENRM_OPERATOR_TOKEN", raising=False)
    found = serving("pack:vlm", path=RECIPE, replicas=3, image_roots=["/images"])
    assert found.engine.model == str(pack_path("vlm"))
    assert (found.replicas, found.image_roots) == (3, ("/images",))
    assert found.tokens.api
    assert not found.tokens.operator
    assert "secret" not in found.model_dump_json()


@pytest.mark.parametrize(
    ("cluster", "cpus", "gpus", "fitted"),
    [
        (Cluster(nodes=(Node(num_cpus=2),)), 1.0, 0.0, ("auto", 2)),
        (Cluster(nodes=(Node(num_cpus=64, num_gpus=8),) * 2), 4.0, 1.0, ("auto", 5)),
        (Cluster(nodes=(Node(num_cpus=64, num_gpus=2),)), 4.0, 1.0, ("auto", 2)),
        (Cluster(nodes=(Node(num_cpus=1),), grows=True), 1.0, 1.0, ("auto", 5)),
        # One that can never have a second need not be apart from the gate.
        (Cluster(nodes=(Node(num_cpus=2),)), 2.0, 0.0, (1, 5)),
    ],
)
def test_automatic_replicas_stop_at_what_fits(
    cluster: Cluster, cpus: float, gpus: float, fitted: tuple[object, int]
) -> None:
    found = launch._fitted(ServingConfig(num_cpus=cpus, num_gpus=gpus, max_replicas=5), cluster)
    assert (found.replicas, found.max_replicas) == fitted


@pytest.mark.parametrize(("asked", "found"), [(None, 1), ("auto", "auto"), ("2", 2), (2, 2)])
def test_replicas_are_the_recipes_unless_stated(asked: int | str | None, found: int | str) -> None:
    assert serving("pack:vlm", path=RECIPE, replicas=asked).replicas == found


def test_a_stated_number_of_replicas_stays() -> None:
    config = ServingConfig(replicas=3)
    assert launch._fitted(config, Cluster(nodes=(Node(num_cpus=2),))) == config


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}"):
            launch._check_port("127.0.0.1", port)


def test_replicas_are_a_number_or_auto() -> None:
    result = CliRunner().invoke(cli.app, ["serve", "--replicas", "many"])
    assert result.exit_code == 2
    assert "a number above 0, or auto" in " ".join(result.output.split())


def test_no_replicas_are_none() -> None:
    with pytest.raises(ConfigError, match=r"serving\.replicas"):
        config.load(RECIPE, ("serving.replicas=0",))


def test_a_canary_is_whole_and_its_own_one_is_there() -> None:
    with pytest.raises(ValidationError, match="a canary needs image, question, better and worse"):
        CanaryConfig(question="What is there?")
    canary = Canary(CanaryConfig(), ImageLimits())
    assert canary.image.size == (240, 240)
    assert canary.better
    assert canary.worse
