"""Connection to a local Ray, and files that Ray itself reads."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


@pytest.mark.usefixtures("ray_local")
def test_workers_get_the_environment_of_connect() -> None:
    import ray

    @ray.remote(num_cpus=1)
    def environment() -> dict[str, str]:
        return dict(os.environ)

    seen = ray.get(environment.remote())
    assert seen["OMP_WAIT_POLICY"] == "PASSIVE"
    assert seen["KMP_BLOCKTIME"] == "0"
    assert seen["VLLM_NO_USAGE_STATS"] == "1"


@pytest.mark.usefixtures("ray_local")
def test_the_described_cluster_has_the_resources_that_ray_reports() -> None:
    import ray

    from vlgenrm_ray.cluster import connection

    cluster = connection.describe_cluster()
    assert cluster.num_cpus == ray.cluster_resources()["CPU"]
    assert len(cluster.nodes) == 1
    assert not cluster.can_grow


def test_the_serve_file_is_valid_by_rays_own_schema_and_builds() -> None:
    from ray.serve.schema import ServeDeploySchema

    root = Path(__file__).parents[2]
    schema = ServeDeploySchema.model_validate(yaml.safe_load((root / "cluster" / "serve.yaml").read_text()))
    (application,) = schema.applications
    module, _, name = application.import_path.partition(":")
    sys.path.insert(0, str(root))
    try:
        build = getattr(importlib.import_module(module), name)
    finally:
        sys.path.remove(str(root))
    assert build(application.args)._bound_deployment.name == "ingress"


LOOK_ON_TWO_NODES = """
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from vlgenrm_ray.cluster import run_folder

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
cluster.connect()


def count_views(folder, ask):
    probe = folder / "probe"
    probe.write_text("content")
    print("views", sum(view.is_visible for view in ask(probe, "content")))


run_folder.check_views = count_views
run_folder.check_visible(Path(sys.argv[1]))
ray.shutdown()
cluster.shutdown()
"""


def test_the_run_folder_is_looked_for_on_every_node(tmp_path: Path) -> None:
    # In a process of its own: this one is connected to the Ray of the other tests.
    command = [sys.executable, "-c", LOOK_ON_TWO_NODES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert "views 2" in done.stdout, done.stderr
