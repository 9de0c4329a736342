"""Weights straight from the first learning worker into the collector's engines: `weight_sender` on Ray."""

from collections.abc import Callable, Sequence
from typing import Any

from vlgenrm_ray.engines.weight_sender import WeightSender
from vlgenrm_ray.engines.weight_sync import Entry
from vlgenrm_ray.engines.weight_transfer import Backend, Muster, Phase


class RayEngines:
    """A `weight_sender.Engines`: the collector's."""

    def __init__(self, collector: Any) -> None:
        self._collector = collector

    def hold(self) -> Muster:
        """See `Relay.hold`."""
        muster: Muster = self._told(self._collector.hold.remote())
        return muster

    def phase(self, phase: Phase, info: dict[str, Any]) -> None:
        """See `Relay.phase`."""
        self._told(self._collector.phase.remote(phase, info))

    def settle(self, version: int, checksum: str) -> None:
        """See `Relay.settle`."""
        self._told(self._collector.settle.remote(version, checksum))

    def let_go(self, why: str) -> None:
        """See `Relay.let_go`."""
        self._collector.let_go.remote(why)

    def _told(self, reference: Any) -> Any:
        import ray
        from ray.exceptions import RayTaskError

        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error


def sender(
    collector: Any, backend: Backend, outline: Callable[[], Sequence[Entry]], *, timeout_s: float
) -> WeightSender:
    """What this process sends weights with; see `WeightSender`."""
    import ray.util

    address = ray.util.get_node_ip_address()
    return WeightSender(backend, RayEngines(collector), outline, address=address, timeout_s=timeout_s)
