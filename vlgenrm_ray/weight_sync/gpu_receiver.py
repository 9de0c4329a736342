"""The engine's side of a weight transfer between GPUs, on `vllm.LLM`. Experimental.

vLLM loads tensors as they arrive, so damage is only found at the end. The engine's weights are then undefined until an
intact version arrives. Checked against the weight transfer API of vLLM 0.29.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.vllm import reset_caches
from vlgenrm_ray.engines.vllm_requests import error_summary
from vlgenrm_ray.errors import EngineLostError, WeightSyncError
from vlgenrm_ray.weight_sync.coordinator import GpuBackend, TransferPhase
from vlgenrm_ray.weight_sync.versions import WeightChecksum, checksum_error

if TYPE_CHECKING:
    import torch
    from vllm import LLM


def engine_arguments(backend: GpuBackend) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` for an engine that receives weights from GPU to GPU."""
    return {
        "weight_transfer_config": {"backend": backend},
        "worker_extension_cls": f"{__name__}.{ReceiverExtension.__name__}",
    }


class ReceiverExtension:
    """Methods that vLLM adds to each of its workers (`worker_extension_cls`), called by `LLM.collective_rpc`.

    Their names must differ from those of the worker's own methods.
    """

    weight_transfer_engine: Any
    """Transfer engine of the worker, from vLLM."""

    def receiver_gpu(self) -> str:
        """Return the UUID of the worker's GPU."""
        import torch

        return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)

    def receiver_leave_group(self) -> None:
        """Leave the previous process group.

        NCCL refuses a new group while one with a dead learner is left (vllm-project/vllm#40646).
        """
        group = getattr(self.weight_transfer_engine, "model_update_group", None)
        if group is not None:
            group.destroy()
            self.weight_transfer_engine.model_update_group = None

    def receiver_start(self) -> None:
        """Compute the checksum of what arrives from now on."""
        engine = self.weight_transfer_engine
        self._receiver_checksum = WeightChecksum()
        engine.set_weight_update_target(_ChecksummingModel(engine.model, self._receiver_checksum), engine.model_config)

    def receiver_finish(self) -> str:
        """Return the checksum of what arrived."""
        self.weight_transfer_engine.reset_weight_update_target()
        return self._receiver_checksum.hexdigest()


class _ChecksummingModel:
    """Stand-in for the model while weights arrive."""

    def __init__(self, model: Any, checksum: WeightChecksum) -> None:
        self._model = model
        self._checksum = checksum

    def load_weights(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> Any:
        return self._model.load_weights(self._checksum.observe(weights))


def execute_phase(llm: "LLM", phase: TransferPhase, info: Mapping[str, Any]) -> Any:
    """Execute one phase of a transfer on an engine.

    Args:
        llm: The engine, started with `engine_arguments`. It must sample nothing from the first phase to the last.
        phase: The phase.
        info: vLLM's info of the phase; for FINISH the `version` and the `checksum`.

    Returns:
        For RENDEZVOUS the GPU UUIDs of the engine's workers, else None.

    Raises:
        WeightSyncError: vLLM refuses, or what arrived is not what was sent.
        EngineLostError: The engine died.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        return _execute(llm, phase, info)
    except WeightSyncError:
        raise
    except EngineDeadError as error:
        raise EngineLostError(error_summary(error)) from error
    except Exception as error:
        raise WeightSyncError(f"vLLM refuses the {phase} phase of new weights: {error_summary(error)}") from error


def _execute(llm: "LLM", phase: TransferPhase, info: Mapping[str, Any]) -> Any:
    match phase:
        case TransferPhase.RENDEZVOUS:
            return tuple(llm.collective_rpc("receiver_gpu"))
        case TransferPhase.JOIN:
            llm.collective_rpc("receiver_leave_group")
            llm.init_weight_transfer_engine({"init_info": dict(info)})
        case TransferPhase.START:
            llm.start_weight_update()
            llm.collective_rpc("receiver_start")
        case TransferPhase.RECEIVE:
            llm.update_weights({"update_info": dict(info)})
        case TransferPhase.FINISH:
            checksums = llm.collective_rpc("receiver_finish")
            llm.finish_weight_update(weight_version=str(info["version"]))
            reset_caches(llm)
            for checksum in checksums:
                if checksum != info["checksum"]:
                    raise checksum_error(
                        info["version"], checksum, info["checksum"], "the engine's weights are undefined now"
                    )
    return None
