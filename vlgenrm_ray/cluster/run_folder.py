"""Folders that every node of a cluster must see: the run folder of a command, and the model that a service loads."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlgenrm_ray.cluster import connection
from vlgenrm_ray.errors import ConfigError

_PATIENCE_S = 40.0
"""Seconds in which a file that one node wrote must be visible on the others. NFS clients cache listings for 30 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """Result of looking for a file on one node."""

    host: str
    is_visible: bool


def choose(run: Path | None, recipe: Path, *, num_nodes: int) -> Path:
    """Return the run folder of a command.

    Args:
        run: Folder that the user named, if any.
        recipe: Recipe, whose name the default folder has: `runs/<recipe>` in the working directory.
        num_nodes: Nodes of the cluster.

    Raises:
        ConfigError: The folder is an address, or none is named on a cluster of several nodes.
    """
    if run is None:
        if num_nodes > 1:
            raise ConfigError(
                f"--run: the cluster has {num_nodes} nodes and no run folder is named; name one on a file system that "
                "all of them mount, such as --run /mnt/shared/runs/a"
            )
        return Path("runs") / recipe.stem
    # Path() has joined the slashes of "s3://".
    if ":/" in str(run):
        raise ConfigError(
            f"--run {run}: a run folder must be a path; mount the bucket on all nodes (for example with mountpoint-s3 "
            "or gcsfuse) and name the mounted folder"
        )
    return run


def check_visible(folder: Path) -> None:
    """Check that every node of the connected cluster sees what this process writes into a folder.

    Args:
        folder: Run folder; created if missing.

    Raises:
        ConfigError: A node does not see it; the message names the hosts.
    """
    if connection.spans_machines():
        check_views(folder, _ask_nodes)


def check_model_visible(folder: Path) -> None:
    """Check that every node of the connected cluster sees a model folder, by its configuration.

    Raises:
        ConfigError: A node does not see it; the message names the hosts.
    """
    if connection.spans_machines():
        check_model_views(folder, _ask_nodes)


def check_model_views(folder: Path, ask: Callable[[Path, str], Sequence[NodeView]]) -> None:
    """Ask nodes for the configuration of a model folder, and raise ConfigError if one does not see it, see `ask`."""
    file = folder / "config.json"
    if blind := sorted({view.host for view in ask(file, file.read_text()) if not view.is_visible}):
        raise ConfigError(
            f"--model {folder}: not visible on {', '.join(blind)}; put the model on a file system that all nodes mount "
            "at the same path (`hf download NAME --local-dir FOLDER` for one of the hub) and name that folder"
        )


def _ask_nodes(probe: Path, content: str) -> Sequence[NodeView]:
    """Look for a file with a content on all nodes of the connected cluster."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    look = ray.remote(num_cpus=0)(look_for)
    placed = [look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)) for node in nodes]
    views: list[NodeView] = ray.get([task.remote(probe, content) for task in placed])
    return views


def check_views(folder: Path, ask: Callable[[Path, str], Sequence[NodeView]]) -> None:
    """Write a file into a folder, ask nodes for it, and raise ConfigError if one does not see it.

    Args:
        folder: Folder to check; created if missing.
        ask: Looks for a file with a content on all nodes.
    """
    import socket

    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    probe, content = folder / f".visible-{uuid.uuid4().hex}", uuid.uuid4().hex
    probe.write_text(content)
    try:
        views = ask(probe, content)
    finally:
        probe.unlink(missing_ok=True)
    if blind := sorted({view.host for view in views if not view.is_visible}):
        raise ConfigError(
            f"--run {folder}: the folder that {socket.gethostname()} sees is not visible on {', '.join(blind)}; name a "
            "folder on a file system that all nodes mount at the same path"
        )


def look_for(probe: Path, content: str, patience_s: float = _PATIENCE_S) -> NodeView:
    """Look for a file until it has the expected content, for at most `patience_s` seconds."""
    import socket

    deadline = time.monotonic() + patience_s
    while True:
        try:
            if probe.read_text() == content:
                return NodeView(host=socket.gethostname(), is_visible=True)
        except OSError:
            pass  # Not there, or not there yet.
        if time.monotonic() > deadline:
            return NodeView(host=socket.gethostname(), is_visible=False)
        time.sleep(min(1.0, patience_s / 4))
