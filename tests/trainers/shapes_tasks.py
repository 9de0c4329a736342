"""Taskset of verifiers: one task per sample of a test's request. Its rewards are named by the launch command."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import verifiers.v1 as vf
from exchange import Sample

__all__ = ["ShapesTasks"]
REQUEST_VARIABLE = "VLGENRM_TEST_REQUEST"


class SampleTask(vf.Task[vf.TaskData, vf.State, vf.TaskConfig]):
    """One question about an image."""


class ShapesTasks(vf.Taskset[SampleTask, vf.TasksetConfig]):
    """The samples of the request, and at the end the one with an empty response."""

    def load(self) -> Iterator[SampleTask]:
        """Build the tasks. The system prompt tells the scripted policy which response is meant."""
        request = json.loads(Path(os.environ[REQUEST_VARIABLE]).read_text())
        for number, row in enumerate([*request["samples"], request["empty"]]):
            data = vf.TaskData(prompt=Sample(**row).messages, system_prompt=str(number))
            yield SampleTask(data, self.config.task)
