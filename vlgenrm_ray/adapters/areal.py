"""AReaL (run: 1.0.4). Workflows that await the judge, and a reward function for AReaL's own workflows.

Workflow: `workflow="vlgenrm_ray.adapters.areal.JudgeVisionRLVRWorkflow"` (or `JudgeRLVRWorkflow`), with the
`workflow_kwargs` of AReaL's class of that name except `reward_fn`. Use it wherever a workflow can be chosen.
Function: `reward_fn="vlgenrm_ray.adapters.areal.vlgenrm_reward"`. AReaL runs it in a pool of processes, by default
`max(cpus / gpus / 2, 1)` of them, each of which waits for one reward at a time. Its `AsyncRewardWrapper` counts 15 s
from the submission to that pool, repeats a call four times, and then returns the reward 0. The function therefore takes
the time spent in the queue into account (`QueueClock`) and raises before those 15 s are over. A pool of n processes
gives at most n * 12 s / (seconds per reward) rewards per burst; all others raise.

Question and images are the sample's `messages` and `images`; a column `label` replaces them (`judge/label.py`), and a
column `answer` is the reference. An item without a reward raises, see `rewards.py`: AReaL rejects its trajectory, so
that it is masked, and logs "Workflow execution failed".
"""

import hashlib
import logging
import multiprocessing
import os
import time
from typing import Any

from vlgenrm_ray.adapters.clients import async_judge_client, check_service, judge_client
from vlgenrm_ray.adapters.inputs import build_score_input, optional_import, sample_images
from vlgenrm_ray.adapters.rewards import required_rewards
from vlgenrm_ray.errors import ConfigError, RemoteError
from vlgenrm_ray.judge.label import Label, read_label
from vlgenrm_ray.judge.protocol import ScoreInput

DEADLINE_VARIABLE = "VLGENRM_DEADLINE_S"
_POOL_DEADLINE_S = 12.0
"""Default deadline of a call, in seconds. AReaL allows 15, of which starting a process takes a part."""
_MIN_CALL_S = 0.05
"""Time that must be left of the deadline for a call to begin. Not even a cached reward takes less on the way."""
_WORKFLOWS = {
    "JudgeVisionRLVRWorkflow": "areal.workflow.vision_rlvr:VisionRLVRWorkflow",
    "JudgeRLVRWorkflow": "areal.workflow.rlvr:RLVRWorkflow",
}

log = logging.getLogger("vlgenrm_ray.adapters")


class QueueClock:
    """Earliest time at which a call of a process pool was submitted, as far as one of its processes can know.

    A process is not told when a call was submitted, but it knows bounds, since a pool starts calls in their order:

    - A call that finds the process idle was not waiting.
    - A call that follows another without a pause was submitted no earlier than the last call that found it idle.
    - A call that this process rejected is submitted again at once, hence it and all after it no earlier than that.

    The pool must run this function alone.
    """

    idle_s = 0.25
    """Pause between two calls after which the process counts as idle. In a full queue the next call follows within
    milliseconds."""

    def __init__(self) -> None:
        self._submitted = 0.0
        self._last_end: float | None = None
        self._rejected: dict[bytes, float] = {}

    def begin(self, call: bytes) -> float:
        """Return the earliest time, of the monotonic clock, at which a call was submitted; `call` identifies it."""
        now = time.monotonic()
        if self._last_end is None or now - self._last_end > self.idle_s:
            self._submitted = now
            self._rejected.clear()
        elif call in self._rejected:
            self._submitted = max(self._submitted, self._rejected.pop(call))
        return self._submitted

    def end(self) -> None:
        """Note that a call ends."""
        self._last_end = time.monotonic()

    def reject(self, call: bytes) -> None:
        """Note that a call is rejected, so that the caller submits it again."""
        self._rejected[call] = time.monotonic()


_clock = QueueClock()


def vlgenrm_reward(
    prompt: str,
    completions: str,
    prompt_ids: list[int] | None = None,
    completion_ids: list[int] | None = None,
    **data: Any,
) -> float:
    """Return the reward of one completion. AReaL calls it in a process pool, so it is a plain function.

    Raises:
        RemoteError: The item has no reward, or the pool's queue is so long that AReaL would return 0 instead.
    """
    score_input = _score_input(prompt, completions, data)
    limit = _deadline_s() or _POOL_DEADLINE_S
    if multiprocessing.parent_process() is None:
        (reward,) = required_rewards(judge_client().score([score_input], deadline_s=limit))
        return reward
    call = hashlib.sha256(f"{prompt}\0{completions}".encode(errors="replace")).digest()
    left = _clock.begin(call) + limit - time.monotonic()
    try:
        if left < _MIN_CALL_S:
            _clock.reject(call)
            raise RemoteError(
                f"the queue of AReaL's reward processes takes longer than {limit:g} s, and AReaL would soon return "
                "the reward 0: use workflow=vlgenrm_ray.adapters.areal.JudgeVisionRLVRWorkflow, which needs no "
                "processes, or an AsyncRewardWrapper with more max_workers"
            )
        (reward,) = required_rewards(judge_client(check=False).score([score_input], deadline_s=left))
        return reward
    except RemoteError as error:
        # AReaL logs the exceptions of repeated calls; this line also names the process.
        log.error("process %d: no reward within AReaL's limit: %s", os.getpid(), error)
        raise
    finally:
        _clock.end()


async def vlgenrm_reward_async(
    prompt: str,
    completions: str,
    prompt_ids: list[int] | None = None,
    completion_ids: list[int] | None = None,
    **data: Any,
) -> float:
    """Return the reward of one completion, for workflows of your own: no process pool, and no limit of 15 s.

    Raises:
        RemoteError: The item has no reward.
    """
    score_input = _score_input(prompt, completions, data)
    (reward,) = required_rewards(await async_judge_client().score([score_input], deadline_s=_deadline_s()))
    return reward


def __getattr__(name: str) -> Any:
    """Create a workflow on access, so that importing this file imports neither AReaL nor torch."""
    if name not in _WORKFLOWS:
        raise AttributeError(name)
    base = optional_import(_WORKFLOWS[name], None)
    if base is None:
        raise ConfigError(f"{__name__}.{name}: AReaL is not installed")

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        check_service()
        base.__init__(self, vlgenrm_reward, *args, **kwargs)
        # In place of AReaL's `AsyncRewardWrapper`, which would call the function in its pool.
        self.async_reward_fn = vlgenrm_reward_async

    fields = {"__init__": __init__, "__module__": __name__, "__doc__": f"`{base.__name__}` that awaits a served judge."}
    workflow = type(name, (base,), fields)
    globals()[name] = workflow
    return workflow


def _score_input(prompt: str, completions: str, data: dict[str, Any]) -> ScoreInput:
    if data.get("label") is not None:
        label = read_label(data["label"])
    else:
        label = Label(reference=read_label(data.get("answer")).reference)
    # `messages` may be text already rendered by the processor's template.
    return build_score_input(
        completions, prompt=data.get("messages") or prompt, images=sample_images(data), label=label
    )


def _deadline_s() -> float | None:
    text = os.environ.get(DEADLINE_VARIABLE)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise ConfigError(f"{DEADLINE_VARIABLE}={text!r}: must be seconds above 0, 3600 at most")
    return seconds
