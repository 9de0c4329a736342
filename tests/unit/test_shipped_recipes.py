"""Every recipe in jobs/recipes is valid, fits the cluster that its heading names, and is refused on a smaller one."""

import json
from pathlib import Path

import pytest
import yaml

from vlgenrm_ray import config, plan
from vlgenrm_ray.ablation import config as ablation_config
from vlgenrm_ray.ablation.run import plan_all
from vlgenrm_ray.cluster.resources import Cluster, Node, check_resources
from vlgenrm_ray.config import PolicyRunConfig
from vlgenrm_ray.entrypoints import RECIPES, shipped_recipe
from vlgenrm_ray.errors import ConfigError, InputError, ResourceError
from vlgenrm_ray.serving.auth import ApiTokens

LAPTOP = Cluster(nodes=(Node(num_cpus=2),))
NODE = Node(num_cpus=64, num_gpus=8)
NEEDS = {
    "shapes": LAPTOP,
    "shapes_hard": LAPTOP,
    "shapes_pairwise": LAPTOP,
    "shapes_head": LAPTOP,
    "photos": LAPTOP,
    "qwen3_vl_4b": Cluster(nodes=(NODE,)),
    "qwen2_5_vl_7b": Cluster(nodes=(NODE,) * 4),
}
POLICIES = {
    "shapes_grpo": LAPTOP,
    "shapes_hard_grpo": LAPTOP,
    "shapes_ppo": LAPTOP,
    "shapes_dpo": LAPTOP,
    "shapes_judge_grpo": LAPTOP,
    "qwen3_vl_4b_grpo": Cluster(nodes=(NODE,) * 2),
    "qwen2_5_vl_7b_judge_grpo": Cluster(nodes=(NODE,) * 2),
}
"""Recipes of `vlgenrm policy`."""
CO_TRAINING = {"shapes_co_training": LAPTOP}
"""Recipes of `vlgenrm co-train`."""
ABLATIONS = {"ablation": LAPTOP, "ablation_small": LAPTOP}
"""Recipes of `vlgenrm ablate`."""


def load_policy(name: str, *overrides: str) -> PolicyRunConfig:
    """Load a policy recipe. The model of its judge, made by the demo, need not exist."""
    return config.load_policy(shipped_recipe(name), overrides)


def test_every_recipe_is_listed_here() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*NEEDS, *POLICIES, *CO_TRAINING, *ABLATIONS}


@pytest.mark.parametrize("name", NEEDS)
def test_a_recipe_fits_the_cluster_it_names(name: str) -> None:
    check_resources(plan.reward_requests(config.load(shipped_recipe(name))), NEEDS[name])


@pytest.mark.parametrize("name", POLICIES)
def test_a_policys_recipe_fits_the_cluster_it_names(name: str) -> None:
    check_resources(plan.policy_requests(load_policy(name)), POLICIES[name])


@pytest.mark.parametrize("name", CO_TRAINING)
def test_a_co_training_recipe_fits_the_cluster_it_names(name: str) -> None:
    check_resources(plan.co_training_requests(config.load_co_training(shipped_recipe(name))), CO_TRAINING[name])


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_cell_of_an_ablation_fits_the_cluster_it_names(name: str) -> None:
    for cell in plan_all(ablation_config.load(shipped_recipe(name))):
        check_resources(plan.reward_requests(cell.config), ABLATIONS[name])


def test_the_ablation_measures_on_a_split_of_its_own_and_on_a_thousand_pairs() -> None:
    ablation = ablation_config.load(shipped_recipe("ablation"))
    base = config.load(shipped_recipe("shapes_hard"))
    assert ablation.test.count >= 1000
    assert ablation.test.split not in (base.pool.split, base.heldout.split)
    assert len(ablation.seeds) >= 3


def test_from_the_second_iteration_the_genrm_is_trained_while_the_judge_is_served() -> None:
    wanting = ("judge_service.serving.num_cpus=0.5",)
    with pytest.raises(ResourceError, match="stage 'training'"):
        check_resources(
            plan.co_training_requests(config.load_co_training(shipped_recipe("shapes_co_training"), wanting)), LAPTOP
        )
    once = config.load_co_training(shipped_recipe("shapes_co_training"), (*wanting, "iterations=1"))
    check_resources(plan.co_training_requests(once), LAPTOP)


