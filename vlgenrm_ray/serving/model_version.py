"""Versions of the served weights: read from model folders, verified after loading, and remembered on the cluster.

Every call of an engine carries the version that should judge, so an engine that was started late or restarted loads it
first. `ActiveModelRegistry` keeps the active version in a named Ray actor, which outlives ingress and engines.
"""

import asyncio
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.serving.config import ServingConfig

_log = logging.getLogger("vlgenrm.serving")
_NAMESPACE = "vlgenrm"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """The weights that should judge."""

    number: int
    """0 for the configured model, plus 1 for each swap. An engine with a lower number loads this version first."""
    folder: str
    name: str
    """Folder name and digest of the weights, as replies state it in `model_version`."""


def configured_model(config: ServingConfig) -> ModelVersion:
    """Return the version that the configuration names. Raise InputError if its folder cannot be used."""
    return read_version(model_folder.locate(config.engine.model), 0)


def read_version(folder: Path, number: int) -> ModelVersion:
    """Return the version that a folder holds now. Raise InputError if it cannot be read.

    Links are resolved here, once: what serves must not change when a link such as a run's `best` moves.
    """
    real = folder.resolve()
    return ModelVersion(number=number, folder=str(real), name=model_folder.version(real, folder.name))


async def verify_loaded(model: ModelVersion) -> ModelVersion:
    """Return the version just loaded, renamed if its folder has changed, so that replies name the right weights."""
    try:
        name = await asyncio.to_thread(_current_name, model)
    except InputError as error:
        _log.warning("version %s was loaded, and its folder cannot be read any more: %s", model.name, error)
        return model
    if name == model.name:
        return model
    _log.warning("%s holds other weights than it did: serving version %s, not %s", model.folder, name, model.name)
    return replace(model, name=name)


def check_reloadable(model: ModelVersion) -> None:
    """Raise InputError unless the same version can be loaded once more from its folder."""
    model_folder.check(Path(model.folder))
    if (name := _current_name(model)) != model.name:
        raise InputError(
            f"model folder {model.folder}: holds {name} by now, not {model.name}, which serves. If the new model were "
            "refused, there would be no way back: put the old weights there, or restart the service"
        )


def _current_name(model: ModelVersion) -> str:
    return model_folder.version(Path(model.folder), model.name.rpartition("-")[0])


class ActiveModelRegistry:
    """Access to the active version of a service from any process of the cluster.

    The version lives in a detached Ray actor, created with the configured model by the first process that needs it.
    """

    def __init__(self, config: ServingConfig, service: str = "") -> None:
        """Create the access. `service` distinguishes services of equal configuration on one cluster."""
        self._config = config
        self._service = service

    async def get(self) -> ModelVersion:
        """Return the active version."""
        model: ModelVersion = await self._actor().get.remote()
        return model

    async def put(self, model: ModelVersion) -> None:
        """Make `model` the active version."""
        await self._actor().put.remote(model)

    def clear(self) -> None:
        """Forget the active version, so that a newly started service begins with its configured model."""
        import ray

        try:
            ray.kill(ray.get_actor(self._name(), namespace=_NAMESPACE))
        except ValueError:
            return

    def _actor(self) -> Any:
        import ray

        name = self._name()
        try:
            model = configured_model(self._config)
        except InputError:
            # The configured folder may be gone by the time that another one serves.
            return ray.get_actor(name, namespace=_NAMESPACE)
        options = {"name": name, "namespace": _NAMESPACE, "lifetime": "detached", "get_if_exists": True, "num_cpus": 0}
        return ray.remote(_ActiveModelActor).options(**options).remote(model)

    def _name(self) -> str:
        return f"serving-{self._service}-{self._config.fingerprint()}"


class _ActiveModelActor:
    """Holds one version."""

    def __init__(self, model: ModelVersion) -> None:
        self._model = model

    def get(self) -> ModelVersion:
        return self._model

    def put(self, model: ModelVersion) -> None:
        self._model = model
