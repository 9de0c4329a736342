"""Open_clip models (CLIP, SigLIP, ...) behind `contracts.Matcher`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.engines.environment import resolve_device
from vlgenrm_ray.engines.matchers import MatcherConfig
from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    import PIL.Image
    import torch


class OpenClipMatcher:
    """Dual encoder. Text embeddings are cached; each image is compared with every text."""

    def __init__(self, config: MatcherConfig) -> None:
        """Load the model. Raises InputError if open_clip cannot."""
        import open_clip

        name, tag = _split_model_name(config.model)
        device = resolve_device(config.device)
        try:
            model, preprocess = open_clip.create_model_from_pretrained(name, tag, device=device)
            self._tokenizer: Any = open_clip.get_tokenizer(name)
        # open_clip has no error of its own: it raises FileNotFoundError, ValueError, RuntimeError, hub errors, ...
        except Exception as error:
            raise InputError(
                f"matcher.model: {config.model!r} cannot be loaded by open_clip ({type(error).__name__}: {error}); "
                "give a folder with open_clip_config.json and weights, hf-hub:<owner>/<name>, or <architecture>/<tag>"
            ) from error
        self._config = config
        self._device = device
        self._model: Any = model.eval()
        self._preprocess: Any = preprocess
        self._text_embeddings: dict[str, torch.Tensor] = {}

    def match(self, images: "Sequence[PIL.Image.Image]", texts: Sequence[str]) -> list[list[float]]:
        """See `contracts.Matcher`."""
        import torch

        if not images or not texts:
            return [[] for _ in images]
        with torch.inference_mode():
            text_embeddings = self._embed_texts(texts)
            size = self._config.batch_size
            rows = [self._score(images[i : i + size], text_embeddings) for i in range(0, len(images), size)]
        return [row for batch in rows for row in batch]

    def _score(self, images: "Sequence[PIL.Image.Image]", text_embeddings: "torch.Tensor") -> list[list[float]]:
        import torch

        pixels = torch.stack([self._preprocess(image) for image in images]).to(self._device)
        image_embeddings = self._model.encode_image(pixels, normalize=True)
        logits = self._model.logit_scale.exp() * image_embeddings @ text_embeddings.T
        rows: list[list[float]] = logits.softmax(dim=-1).tolist()
        return rows

    def _embed_texts(self, texts: Sequence[str]) -> "torch.Tensor":
        import torch

        if new := sorted(set(texts) - self._text_embeddings.keys()):
            tokens = self._tokenizer([self._config.template.format(text) for text in new]).to(self._device)
            self._text_embeddings.update(zip(new, self._model.encode_text(tokens, normalize=True), strict=True))
        return torch.stack([self._text_embeddings[text] for text in texts])


def _split_model_name(model: str) -> tuple[str, str | None]:
    """Return open_clip's model name and pretrained tag for a `model` setting."""
    if model.startswith("hf-hub:"):
        return model, None
    if Path(model).is_dir():
        return f"local-dir:{model}", None
    architecture, _, tag = model.partition("/")
    return architecture, tag or None
