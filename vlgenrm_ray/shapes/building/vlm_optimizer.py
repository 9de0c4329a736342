"""How the tiny VLM's weights move: Muon for the matrices between its layers, AdamW for the rest."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_NOT_BETWEEN_LAYERS = ("embed", "lm_head")
_WEIGHT_DECAY = 0.01
_QUINTIC = [(3.4445, -4.7750, 2.0315)]
"""Muon's own coefficients of the Newton-Schulz iteration."""


class Muon:
    """Steps along each matrix' orthogonalised momentum (https://kellerjordan.github.io/posts/muon/).

    torch's own computes in bfloat16 only, which most CPUs emulate, 20 times slower than float32.
    """

    def __init__(self, matrices: "list[torch.nn.Parameter]", *, rate: float, momentum: float = 0.95) -> None:
        import torch

        self.rate = rate
        self.momentum = momentum
        self._matrices = matrices
        self._means = [torch.zeros_like(matrix) for matrix in matrices]

    def step(self, share: float) -> None:
        """Move at a share of the peak rate, and forget the gradients."""
        import torch
        from timm.optim.muon import zeropower_via_newtonschulz

        rate = self.rate * share
        with torch.no_grad():
            for matrix, mean in zip(self._matrices, self._means, strict=True):
                if matrix.grad is None:
                    continue
                mean.lerp_(matrix.grad, 1 - self.momentum)
                ahead = matrix.grad.lerp(mean, self.momentum)
                direction = zeropower_via_newtonschulz(ahead, 5, _QUINTIC, dtype=torch.float32)
                rows, columns = matrix.shape
                matrix.mul_(1 - rate * _WEIGHT_DECAY)
                matrix.add_(direction, alpha=-rate * max(1.0, rows / columns) ** 0.5)
                matrix.grad = None


class Optimizer:
    """Both, on one schedule."""

    def __init__(self, model: "torch.nn.Module", *, adamw_rate: float, muon_rate: float) -> None:
        """The rates are peaks, each for its own kind of weight."""
        import torch

        between: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            is_between = parameter.ndim == 2 and not any(word in name for word in _NOT_BETWEEN_LAYERS)
            (between if is_between else rest).append(parameter)
        self._muon = Muon(between, rate=muon_rate)
        self._adamw = torch.optim.AdamW(rest, lr=adamw_rate, betas=(0.9, 0.95), weight_decay=_WEIGHT_DECAY, fused=True)
        self._adamw_rate = adamw_rate

    def step(self, share: float) -> None:
        """Move all weights at a share of the peak rates, and forget the gradients."""
        self._muon.step(share)
        for group in self._adamw.param_groups:
            group["lr"] = self._adamw_rate * share
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
