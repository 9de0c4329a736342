"""Choice and check of the run folder."""

from pathlib import Path

import pytest

from vlgenrm_ray.cluster import run_folder
from vlgenrm_ray.cluster.run_folder import NodeView
from vlgenrm_ray.errors import ConfigError

RECIPE = Path("jobs/recipes/shapes.yaml")


def test_one_machine_has_a_default_folder_and_a_cluster_has_none() -> None:
    assert run_folder.choose(None, RECIPE, num_nodes=1) == Path("runs/shapes")
    with pytest.raises(ConfigError, match=r"--run: the cluster has 2 nodes .*all of them mount"):
        run_folder.choose(None, RECIPE, num_nodes=2)
    assert run_folder.choose(Path("/mnt/a"), RECIPE, num_nodes=2) == Path("/mnt/a")


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket/run", "hdfs://host/run"])
def test_an_address_is_refused_with_the_remedy(address: str) -> None:
    with pytest.raises(ConfigError, match="mount the bucket on all nodes"):
        run_folder.choose(Path(address), RECIPE, num_nodes=1)


def test_a_folder_that_a_node_does_not_see_is_refused_by_its_name(tmp_path: Path) -> None:
    def ask(probe: Path, content: str) -> list[NodeView]:
        assert probe.read_text() == content
        return [NodeView(host="one", is_visible=True), NodeView(host="two", is_visible=False)]

    with pytest.raises(ConfigError, match=rf"--run {tmp_path}/run: .* not visible on two; name a folder"):
        run_folder.check_views(tmp_path / "run", ask)
    assert not list((tmp_path / "run").iterdir())


def test_a_folder_that_all_nodes_see_is_accepted(tmp_path: Path) -> None:
    run_folder.check_views(tmp_path, lambda probe, content: [run_folder.look_for(probe, content)])


def test_a_folder_of_the_same_name_on_another_disk_is_not_the_same(tmp_path: Path) -> None:
    (tmp_path / "probe").write_text("something else")
    assert not run_folder.look_for(tmp_path / "probe", "content", patience_s=0.01).is_visible
    assert not run_folder.look_for(tmp_path / "missing", "content", patience_s=0.01).is_visible


def test_a_model_that_a_node_does_not_see_is_refused_by_its_hosts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    def ask(probe: Path, content: str) -> list[NodeView]:
        assert (probe, content) == (tmp_path / "config.json", "{}")
        return [NodeView(host="one", is_visible=True), NodeView(host="two", is_visible=False)]

    with pytest.raises(ConfigError, match=rf"--model {tmp_path}: not visible on two; .*hf download"):
        run_folder.check_model_views(tmp_path, ask)
    run_folder.check_model_views(tmp_path, lambda probe, content: [run_folder.look_for(probe, content)])
