"""An engine for the gate, as a deployment of Ray Serve, without a model."""

import asyncio

from vlgenrm_ray.judge.wire import Status
from vlgenrm_ray.serving.canary import Finding
from vlgenrm_ray.serving.tasks import Model, Outcome, Task

SLOW_S = 15.0


class StrawEngine:
    """Rewards a response by its own number, and tells the size of the picture's file."""

    async def judge(self, tasks: list[Task], wanted: Model) -> list[Outcome]:
        if any(task.response == "slow" for task in tasks):
            await asyncio.sleep(SLOW_S)
        return [
            Outcome(
                reward=float(task.response) if task.response[0].isdigit() else 0.5,
                status=Status.OK,
                version=wanted.version,
                critiques=(f"{len(task.images[0].data) if task.images else 0} bytes",),
                p_yes=(0.5,),
            )
            for task in tasks
        ]

    async def trial(self, wanted: Model) -> Finding:
        raise NotImplementedError
