"""Reward model and policy make each other better, turn after turn.

A turn: the present policy answers the pool, the GenRM learns from what the experts say of the answers, is served, and
the policy learns from its rewards. The next turn begins with both. Resumable, as its parts are.

    <run>/config.yaml         the resolved configuration
    <run>/turn-<t>/reward     see pipeline.py
    <run>/turn-<t>/policy     see policy_pipeline.py
    <run>/summary.json        what each turn came to
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vlgenrm_ray import pipeline, policy_pipeline, recipe
from vlgenrm_ray.config import CoTrainingConfig, ManagedJudgeService, RunConfig
from vlgenrm_ray.data.store import read_json, write_json
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.serving.auth import Tokens

_EXCHANGE_S = 900.0
"""Longest that another judge may take to be loaded and tried."""
Turn = dict[str, Any]
"""`turn`, `judge` and `policy` (folders that the turn made), `served` (the judge that gave its rewards), `accuracy` (of
`judge`, on held-out pairs), `first` and `best` (the policy's held-out evaluations), `exchanged` (why `judge` was not
taken into service, if it was not)."""


def run(config: CoTrainingConfig, folder: Path, *, report: Callable[[Turn], None] = lambda done: None) -> list[Turn]:
    """Go round `config.turns` times, or finish that; what each turn came to. Raises the errors of `errors.py`."""
    folder = folder.absolute()
    recipe.claim(config, folder)
    summary = folder / "summary.json"
    turns: list[Turn] = read_json(summary)["turns"] if summary.exists() else []
    with Service(config.service, folder) as service:
        for number in range(len(turns) + 1, config.turns + 1):
            turns.append(_turn(config, folder / f"turn-{number}", turns, service))
            write_json(summary, {"turns": turns})
            report(turns[-1])
    return turns


def _turn(config: CoTrainingConfig, here: Path, turns: Sequence[Turn], service: "Service") -> Turn:
    """The turn that follows those, in its own folder."""
    if turns:
        policy, judge = turns[-1]["policy"], turns[-1]["judge"]
    else:
        policy, judge = str(model_folder.locate(config.policy.base)), str(model_folder.locate(config.reward.base))
    made = pipeline.run(_with(config.reward, judge, policy), here / "reward")
    judge = str((here / "reward" / "best").resolve())
    # After an interruption, too, a judge takes its place only by way of the canary.
    service.start(turns[-1]["served"] if turns else judge)
    exchanged = service.exchange(judge) if turns else ""
    trained = policy_pipeline.train(config.policy.model_copy(update={"base": policy, "service": None}), here / "policy")
    return {
        "turn": len(turns) + 1,
        "judge": judge,
        "served": turns[-1]["served"] if exchanged else judge,
        "policy": str(here / "policy" / "policy" / "best"),
        "accuracy": max(done["pairwise_accuracy"] for done in made["rounds"]),
        "first": _figures(trained["first"]),
        "best": _figures(trained["best"]),
        "exchanged": exchanged,
    }


class Service:
    """The circle's judge, served from its first turn to its end."""

    def __init__(self, own: ManagedJudgeService, run: Path) -> None:
        """`run`: the circle's folder."""
        self._own = own
        self._run = run
        self._stack = ExitStack()
        self._url = ""
        # Of nobody but this run.
        self._token = secrets.token_urlsafe(32)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, judge: str) -> None:
        """Serve a model folder, unless one is served already."""
        if self._url:
            return
        serving = self._own.serving.model_copy(update={"tokens": Tokens.of(operator=self._token)})
        own = self._own.model_copy(update={"model": judge, "serving": serving})
        self._url = self._stack.enter_context(policy_pipeline.served(own, self._run))

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
