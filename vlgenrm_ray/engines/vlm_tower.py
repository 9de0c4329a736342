"""The vision tower, run once per picture of a batch however many of its rows show it.

The samples of a group, and the sides of a pair, are of one picture; the tower is a large part of a small model's work,
and of a large one's with large pictures.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vlgenrm_ray.errors import InputError

if TYPE_CHECKING:
    import torch


class Tower:
    """Stands between a Qwen-VL-like module and its tower's features."""

    def __init__(self, module: Any) -> None:
        """Takes the place of the module's `get_image_features`. Raises InputError for a module of another kind."""
        inner = next((m for m in module.modules() if "visual" in m._modules and hasattr(m, "get_image_features")), None)
        if inner is None:
            raise InputError(f"model: {type(module).__name__} has no vision tower as Qwen-VL models have it")
        self.model: Any = inner
        """The part of the module that has the tower."""
        self._features = inner.get_image_features
        self._shown: Sequence[int] = ()
        inner.get_image_features = self._spread

    @contextmanager
    def showing(self, shown: Sequence[int]) -> Iterator[None]:
        """While it lasts, `pixel_values` hold distinct pictures, and `shown` says which of them each row shows.

        `image_grid_thw` is of the rows, as ever.
        """
        self._shown = shown
        try:
            yield
        finally:
            self._shown = ()

    def _spread(self, pixel_values: "torch.Tensor", image_grid_thw: "torch.Tensor", **options: Any) -> Any:
        if not self._shown:
            return self._features(pixel_values, image_grid_thw, **options)
        first = [self._shown.index(picture) for picture in range(max(self._shown) + 1)]
        found = self._features(pixel_values, image_grid_thw[first], **options)
        found.pooler_output = self._rows(found.pooler_output)
        if getattr(found, "deepstack_features", None) is not None:
            found.deepstack_features = [self._rows(features) for features in found.deepstack_features]
        return found

    def _rows(self, features: "Sequence[torch.Tensor]") -> "tuple[torch.Tensor, ...]":
        return tuple(features[picture] for picture in self._shown)
