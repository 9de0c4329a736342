"""A policy's training, from its questions to its summary. Resumable, as its parts are.

<run>/config.yaml          the resolved configuration
<run>/pool, heldout-pool   see store.py
<run>/policy               see policy/run.py; and curves.svg, how it went
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vlgenrm_ray import recipe
from vlgenrm_ray.config import ManagedJudgeService, PolicyRunConfig
from vlgenrm_ray.curation import pool
from vlgenrm_ray.data.store import StageFolder
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.policy import run as policy
from vlgenrm_ray.report import curves


def run(config: PolicyRunConfig, folder: Path) -> dict[str, Any]:
    """Make, or finish, the run in `folder`; what `policy/summary.json` holds. Raises the errors of `errors.py`."""
    with nullcontext() if config.service is None else served(config.service, folder):
        return train(config, folder)


def train(config: PolicyRunConfig, folder: Path) -> dict[str, Any]:
    """As `run`, with rewards that are served already."""
    folder = folder.absolute()
    recipe.claim(config, folder)
    asked, held_out = StageFolder(folder / "pool"), StageFolder(folder / "heldout-pool")
    pool.run(config.pool, target=asked, seed=config.seed)
    pool.run(config.heldout, target=held_out, seed=config.seed)
    settings = config.policy
    if "seed" not in settings.model_fields_set:
        settings = settings.model_copy(update={"seed": config.seed})
    target = folder / "policy"
    done = policy.run(
        settings,
        base=model_folder.locate(config.base),
        questions=asked,
        held_out=held_out,
        target=target,
    )
    if not (picture := target / "curves.svg").exists():
        curves.draw({folder.name: [target]}, picture)
    return done


@contextmanager
def served(own: ManagedJudgeService, run: Path) -> Iterator[str]:
    """Serve the judge of the run in that folder on this machine meanwhile; its address.

    The run's own from an attempt that was killed is replaced.
    """
    from vlgenrm_ray.serving import launch

    name = f"{launch.NAME}-{hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:8]}"
    folder = str(model_folder.locate(own.model))
    config = own.serving.model_copy(update={"engine": own.serving.engine.model_copy(update={"model": folder})})
    try:
        yield launch.start(config, host="127.0.0.1", port=own.port, name=name, replace=True)
    finally:
        launch.stop(name)
