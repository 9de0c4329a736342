"""Connecting to a Ray of our own."""

import os

import pytest


@pytest.mark.usefixtures("ray_local")
def test_workers_know_how_to_wait_and_whom_not_to_call() -> None:
    import ray

    @ray.remote(num_cpus=1)
    def environment() -> dict[str, str]:
        return dict(os.environ)

    seen = ray.get(environment.remote())
    assert seen["OMP_WAIT_POLICY"] == "PASSIVE"
    assert seen["KMP_BLOCKTIME"] == "0"
    assert seen["VLLM_NO_USAGE_STATS"] == "1"


@pytest.mark.usefixtures("ray_local")
def test_survey_counts_what_ray_counts() -> None:
    import ray

    from vlgenrm_ray import cluster

    found = cluster.survey()
    assert found.num_cpus == ray.cluster_resources()["CPU"]
    assert len(found.nodes) == 1
    assert not found.grows