def test_a_policys_recipe_has_room_for_all_that_runs_at_once() -> None:
    requests = plan.policy_requests(load_policy("shapes_grpo"))
    assert [(request.role, request.count) for request in requests] == [
        ("worker", 1),
        ("rollout engine", 1),
        ("served judge", 1),
    ]
    assert {request.stage for request in requests} == {"policy"}
    with pytest.raises(ResourceError, match=r"stage 'policy'.*1 CPU"):
        check_resources(requests, Cluster(nodes=(Node(num_cpus=1),)))
    own = {"engine": {"model": "m"}, "num_cpus": 3}
    judged = load_policy("qwen3_vl_4b_grpo", f"policy.rewards={json.dumps([{'judge': own}])}")
    assert [(r.role, r.num_cpus) for r in plan.policy_requests(judged)][2:] == [("judge", 3)]


def test_an_offline_algorithm_needs_engines_only_to_answer_held_out_questions() -> None:
    answering = [request.role for request in plan.policy_requests(load_policy("shapes_dpo"))]
    training_alone = load_policy("shapes_dpo", "policy.evaluation.measure=''")
    assert answering == ["worker", "rollout engine"]
    assert [request.role for request in plan.policy_requests(training_alone)] == ["worker"]
    with pytest.raises(ConfigError, match="mode: one_step_off is about rollouts"):
        load_policy("shapes_dpo", "policy.mode=one_step_off")


@pytest.mark.parametrize("name", ["dapo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "raft"])
def test_grpos_recipe_takes_other_algorithms_by_name(name: str) -> None:
    overrides = (f"policy.algorithm.algorithm={name}", "policy.algorithm.scale=none")
    assert load_policy("shapes_grpo", *overrides).policy.algorithm.algorithm == name


@pytest.mark.parametrize("name", ["qwen3_vl_4b_grpo", "qwen2_5_vl_7b_judge_grpo"])
def test_a_policys_recipe_on_gpus_is_refused_by_name_without_them(name: str) -> None:
    with pytest.raises(ResourceError, match=r"stage 'policy'.*16 GPUs"):
        check_resources(plan.policy_requests(load_policy(name)), LAPTOP)


@pytest.mark.parametrize("name", ["shapes_judge_grpo", "qwen2_5_vl_7b_judge_grpo"])
def test_a_judge_learns_from_the_preferences_of_one_run_and_from_no_truth(name: str) -> None:
    settings = load_policy(name)
    (reward,) = settings.policy.rewards
    assert reward.critique is not None
    assert settings.pool.source == settings.heldout.source == "judge_prompts"
    assert Path(settings.pool.path or "").absolute() == Path(settings.heldout.path or "").absolute()
    assert Path(settings.pool.path or "").absolute() == reward.critique.run
    assert (settings.pool.split, settings.heldout.split) == ("train", "heldout")
    assert "shapes.world" not in settings.policy.evaluation.measure


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("policy.rewards=[]", "rewards: algorithm grpo learns from rewards; name at least one"),
        ("policy.rollouts.group_sise=4", "policy.rollouts.group_sise: unknown key; did you mean 'group_size'?"),
        ("policy.algorithm.kl.where=reward", "use algorithm: ppo or reinforce_plus_plus, or kl.where: loss"),
        ("policy.steps=0", "policy.steps: got 0; input should be greater than or equal to 1"),
    ],
)
def test_a_mistake_in_a_policys_recipe_is_named(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policy("shapes_grpo", override)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["qwen3_vl_4b", "qwen2_5_vl_7b"])
def test_a_gpu_recipe_without_gpus_is_refused_by_name(name: str) -> None:
    with pytest.raises(ResourceError, match=r"stage 'responses'.*GPUs.*jobs/recipes/shapes\.yaml"):
        check_resources(plan.reward_requests(config.load(shipped_recipe(name))), LAPTOP)


