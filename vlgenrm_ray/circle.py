"""Reward model and policy make each other better, turn after turn.

A turn: the present policy answers the pool, the GenRM learns from what the experts say of the answers, is served, and
the policy learns from its rewards. The next turn begins with both. Resumable, as its parts are.

    <run>/turn-<t>/reward     see pipeline.py
    <run>/turn-<t>/policy     see policy_pipeline.py
    <run>/summary.json        what each turn came to
"""

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vlgenrm_ray import pipeline, policy_pipeline
from vlgenrm_ray.config import CircleConfig, OwnService, RunConfig
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.serving.auth import Tokens
from vlgenrm_ray.store import write_json

_EXCHANGE_S = 900.0
"""Longest that another judge may take to be loaded and tried."""
Turn = dict[str, Any]
"""`turn`, `judge` and `policy` (folders), `accuracy` (the judge's, on held-out pairs), `first` and `best` (the policy's
held-out evaluations), `exchanged` (why the judge was not taken into service, if it was not)."""


def run(config: CircleConfig, folder: Path, *, report: Callable[[Turn], None] = lambda done: None) -> list[Turn]:
    """Go round `config.turns` times, or finish that; what each turn came to. Raises the errors of `errors.py`."""
    folder = folder.absolute()
    policy, judge = str(model_folder.locate(config.policy.base)), str(model_folder.locate(config.reward.base))
    turns: list[Turn] = []
    with ExitStack() as until_the_end:
        service: Service | None = None
        for number in range(1, config.turns + 1):
            here = folder / f"turn-{number}"
            made = pipeline.run(_with(config.reward, judge, policy), here / "reward")
            judge = str((here / "reward" / "best").resolve())
            exchanged = ""
            if service is None:
                service = until_the_end.enter_context(Service(config.service))
                service.start(judge)
            else:
                exchanged = service.exchange(judge)
            trained = policy_pipeline.train(
                config.policy.model_copy(update={"base": policy, "service": None}), here / "policy"
            )
            policy = str(here / "policy" / "policy" / "best")
            turns.append(
                {
                    "turn": number,
                    "judge": judge,
                    "policy": policy,
                    "accuracy": max(done["pairwise_accuracy"] for done in made["rounds"]),
                    "first": _figures(trained["first"]),
                    "best": _figures(trained["best"]),
                    "exchanged": exchanged,
                }
            )
            write_json(folder / "summary.json", {"turns": turns})
            report(turns[-1])
    return turns


class Service:
    """The circle's judge, served from its first turn to its end."""

    def __init__(self, own: OwnService) -> None:
        self._own = own
        self._stack = ExitStack()
        self._url = ""
        # Of nobody but this run.
        self._token = secrets.token_urlsafe(32)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, judge: str) -> None:
        """Serve a model folder."""
        serving = self._own.serving.model_copy(update={"tokens": Tokens.of(operator=self._token)})
        own = self._own.model_copy(update={"model": judge, "serving": serving})
        self._url = self._stack.enter_context(policy_pipeline.served(own))

    def exchange(self, judge: str) -> str:
        """Take another model into service while it runs; why not, where it is refused, and the old one stays.

        Raises StageError where the service does not answer.
        """
        import httpx

        try:
            reply = httpx.post(
                f"{self._url}/v1/model",
                json={"model": judge},
                headers={"Authorization": f"Bearer {self._token}"},
                timeout=_EXCHANGE_S,
                trust_env=False,
            )
        except httpx.TransportError as error:
            raise StageError(f"the judge's service at {self._url} does not answer: {error}") from error
        return "" if reply.status_code == 200 else f"{reply.status_code}: {reply.text[:500]}"


def _with(reward: RunConfig, judge: str, policy: str) -> RunConfig:
    """The reward model's run with the turn's judge to begin with, and the turn's policy among those who answer.

    The first generator of `responses` is the policy; others, if there are any, stay as they are.
    """
    first, *others = reward.responses.generators
    answering = first.model_copy(update={"engine": first.engine.model_copy(update={"model": policy})})
    responses = reward.responses.model_copy(update={"generators": (answering, *others)})
    return reward.model_copy(update={"base": judge, "responses": responses})


def _figures(evaluation: dict[str, Any]) -> dict[str, Any]:
    """An evaluation without its single outcomes."""
    return {name: value for name, value in evaluation.items() if name != "outcomes"}
