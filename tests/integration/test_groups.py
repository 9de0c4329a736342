"""Tests that share what takes long to start run in one process: pytest-xdist breaks such groups up without a word."""

import pytest


def test_the_tests_of_a_file_are_one_group(request: pytest.FixtureRequest) -> None:
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("runs with --dist loadgroup")
    # xdist carries a group's name in its tests' ids.
    assert request.node.nodeid.endswith("@test_groups.py")