def test_an_actor_that_leaves_no_room_for_the_tasks_beside_it_is_refused() -> None:
    settings = config.load(shipped_recipe("shapes"), ("critiques.actors.num_actors=1", "critiques.actors.num_cpus=1.5"))
    with pytest.raises(ResourceError, match=r"stage 'critiques'.*1 for each of 1 task.*room for 0 of 1"):
        check_resources(plan.reward_requests(settings), LAPTOP)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("judge.num_critiques=0", "judge.num_critiques: got 0; input should be greater than or equal to 1"),
        ("selection.tau=1.5", "selection.tau: got 1.5; input should be less than or equal to 1"),
        ("selection.tau=-0.1", "selection.tau: got -0.1; input should be greater than or equal to 0"),
        ("selection.taw=0.1", "selection.taw: unknown key; did you mean 'tau'?"),
        ("poool.count=3", "poool: unknown key; did you mean 'pool'?"),
        ("training.engine.zero_stage=4", "training.engine.zero_stage: got 4"),
    ],
)
def test_a_newcomers_mistake_names_field_value_and_remedy(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(shipped_recipe("shapes"), (override,))
    assert words in str(caught.value)


def test_several_critiques_at_temperature_zero_are_refused_wherever_they_are_asked_for() -> None:
    with pytest.raises(ConfigError, match="judge: temperature 0 with num_critiques 4"):
        config.load(shipped_recipe("shapes"), ("judge.temperature=0",))
    with pytest.raises(ConfigError, match=r"critiques\.num_critiques 3 with judge\.temperature 0"):
        config.load(
            shipped_recipe("shapes"), ("judge.temperature=0", "judge.num_critiques=1", "critiques.num_critiques=3")
        )


def test_a_recipe_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"none\.yaml"):
        shipped_recipe("none")
    with pytest.raises(ConfigError, match="No such file"):
        config.load(Path("none.yaml"))


def test_a_shared_engine_reaches_every_stage_that_generates() -> None:
    settings = config.load(shipped_recipe("qwen3_vl_4b"))
    engines = [settings.responses.generators[0].engine, settings.critiques.engine, settings.evaluation.engine]
    assert all(engine == settings.engine for engine in engines)
    assert settings.engine.model == settings.base
    assert settings.training.image_processor == settings.engine.image_processor
    assert settings.serving.engine == settings.engine.model_copy(update={"max_images": 8, "max_model_len": 16384})
    assert settings.serving.judge == settings.judge


def test_all_experts_have_the_same_actors_unless_the_recipe_states_others() -> None:
    experts = config.load(shipped_recipe("qwen3_vl_4b"), ("experts.additional_experts=[{kind: 'x:Y'}]",)).experts
    detector, matcher, additional = experts.actor_pools()
    assert detector == additional == experts.actors
    assert matcher == experts.actors.model_copy(update={"batch_size": 64})
    assert (detector.num_actors, detector.num_gpus, detector.batch_size) == (4, 1, 32)


def test_the_judge_service_of_a_run_queues_every_rollout_and_has_no_other_clients() -> None:
    service = load_policy("shapes_grpo").judge_service
    assert service is not None
    serving = service.serving_config("/model", ApiTokens())
    assert (serving.engine.model, serving.judge, serving.num_cpus) == ("/model", service.serving.judge, 0.5)
    assert serving.limits.max_queue > 10_000
    assert (serving.experts, serving.gateways) == (None, ())
    with pytest.raises(ConfigError, match="start a service with `vlgenrm serve`"):
        load_policy("shapes_grpo", "judge_service.serving.gateways=['my:router']")


def test_only_a_co_training_has_a_canary_for_its_judges() -> None:
    co_training = config.load_co_training(shipped_recipe("shapes_co_training"))
    assert co_training.judge_service.serving_config("/model", ApiTokens()).canary.min_change == 0.0
    with pytest.raises(ConfigError, match="never swapped"):
        load_policy("shapes_grpo", "judge_service.serving.canary={min_change: 0.1}")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_recipe_in_the_old_places_resolves_to_the_same_stages(tmp_path: Path) -> None:
    settings = config.load(shipped_recipe("shapes"))
    values = yaml.safe_load(shipped_recipe("shapes").read_text())
    engine, actors = values.pop("engine") | {"model": "pack:vlm"}, values.pop("actors")
    actors["actors"] = actors.pop("num_actors")
    values["responses"]["generators"][0] |= {"engine": engine, "pool": actors}
    values["critiques"] |= {"engine": engine, "pool": actors}
    values["evaluation"] = {"engine": engine, "pool": actors}
    values["serving"]["experts"] = values["experts"]
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump(values))
    shared = {"engine", "actors"}
    assert config.load(old).model_dump(exclude=shared) == settings.model_dump(exclude=shared)


def test_a_discriminative_judge_has_one_round_and_scores_in_evaluation() -> None:
    settings = config.load(shipped_recipe("shapes_head"))
    assert settings.trained_judge.is_discriminative
    assert not config.load(shipped_recipe("shapes")).trained_judge.is_discriminative
    with pytest.raises(ConfigError, match="train on the same pairs; set rounds"):
        config.load(shipped_recipe("shapes_head"), ("rounds.num_rounds=2",))
