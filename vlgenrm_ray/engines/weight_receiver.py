"""The engine's side of `weight_transfer`: what `vllm.LLM` is asked in each phase, and what its workers count.

vLLM loads what arrives at once, so damage is found after the fact: the engine is of no use then until whole ones come.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines import weight_sync
from vlgenrm_ray.engines.vllm_requests import summary
from vlgenrm_ray.engines.weight_sync import Checksum
from vlgenrm_ray.engines.weight_transfer import Phase
from vlgenrm_ray.errors import EngineLostError, WeightSyncError

if TYPE_CHECKING:
    import torch
    from vllm import LLM


class WorkerTally:
    """What vLLM adds to each of its workers (`worker_extension_cls`), asked by `LLM.collective_rpc`.

    Its names must not be those of the worker's own methods.
    """

    weight_transfer_engine: Any
    """vLLM's, of that worker."""

    def tally_gpu(self) -> str:
        """UUID of the worker's GPU."""
        import torch

        return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)

    def tally_leave(self) -> None:
        """Leave the group that was: NCCL refuses a new one beside one whose learner died (vllm-project/vllm#40646)."""
        group = getattr(self.weight_transfer_engine, "model_update_group", None)
        if group is not None:
            group.destroy()
            self.weight_transfer_engine.model_update_group = None

    def tally_begin(self) -> None:
        """Count what arrives from now on."""
        engine = self.weight_transfer_engine
        self._tally = Checksum()
        engine.set_weight_update_target(_Counted(engine.model, self._tally), engine.model_config)

    def tally_end(self) -> str:
        """The checksum of what arrived."""
        self.weight_transfer_engine.reset_weight_update_target()
        return self._tally.hexdigest()


class _Counted:
    """In the model's place while weights arrive."""

    def __init__(self, model: Any, tally: Checksum) -> None:
        self._model = model
        self._tally = tally

    def load_weights(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> Any:
        return self._model.load_weights(self._tally.counting(weights))


def take(llm: "LLM", phase: Phase, info: Mapping[str, Any]) -> Any:
    """Have an engine do its part; what MUSTER asks for, else None.

    Raises WeightSyncError where it cannot, or where what arrived is not what was sent; EngineLostError.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        return _take(llm, phase, info)
    except WeightSyncError:
        raise
    except EngineDeadError as error:
        raise EngineLostError(summary(error)) from error
    except Exception as error:
        raise WeightSyncError(f"vLLM does not take the weights ({phase}): {summary(error)}") from error


def _take(llm: "LLM", phase: Phase, info: Mapping[str, Any]) -> Any:
    match phase:
        case Phase.MUSTER:
            return tuple(llm.collective_rpc("tally_gpu"))
        case Phase.JOIN:
            llm.collective_rpc("tally_leave")
            llm.init_weight_transfer_engine({"init_info": dict(info)})
        case Phase.BEGIN:
            llm.start_weight_update()
            llm.collective_rpc("tally_begin")
        case Phase.RECEIVE:
            llm.update_weights({"update_info": dict(info)})
        case Phase.FINISH:
            counted = llm.collective_rpc("tally_end")
            llm.finish_weight_update(weight_version=str(info["version"]))
            forget(llm)
            for checksum in counted:
                if checksum != info["checksum"]:
                    left = "what is in the engine now means nothing"
                    raise weight_sync.damaged(info["version"], checksum, info["checksum"], left)
    return None


def forget(llm: "LLM") -> None:
    """Drop what other weights computed of prompts and images: it is of no use to new ones."""
    llm.reset_prefix_cache()
    llm.llm_engine.reset_encoder_cache()
