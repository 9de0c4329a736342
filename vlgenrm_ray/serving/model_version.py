"""Which version serves, remembered while gates and engines come and go: a named actor of the cluster."""

from typing import Any

from vlgenrm_ray.errors import InputError
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.serving.engine_worker import first_model
from vlgenrm_ray.serving.tasks import Model

_NAMESPACE = "vlgenrm"


class Standing:
    """A service's standing, from any process of the cluster. Made with the model first served by whoever asks first."""

    def __init__(self, config: ServingConfig, service: str = "") -> None:
        """`service`: tells apart several of one configuration."""
        self._config = config
        self._service = service

    async def get(self) -> Model:
        """The version that serves."""
        model: Model = await self._actor().get.remote()
        return model

    async def put(self, model: Model) -> None:
        """Another serves from now on."""
        await self._actor().put.remote(model)

    def forget(self) -> None:
        """Let a service that is started anew begin with the model that it names, not with its forerunner's last."""
        import ray

        try:
            ray.kill(ray.get_actor(self._name(), namespace=_NAMESPACE))
        except ValueError:
            return

    def _actor(self) -> Any:
        import ray

        name = self._name()
        try:
            model = first_model(self._config)
        except InputError:
            # The folder that was served first may be gone by the time that another one is.
            return ray.get_actor(name, namespace=_NAMESPACE)
        options = {"name": name, "namespace": _NAMESPACE, "lifetime": "detached", "get_if_exists": True, "num_cpus": 0}
        return ray.remote(_Memory).options(**options).remote(model)

    def _name(self) -> str:
        return f"serving-{self._service}-{self._config.fingerprint()}"


class _Memory:
    """The actor."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def get(self) -> Model:
        return self._model

    def put(self, model: Model) -> None:
        self._model = model
