"""Comparison of nested values, numbers within rounding."""

from typing import Any

import pytest


def assert_close(value: Any, expected: Any) -> None:
    """Assert that two values of dictionaries, lists and scalars are equal up to the rounding of numbers."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for name in expected:
            assert_close(value[name], expected[name])
    elif isinstance(expected, list):
        assert len(value) == len(expected)
        for one, other in zip(value, expected, strict=True):
            assert_close(one, other)
    else:
        assert value == (pytest.approx(expected) if isinstance(expected, float) else expected)
