"""Figures of a step that is learnt in parts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Sums and maxima over tokens. The tallies of micro-batches and workers add up to that of the step.

    All are tensors without gradient, on the loss's device, so that nothing waits for the device before `figures`.
    """

    num_tokens: "torch.Tensor"
    sums: "dict[str, torch.Tensor]"
    maxima: "dict[str, torch.Tensor]"

    @classmethod
    def over(cls, mask: "torch.Tensor", *, means: "dict[str, torch.Tensor]", maxima: "dict[str, torch.Tensor]") -> Self:
        """Of values [B, T] by name, where the mask [B, T] is true."""
        return cls(
            num_tokens=mask.sum(),
            sums={name: values.detach().double().where(mask, 0.0).sum() for name, values in means.items()},
            maxima={name: values.detach().masked_fill(~mask, -float("inf")).amax() for name, values in maxima.items()},
        )

    def __add__(self, other: "Tally") -> "Tally":
        """Of both together; they have the same names."""
        return Tally(
            num_tokens=self.num_tokens + other.num_tokens,
            sums={name: value + other.sums[name] for name, value in self.sums.items()},
            maxima={name: value.maximum(other.maxima[name]) for name, value in self.maxima.items()},
        )

    def cpu(self) -> "Tally":
        """The same on the CPU, to be handed to other workers."""
        return Tally(
            num_tokens=self.num_tokens.cpu(),
            sums={name: value.cpu() for name, value in self.sums.items()},
            maxima={name: value.cpu() for name, value in self.maxima.items()},
        )

    def figures(self) -> dict[str, float]:
        """Means and maxima by name; none where there was no token."""
        number = int(self.num_tokens)
        if not number:
            return {}
        means = {name: float(value) / number for name, value in self.sums.items()}
        return means | {name: float(value) for name, value in self.maxima.items()}
