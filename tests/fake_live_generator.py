"""A live generator over a scripted one, with a chosen delay for each sample."""

import asyncio
from collections.abc import AsyncIterator, Callable

from vlgenrm_ray.engines.contracts import Conversation, Prompt, Refusal, Sample, Sampling
from vlgenrm_ray.engines.scripted import ScriptedGenerator


class FakeLiveGenerator:
    """A `LiveGenerator` that yields the samples of a `ScriptedGenerator` after their delays."""

    def __init__(self, generator: ScriptedGenerator, delay_s: Callable[[Prompt, int], float] | None = None) -> None:
        """Create the generator. `delay_s`: seconds until sample k of a prompt is finished; default 0."""
        self.generator = generator
        self.delay_s = delay_s or (lambda prompt, place: 0.0)
        self.num_asked = 0
        """Requests so far."""
        self.num_aborted = 0
        """Requests that were cancelled or closed before their last sample."""

    async def generate_stream(
        self, prompt: Prompt | Conversation, sampling: Sampling, seed: int
    ) -> AsyncIterator[tuple[int, Sample | Refusal]]:
        """Sample, see `contracts.LiveGenerator`. The script sees a conversation as text, `<image>` for its images."""
        if isinstance(prompt, Conversation):
            prompt = Prompt(images=prompt.images, text=conversation_text(prompt))
        self.num_asked += 1
        (outcome,) = self.generator.generate([prompt], sampling, [seed])
        elapsed = 0.0
        try:
            for place in sorted(range(sampling.n), key=lambda place: self.delay_s(prompt, place)):
                delay = self.delay_s(prompt, place)
                await asyncio.sleep(delay - elapsed)
                elapsed = delay
                yield place, outcome if isinstance(outcome, Refusal) else outcome[place]
        except (asyncio.CancelledError, GeneratorExit):
            self.num_aborted += 1
            raise


def conversation_text(conversation: Conversation) -> str:
    """The turns of a conversation as text, one per line."""
    turns = [
        (turn.role, "".join("<image>" if part is None else part for part in turn.parts)) for turn in conversation.turns
    ]
    return "\n".join(f"{role}: {text}" for role, text in turns)
