"""Methods that vLLM adds to its workers on a CPU (`worker_extension_cls`), called by `collective_rpc`."""

from typing import Any


class CpuWorkerExtension:
    """Extension of vLLM's CPU worker. Names of methods must differ from the worker's own. Checked against vLLM 0.29."""

    model_runner: Any
    """Model runner of the worker, from vLLM."""

    def extension_repack_head(self) -> None:
        """Pack the head's weights anew after a reload.

        On a CPU vLLM multiplies by a packed copy of each weight. A reload packs the layers that it loads, and a head
        that is tied to the embedding is not loaded by itself: it would keep the copy of the previous weights.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, ParallelLMHead) and isinstance(layer.quant_method, UnquantizedEmbeddingMethod):
                layer.quant_method.process_weights_after_loading(layer)
