"""Open_clip models (CLIP, SigLIP, ...) behind `contracts.Matcher`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from vlgenrm_ray.engines.contracts import Matcher
from vlgenrm_ray.engines.detector import device_of
from vlgenrm_ray.engines.environment import limit_threads
from vlgenrm_ray.errors import InputError
from vlgenrm_ray.settings import Settings

if TYPE_CHECKING:
    import PIL.Image
    import torch


class MatcherConfig(Settings):
    """An image-text matcher and how it runs."""

    model: str
    """Folder with `open_clip_config.json` and weights, `hf-hub:<owner>/<name>`, or `<architecture>/<tag>`."""
    template: str = "a photo of {}"
    """Sentence a phrase is put into ("a red cup" -> "a photo of a red cup")."""
    batch_size: int = Field(default=256, ge=1)
    """Crops that go through the image tower together."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of the process."""

    @field_validator("template")
    @classmethod
    def _has_one_gap(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError(f"template: {template!r} must hold {{}} exactly once, where the phrase goes")
        return template


def build_matcher(config: MatcherConfig) -> Matcher:
    """Load a matcher into this process. Raises InputError if its model cannot be read."""
    limit_threads(config.threads)
    return OpenClipMatcher(config)


class OpenClipMatcher:
    """A dual encoder: texts are embedded once and remembered, images are compared with all of them."""

    def __init__(self, config: MatcherConfig) -> None:
        import open_clip

        name, tag = _names(config.model)
        device = device_of(config.device)
        try:
            model, preprocess = open_clip.create_model_from_pretrained(name, tag, device=device)
            self._tokenizer: Any = open_clip.get_tokenizer(name)
        # Open_clip raises by what it met: FileNotFoundError, ValueError, RuntimeError, a hub's own errors, ...
        except Exception as error:
            raise InputError(
                f"matcher.model: {config.model!r} cannot be loaded by open_clip ({type(error).__name__}: {error}); "
                "give a folder with open_clip_config.json and weights, hf-hub:<owner>/<name>, or <architecture>/<tag>"
            ) from error
        self._config = config
        self._device = device
        self._model: Any = model.eval()
        self._preprocess: Any = preprocess
        self._texts: dict[str, torch.Tensor] = {}

    def match(self, images: "Sequence[PIL.Image.Image]", texts: Sequence[str]) -> list[list[float]]:
        """See `contracts.Matcher`."""
        import torch

        if not images or not texts:
            return [[] for _ in images]
        with torch.inference_mode():
            known = self._embedded(texts)
            size = self._config.batch_size
            rows = [self._scores(images[i : i + size], known) for i in range(0, len(images), size)]
        return [row for batch in rows for row in batch]

    def _scores(self, images: "Sequence[PIL.Image.Image]", texts: "torch.Tensor") -> list[list[float]]:
        import torch

        pixels = torch.stack([self._preprocess(image) for image in images]).to(self._device)
        seen = self._model.encode_image(pixels, normalize=True)
        rows: list[list[float]] = (self._model.logit_scale.exp() * seen @ texts.T).softmax(dim=-1).tolist()
        return rows

    def _embedded(self, texts: Sequence[str]) -> "torch.Tensor":
        import torch

        if new := sorted(set(texts) - self._texts.keys()):
            tokens = self._tokenizer([self._config.template.format(text) for text in new]).to(self._device)
            self._texts.update(zip(new, self._model.encode_text(tokens, normalize=True), strict=True))
        return torch.stack([self._texts[text] for text in texts])


def _names(model: str) -> tuple[str, str | None]:
    """Open_clip's model name and pretrained tag for a `model` setting."""
    if model.startswith("hf-hub:"):
        return model, None
    if Path(model).is_dir():
        return f"local-dir:{model}", None
    architecture, _, tag = model.partition("/")
    return architecture, tag or None
