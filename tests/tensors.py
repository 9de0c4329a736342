"""Comparison of tensors without `torch.testing`, whose import of sympy takes longer than the tests that compare."""

from typing import TYPE_CHECKING

from numpy.testing import assert_allclose

if TYPE_CHECKING:
    import torch


def assert_close(actual: "torch.Tensor", expected: "torch.Tensor", *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Assert that two tensors have the same shape and dtype, and nearly the same values."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert_allclose(actual.detach().numpy(), expected.detach().numpy(), rtol=rtol, atol=atol)
