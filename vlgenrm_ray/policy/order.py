"""Which questions a step asks, with what seeds: functions of (seed, step), so that a resumed run goes on as it was."""

import hashlib
import random

from vlgenrm_ray.errors import ConfigError


def asked(num_questions: int, per_step: int, *, seed: int, step: int) -> list[int]:
    """Places of the questions of step 0, 1, ...: each pass over the pool in an order of its own.

    What remains of a pass and would not fill a step is left out of it, so that a step has no question twice.
    Raises ConfigError where the pool is smaller than a step.
    """
    if num_questions < per_step:
        raise ConfigError(
            f"a step asks {per_step} questions and the pool has {num_questions}; ask fewer, or give it a larger pool"
        )
    turn, part = divmod(step, num_questions // per_step)
    order = _shuffled(list(range(num_questions)), f"{seed}/pass {turn}")
    return order[part * per_step : (part + 1) * per_step]


def others(num_questions: int, per_step: int, *, seed: int, step: int) -> list[int]:
    """Places of all questions that the step does not ask, in the order in which they replace some of it."""
    own = set(asked(num_questions, per_step, seed=seed, step=step))
    return _shuffled([place for place in range(num_questions) if place not in own], f"{seed}/instead {step}")


def seed_of(seed: int, step: int, question_id: str) -> int:
    """Sampling seed of a question at a step, in [0, 2^31): the same whatever engine is asked, and how often."""
    digest = hashlib.sha256(f"{seed}/{step}/{question_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _shuffled(places: list[int], seed: str) -> list[int]:
    random.Random(seed).shuffle(places)
    return places
