"""Actors of stages whose engine is lost: their process ends, so that Ray restarts them."""

import subprocess
import sys
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest

from vlgenrm_ray.curation.experts import _Examine
from vlgenrm_ray.curation.responses import _Generate
from vlgenrm_ray.data import flow
from vlgenrm_ray.engines.vllm import VllmGenerator
from vlgenrm_ray.errors import EngineLostError
from vlgenrm_ray.evaluation.benchmark_run import BenchmarkActor
from vlgenrm_ray.evaluation.candidates import CandidateActor
from vlgenrm_ray.evaluation.pairs import PairJudgeActor
from vlgenrm_ray.reward.critiques import CritiqueActor

CALL = """
    from vlgenrm_ray.data.flow import exit_if_engine_lost
    from vlgenrm_ray.errors import EngineLostError, StageError

    class Actor:
        @exit_if_engine_lost
        def __call__(self, error):
            raise error("as scripted")

    Actor()({error})
"""


@pytest.mark.parametrize(("error", "status"), [("EngineLostError", 75), ("StageError", 1)])
def test_only_a_lost_engine_ends_the_process(error: str, status: int) -> None:
    script = textwrap.dedent(CALL).replace("{error}", error)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == status
    assert "as scripted" in done.stderr


@pytest.mark.parametrize(
    "actor",
    [CritiqueActor, CandidateActor, PairJudgeActor, BenchmarkActor, _Generate, _Examine],
    ids=lambda a: a.__name__,
)
def test_every_actor_with_an_engine_ends_with_it(actor: type) -> None:
    assert hasattr(actor.__call__, "__wrapped__")


def test_the_restarts_of_an_actor_are_bounded() -> None:
    assert flow.ActorPoolConfig().map_batches_args()["max_restarts"] == 8


class FakeEngineDeadError(Exception):
    """Stands in for vLLM's error; importing vLLM takes long."""


def test_a_dead_engine_refuses_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = SimpleNamespace(EngineDeadError=FakeEngineDeadError)
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", exceptions)

    def enqueue(*_: Any, **__: Any) -> Any:
        raise FakeEngineDeadError("the engine died")

    generator = VllmGenerator.__new__(VllmGenerator)
    generator._llm = SimpleNamespace(enqueue=enqueue)  # type: ignore[assignment]
    with pytest.raises(EngineLostError):
        list(generator._run_isolated({0: ({}, None)}))  # type: ignore[dict-item]
