"""TRL's vLLM in the trainer's process, mended so that it samples from a vision-language model on a CPU.

As TRL 1.16 has it, it does not: it cannot be measured but for these three changes, each of which is in its favour.
"""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.vllm_config import VllmConfig, engine_arguments


def mend(engine: VllmConfig, *, image_token: int) -> None:
    """Change it in this process, for an engine of `engine`'s settings."""
    from trl.generation import vllm_generation

    module = cast("Any", vllm_generation)
    generation = module.VLLMGeneration
    generate = generation.generate

    def sync_weights(self: Any) -> None:
        """TRL puts weights into vLLM's layers one by one; on a CPU these have packed and dropped theirs.

        This is vLLM's own way of loading them anew.
        """
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._iter_named_params()})
        self.llm.reset_prefix_cache()

    def generate_once_expanded(self: Any, prompts: Sequence[Sequence[int]], *rest: Any, **named: Any) -> Any:
        """TRL hands over a placeholder for each token of an image, where vLLM expects one and multiplies the first.

        https://github.com/huggingface/trl/issues/6294
        """
        return generate(self, [one_placeholder(ids, image_token) for ids in prompts], *rest, **named)

    # TRL has no arguments for how the engine computes: left alone, in the folder's bf16, and compiled. What TRL
    # does state stands above ours.
    ours = engine_arguments(engine, model_folder.max_positions(Path(engine.model)))
    module.LLM = partial(module.LLM, **ours)
    generation.sync_weights, generation.generate = sync_weights, generate_once_expanded


def one_placeholder(ids: Sequence[int], image_token: int) -> list[int]:
    """A prompt with each run of placeholders as a single one."""
    return [id for id, run in groupby(ids) for _ in ([0] if id == image_token else run)]
