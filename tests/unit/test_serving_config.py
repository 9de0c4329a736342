"""Settings of the served judge, and the number of engines that a cluster holds."""

import socket

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from vlgenrm_ray import cli, config
from vlgenrm_ray.cluster.resources import Cluster, Node
from vlgenrm_ray.data.images import ImageLimits
from vlgenrm_ray.entrypoints import serve, serving_config, shipped_recipe
from vlgenrm_ray.errors import ConfigError
from vlgenrm_ray.serving import launch
from vlgenrm_ray.serving.canary import Canary
from vlgenrm_ray.serving.config import CanaryConfig, ServingConfig
from vlgenrm_ray.shapes import pack_path

RECIPE = shipped_recipe("shapes")


def test_settings_left_out_are_inherited_from_judge_and_evaluation() -> None:
    settings = config.load(RECIPE, ("serving.limits.max_queue=7", "evaluation.engine.threads=3"))
    served = config.serving(settings)
    assert served.judge == settings.judge
    assert (served.engine.threads, served.limits.max_queue) == (3, 7)
    assert config.serving(settings, replicas=2).replicas == 2


def test_settings_left_out_of_a_subsection_are_inherited_and_validated_together() -> None:
    overrides = ("evaluation.engine.threads=3", "serving.engine.dtype=float32", "serving.judge.num_critiques=8")
    settings = config.load(RECIPE, overrides)
    served = config.serving(settings)
    assert served.engine == settings.evaluation.engine.model_copy(update={"dtype": "float32", "max_images": 2})
    assert served.judge == settings.judge.model_copy(update={"num_critiques": 8})
    cold = ("judge.temperature=0", "judge.num_critiques=1", "critiques.num_critiques=1")
    with pytest.raises(ConfigError, match=r"serving\.judge: temperature 0 with num_critiques 4"):
        config.load(RECIPE, (*cold, "serving.judge.num_critiques=4"))


@pytest.mark.parametrize(("name", "most"), [("shapes", 2), ("qwen3_vl_4b", 8), ("qwen2_5_vl_7b", 8)])
def test_recipes_are_served_with_several_images(name: str, most: int) -> None:
    settings = config.load(shipped_recipe(name))
    engine = config.serving(settings).engine
    assert (engine.max_images, settings.evaluation.engine.max_images) == (most, 1)
    assert engine.model == settings.evaluation.engine.model


def test_the_shapes_recipe_serves_the_experts_of_its_stage() -> None:
    settings = config.load(RECIPE)
    served = config.serving(settings).experts
    assert served is not None
    assert (served.detector, served.matcher) == (settings.experts.detector, settings.experts.matcher)
    assert (served.vocabulary, served.matching) == (settings.experts.vocabulary, settings.experts.matching)
    assert ServingConfig().experts is None


def test_tokens_are_read_from_the_environment_as_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLGENRM_API_TOKEN", "secret")
    monkeypatch.delenv("VLGENRM_OPERATOR_TOKEN", raising=False)
    served = serving_config("pack:vlm", path=RECIPE, replicas=3, image_roots=["/images"])
    assert served.engine.model == str(pack_path("vlm"))
    assert (served.replicas, served.image_roots) == (3, ("/images",))
    assert served.tokens.api
    assert not served.tokens.operator
    assert "secret" not in served.model_dump_json()


@pytest.mark.parametrize(
    ("cluster", "cpus", "gpus", "fitted"),
    [
        (Cluster(nodes=(Node(num_cpus=2),)), 1.0, 0.0, ("auto", 2)),
        (Cluster(nodes=(Node(num_cpus=64, num_gpus=8),) * 2), 4.0, 1.0, ("auto", 5)),
        (Cluster(nodes=(Node(num_cpus=64, num_gpus=2),)), 4.0, 1.0, ("auto", 2)),
        (Cluster(nodes=(Node(num_cpus=1),), can_grow=True), 1.0, 1.0, ("auto", 5)),
        # No room for a second engine: the only one runs in the ingress process.
        (Cluster(nodes=(Node(num_cpus=2),)), 2.0, 0.0, (1, 5)),
    ],
)
def test_automatic_replicas_are_bounded_by_the_cluster(
    cluster: Cluster, cpus: float, gpus: float, fitted: tuple[object, int]
) -> None:
    served = launch._fit_replicas(ServingConfig(num_cpus=cpus, num_gpus=gpus, max_replicas=5), cluster)
    assert (served.replicas, served.max_replicas) == fitted


@pytest.mark.parametrize(("requested", "served"), [(None, 1), ("auto", "auto"), ("2", 2), (2, 2)])
def test_replicas_of_the_command_override_the_recipe(requested: int | str | None, served: int | str) -> None:
    assert serving_config("pack:vlm", path=RECIPE, replicas=requested).replicas == served


def test_a_fixed_number_of_replicas_is_kept() -> None:
    config = ServingConfig(replicas=3)
    assert launch._fit_replicas(config, Cluster(nodes=(Node(num_cpus=2),))) == config


def test_the_error_names_a_taken_port() -> None:
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


def test_zero_replicas_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"serving\.replicas"):
        config.load(RECIPE, ("serving.replicas=0",))


def test_a_canary_is_complete_or_the_built_in_one() -> None:
    with pytest.raises(ValidationError, match="a canary needs image, question, better and worse"):
        CanaryConfig(question="What is there?")
    canary = Canary(CanaryConfig(), ImageLimits())
    assert canary.image.size == (240, 240)
    assert canary.better
    assert canary.worse


@pytest.mark.parametrize(
    ("host", "token", "warns"),
    [
        ("127.0.0.1", "", False),
        ("::1", "", False),
        ("localhost", "", False),
        ("0.0.0.0", "", True),
        ("192.0.2.1", "", True),
        ("judge.example.org", "", True),
        ("0.0.0.0", "secret", False),
    ],
)
def test_a_service_that_other_machines_reach_without_a_token_warns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, token: str, warns: bool
) -> None:
    monkeypatch.setenv("VLGENRM_API_TOKEN", token)
    monkeypatch.setattr("vlgenrm_ray.cluster.connection.connect", lambda *_, **__: None)
    monkeypatch.setattr("vlgenrm_ray.serving.launch.start", lambda *_, **__: "http://address")
    serve("pack:vlm", host=host, wait=False)
    printed = capsys.readouterr().out
    assert ("no token is set" in printed) == warns
    assert "secret" not in printed
