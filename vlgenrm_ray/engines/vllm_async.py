"""Generator on vLLM for concurrent requests. The engine runs in a process of its own and batches them."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.engines.contracts import Conversation, Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.engines.environment import kill_on_exit
from vlgenrm_ray.engines.vllm_config import VllmConfig, engine_arguments, on_cpu, set_environment
from vlgenrm_ray.engines.vllm_requests import (
    RESET_POLL_S,
    RESET_TIMEOUT_S,
    STALE_PREFIXES,
    VllmRequests,
    error_summary,
    mix_seed,
    refusal,
)
from vlgenrm_ray.engines.vllm_worker import CpuWorkerExtension
from vlgenrm_ray.errors import ConfigError, DropReason, EngineLostError, InputError

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine.output_processor import RequestOutputCollector

_T = TypeVar("_T")
_POLL_S = 0.5
"""Interval between checks that the engine's process is alive."""


class AsyncVllmGenerator:
    """A `contracts.LiveGenerator` on vLLM's `AsyncLLM`.

    Each of the n samples of a prompt is a vLLM request, as inside vLLM for n > 1, so it can be returned or aborted by
    itself. The prompt is rendered once. Its requests share the images and, by the prefix cache, the prefill. Seeds and
    samples equal those of `VllmGenerator`.
    """

    def __init__(self, config: VllmConfig) -> None:
        """Start the engine, which takes seconds to minutes.

        Raises:
            InputError: The model folder cannot be used.
            ConfigError: vLLM does not start with these settings.
        """
        folder = model_folder.locate(config.model)
        set_environment(config)

        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._traits = model_folder.compatibility_traits(folder)
        arguments = engine_arguments(config, folder)
        # `vllm.LLM` takes None for a default; here the argument must be left out.
        arguments = {name: value for name, value in arguments.items() if value is not None}
        try:
            self._llm: AsyncLLM = AsyncLLM.from_engine_args(
                AsyncEngineArgs(model=str(folder), disable_log_stats=True, **arguments)
            )
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"vLLM does not start with model folder {folder}: {error_summary(error)}") from error
        self.requests = VllmRequests(self._llm, folder.name, config)
        self._numbers = itertools.count()
        self._processes = self._llm.engine_core.resources.engine_manager.processes
        self._watch = kill_on_exit([process.pid for process in self._processes])
        self._closed = False
        self._loss: asyncio.Future[None] | None = None

    async def generate_one(
        self, prompt: Prompt | Conversation, sampling: Sampling, seed: int
    ) -> list[Sample] | Refusal:
        """Return the n samples of a prompt, or a refusal. Cancelling it aborts the running samples."""
        samples: dict[int, Sample] = {}
        async for place, outcome in self.generate_stream(prompt, sampling, seed):
            if isinstance(outcome, Refusal):
                return outcome
            samples[place] = outcome
        return [samples[place] for place in range(sampling.n)]

    async def generate_stream(
        self, prompt: Prompt | Conversation, sampling: Sampling, seed: int
    ) -> AsyncIterator[tuple[int, Sample | Refusal]]:
        """See `contracts.LiveGenerator`."""
        tracked = self.requests.tracked_ids(sampling)
        params = self.requests.params(sampling, tracked, mix_seed(seed))
        running: list[asyncio.Task[tuple[int, Sample | Refusal]]] = []
        # Shielded from cancellation: otherwise vLLM might assume that its engine has an image that was never sent.
        submitting = asyncio.ensure_future(self._or_lost(self._submit(prompt, params)))
        try:
            submitted = await asyncio.shield(submitting)
            if isinstance(submitted, Refusal):
                for place in range(sampling.n):
                    yield place, submitted
                return
            running = [
                asyncio.ensure_future(self._wait(place, queue, sampling, tracked))
                for place, queue in enumerate(submitted)
            ]
            for finished in asyncio.as_completed(running):
                yield await finished
        finally:
            for task in running:
                task.cancel()
            if not submitting.done() or any(not task.done() for task in running):
                _keep(asyncio.ensure_future(self._abort(submitting)))

    def is_alive(self) -> bool:
        """Return whether the engine's process runs and has not failed."""
        return not (self._closed or self._llm.errored) and all(process.is_alive() for process in self._processes)

    async def reload(self, folder: Path) -> None:
        """Load the weights of another model folder with the same architecture and vocabulary.

        No request may be running.

        Raises:
            InputError: The folder is of another architecture or vocabulary; nothing was changed.
            EngineLostError: The engine died.
        """
        model_folder.check(folder)
        traits = model_folder.compatibility_traits(folder)
        if names := sorted(n for n in traits.keys() | self._traits.keys() if traits.get(n) != self._traits.get(n)):
            raise InputError(
                f"model folder {folder}: its {names[0]} differs from the present model's; start a new engine for it"
            )
        await self._or_lost(self._reload(folder))

    def close(self) -> None:
        """Stop the engine and its process; waiting requests raise EngineLostError."""
        self._closed = True
        self._llm.shutdown()
        self._watch.communicate()

    async def _reload(self, folder: Path) -> None:
        await self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        if on_cpu():
            await self._llm.collective_rpc(CpuWorkerExtension.extension_repack_head.__name__)
        # Cached prefills and image embeddings belong to the old weights.
        deadline = time.monotonic() + RESET_TIMEOUT_S
        while not await self._llm.reset_prefix_cache():
            if time.monotonic() > deadline:
                raise EngineLostError(STALE_PREFIXES)
            await asyncio.sleep(RESET_POLL_S)
        await self._llm.reset_encoder_cache()

    # -- loss --------------------------------------------------------------------------------------------------

    async def _or_lost(self, work: Awaitable[_T]) -> _T:
        """Await `work`. Raises EngineLostError if the engine ends first; vLLM would wait forever."""
        if self._loss is None:
            self._loss = asyncio.ensure_future(self._until_lost())
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait((working, self._loss), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise EngineLostError("vLLM's engine process is gone")
            return working.result()
        finally:
            working.cancel()

    async def _until_lost(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        while self.is_alive():
            await asyncio.sleep(_POLL_S)
        # Wake waiting requests; vLLM does it only if it notices the death before it is shut down.
        self._llm.output_processor.propagate_error(EngineDeadError())

    # -- requests ----------------------------------------------------------------------------------------------

    async def _submit(
        self, prompt: Prompt | Conversation, params: "SamplingParams"
    ) -> "list[RequestOutputCollector] | Refusal":
        """Submit a prompt to the engine, once per sample."""
        from vllm.v1.engine.exceptions import EngineDeadError

        request = self.requests.request(prompt)
        if isinstance(request, Refusal):
            return request
        number = next(self._numbers)
        queues: list[RequestOutputCollector] = []
        try:
            (rendered,) = await self._llm.renderer.render_cmpl_async([request])
            for place in range(params.n):
                one = params.clone()
                # vLLM seeds the samples of one request in this way.
                one.n, one.seed = 1, params.seed + place
                queues.append(await self._llm.add_request(f"{number}-{place}", rendered, one))
                if not place and params.n > 1:
                    rendered = self._without_pixels(rendered)
        except EngineDeadError as error:
            raise EngineLostError(error_summary(error)) from error
        # Refusals of vLLM, and any error of the model's image processor.
        except Exception as error:
            if queues:
                await self._llm.abort([queue.request_id for queue in queues], internal=True)
            return refusal(error)
        return queues

    def _without_pixels(self, rendered: Any) -> Any:
        """Return the input of further samples, with hashes instead of pixels: the engine has the images by then.

        vLLM does the same for a repeated prompt. Otherwise the pixels would be sent to the engine's process once per
        sample.
        """
        from vllm.multimodal.cache import MultiModalProcessorSenderCache

        sent = self._llm.renderer.mm_processor_cache
        hashes = rendered.get("mm_hashes", {})
        if not isinstance(sent, MultiModalProcessorSenderCache):
            return rendered
        if not all(sent.is_cached_item(one) for several in hashes.values() for one in several):
            return rendered
        return rendered | {"mm_kwargs": {kind: [None] * len(several) for kind, several in hashes.items()}}

    async def _wait(
        self, place: int, queue: "RequestOutputCollector", sampling: Sampling, tracked: Mapping[str, Sequence[int]]
    ) -> tuple[int, Sample | Refusal]:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            output: Any = await queue.get()
        except EngineDeadError as error:
            raise EngineLostError(error_summary(error)) from error
        except Exception as error:
            return place, Refusal(reason=DropReason.ENGINE_ERROR, detail=error_summary(error))
        return place, self.requests.sample(output.outputs[0], sampling, tracked, output.prompt_token_ids)

    async def _abort(self, submitting: "asyncio.Future[list[RequestOutputCollector] | Refusal]") -> None:
        submitted = await submitting
        if not isinstance(submitted, Refusal):
            await self._llm.abort([queue.request_id for queue in submitted], internal=True)


_background: set[asyncio.Future[None]] = set()


def _keep(task: "asyncio.Future[None]") -> None:
    """Keep a reference to a task that is not awaited; asyncio itself keeps only a weak one."""
    _background.add(task)
    task.add_done_callback(_done)


def _done(task: "asyncio.Future[None]") -> None:
    _background.discard(task)
    # An engine that died while a request was aborted is reported by other requests.
    if not task.cancelled():
        task.exception()
