"""Resource checks of a run's stages, and messages about a cluster, without a cluster."""

import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlgenrm_ray.cluster import connection
from vlgenrm_ray.cluster.connection import connect, largest_cluster
from vlgenrm_ray.cluster.resources import Cluster, Node, ResourceRequest, check_resources, unmet_requests
from vlgenrm_ray.errors import ResourceError

LAPTOP = Cluster(nodes=(Node(num_cpus=2),))
TWO_GPU_NODES = Cluster(nodes=(Node(num_cpus=16, num_gpus=2), Node(num_cpus=16, num_gpus=2)))


def test_requests_that_fit_pass() -> None:
    check_resources([ResourceRequest(stage="responses", count=2), ResourceRequest(stage="training", count=2)], LAPTOP)


def test_gpus_on_a_laptop_are_refused_with_stage_resource_and_remedy() -> None:
    with pytest.raises(ResourceError) as caught:
        check_resources([ResourceRequest(stage="critiques", count=2, num_gpus=1)], LAPTOP)
    message = str(caught.value)
    assert "stage 'critiques': requests 2 GPUs at once" in message
    assert "2 CPUs and 0 GPUs on 1 node" in message
    assert "shapes.yaml" in message


def test_pools_of_one_stage_add_up_and_stages_do_not() -> None:
    assert unmet_requests(
        [ResourceRequest(stage="experts", num_cpus=1.5), ResourceRequest(stage="experts", num_cpus=1)], LAPTOP
    )
    assert not unmet_requests(
        [ResourceRequest(stage="responses", num_cpus=1.5), ResourceRequest(stage="experts", num_cpus=1)], LAPTOP
    )


def test_an_actor_must_fit_on_one_node() -> None:
    (line,) = unmet_requests([ResourceRequest(stage="critiques", num_gpus=4)], TWO_GPU_NODES)
    assert "requests 4 GPUs" in line
    assert not unmet_requests([ResourceRequest(stage="critiques", count=2, num_gpus=2)], TWO_GPU_NODES)


def test_every_stage_that_does_not_fit_is_named() -> None:
    requests = [
        ResourceRequest(stage="responses", num_gpus=1),
        ResourceRequest(stage="experts"),
        ResourceRequest(stage="training", num_cpus=3),
    ]
    assert [line.split("'")[1] for line in unmet_requests(requests, LAPTOP)] == ["responses", "training"]


def test_a_cluster_that_can_grow_accepts_any_request() -> None:
    check_resources(
        [ResourceRequest(stage="training", count=8, num_gpus=1)], Cluster(nodes=(Node(num_cpus=4),), can_grow=True)
    )


ONE_GPU_PODS = Cluster(
    nodes=(Node(num_cpus=8),), can_grow=True, largest=(Node(num_cpus=8), *[Node(num_cpus=12, num_gpus=1)] * 8)
)


@pytest.mark.parametrize(
    ("count", "num_gpus", "fits"), [(8, 1, True), (9, 1, False), (1, 2, False), (16, 0.5, True), (17, 0.5, False)]
)
def test_a_request_is_compared_with_the_limits_of_the_autoscaler(count: int, num_gpus: float, fits: bool) -> None:
    request = ResourceRequest(stage="critiques", count=count, num_gpus=num_gpus)
    problems = unmet_requests([request], ONE_GPU_PODS)
    assert (problems == []) == fits
    assert fits or "8 GPUs on 9 nodes" in problems[0]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([], 0),
        ([(1, {"CPU": 8}), (3, {"CPU": 12, "GPU": 1})], 4),
        # A group without a limit accepts anything.
        ([(1, {"CPU": 8}), (-1, {"CPU": 12, "GPU": 1})], 0),
    ],
)
def test_thelargest_cluster_follows_from_the_groups_of_the_autoscaler(
    groups: list[tuple[int, dict[str, float]]], expected: int
) -> None:
    nodes = largest_cluster(groups)
    assert len(nodes) == expected
    assert sum(node.num_gpus for node in nodes) == (3 if expected else 0)


@given(st.integers(1, 40), st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 1.0, 3.0]))
def test_equal_actors_fit_exactly_as_often_as_they_divide_the_node(count: int, num_cpus: float) -> None:
    cluster = Cluster(nodes=(Node(num_cpus=12),))
    assert bool(unmet_requests([ResourceRequest(stage="s", count=count, num_cpus=num_cpus)], cluster)) == (
        count * num_cpus > 12 + 1e-4
    )


def test_an_address_where_nothing_listens_fails_at_once() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(ResourceError, match=f"no Ray cluster answers at '{address}'.*ray start --head"):
            connect(address)
    assert time.monotonic() - start < 15


def test_the_cause_of_a_failed_constructor_is_its_exception() -> None:
    from ray.exceptions import RayActorError

    message_start = "The actor died because of an error raised in its creation task, ray::Judge.__init__() (pid=7)"
    frames = "\n".join(f'  File "/a/rather/long/path/{i}.py", line {i}, in call\n    call()' for i in range(9))
    text = f"{message_start}\nTraceback:\n{frames}\nvllm.errors.BadError: no room: \n  give more"
    assert connection.actor_death_cause(RayActorError(error_msg=text)).startswith("The actor died because")
    failed = RayActorError(error_msg=text, actor_init_failed=True)
    assert connection.actor_death_cause(failed) == "vllm.errors.BadError: no room: give more"
