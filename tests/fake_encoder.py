"""Stand-in for `VlmEncoder` that needs no model folder."""

from collections.abc import Sequence

from vlgenrm_ray.engines.vlm_batch import TextError, Tokens
from vlgenrm_ray.records import ImageRef


class FakeEncoder:
    """Encodes every prompt as `NUM_PROMPT` equal tokens."""

    NUM_PROMPT = 14
    IMAGE_TOKEN = 999

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return one letter per token, and "" for the end of turn, token 2."""
        return ["" if id == 2 else chr(96 + id) for id in ids]

    def encode_rollout(self, image: ImageRef, prompt: str, ids: Sequence[int]) -> Tokens:
        if self.IMAGE_TOKEN in ids:
            raise TextError("image token in a response")
        return Tokens((1,) * self.NUM_PROMPT + tuple(ids), self.NUM_PROMPT)
