"""Co-training: reward model and policy improve each other over several iterations.

In an iteration the current policy answers the pool, the GenRM is trained on critiques of these answers checked by the
experts, it replaces the served judge, and the policy is trained with its rewards. The next iteration starts from both.
Co-training is resumable because its parts are.

    <run>/config.yaml              the resolved configuration
    <run>/iteration-<t>/reward     see pipeline.py
    <run>/iteration-<t>/policy     see policy_pipeline.py
    <run>/summary.json             the result of each iteration
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vlgenrm_ray import pipeline, policy_pipeline, recipe
from vlgenrm_ray.config import CoTrainingConfig, ManagedJudgeService, RunConfig
from vlgenrm_ray.data import lease
from vlgenrm_ray.data.files import read_json, write_json
from vlgenrm_ray.engines import model_folder
from vlgenrm_ray.errors import ConfigError, StageError
from vlgenrm_ray.serving.auth import ApiTokens

_MODEL_SWAP_TIMEOUT_S = 900.0
"""Longest time for loading another judge and testing it."""
IterationResult = dict[str, Any]
"""`iteration`, `judge` and `policy` (model folders of the iteration), `served_judge` (judge that gave its rewards),
`accuracy` (of `judge`, on held-out pairs), `first` and `best` (the policy's held-out evaluations), `swap_error` (reason
if `judge` did not replace the served judge, else "")."""


def run(
    config: CoTrainingConfig,
    folder: Path,
    *,
    on_iteration: Callable[[IterationResult], None] = lambda result: None,
) -> list[IterationResult]:
    """Run all iterations, or continue where an earlier call stopped.

    Args:
        config: Configuration of the co-training.
        folder: Run folder, on a file system that all nodes share.
        on_iteration: Called with the result of each finished iteration.

    Returns:
        The results of all iterations.

    Raises:
        VlGenRMError: See `errors.py`. Finished work stays on disk, and the same call continues from it.
    """
    folder = folder.absolute()
    if (folder / "turn-1").exists():
        raise ConfigError(
            f"{folder} was made by an older version (it has turn-1 instead of iteration-1); "
            "finish it with that version, or choose another run folder with --run"
        )
    with lease.hold(folder):
        recipe.claim(config, folder)
        return _run_iterations(config, folder, on_iteration)


def _run_iterations(
    config: CoTrainingConfig, folder: Path, on_iteration: Callable[[IterationResult], None]
) -> list[IterationResult]:
    summary_path = folder / "summary.json"
    results: list[IterationResult] = read_json(summary_path)["iterations"] if summary_path.exists() else []
    with ServedJudge(config.judge_service, folder) as served_judge:
        for number in range(len(results) + 1, config.iterations + 1):
            results.append(_run_iteration(config, folder / f"iteration-{number}", results, served_judge))
            write_json(summary_path, {"iterations": results})
            on_iteration(results[-1])
    return results


def _run_iteration(
    config: CoTrainingConfig, folder: Path, results: Sequence[IterationResult], served_judge: "ServedJudge"
) -> IterationResult:
    """Run the iteration that follows `results`, in its own folder."""
    if results:
        policy, judge = results[-1]["policy"], results[-1]["judge"]
    else:
        policy, judge = (
            str(model_folder.locate_for_run(model, folder)) for model in (config.policy.base, config.reward.base)
        )
    reward_summary = pipeline.run(_reward_config(config.reward, judge, policy), folder / "reward")
    judge = str((folder / "reward" / "best").resolve())
    # After an interruption, too, a new judge is served only if it passes the canary.
    served_judge.start(results[-1]["served_judge"] if results else judge)
    swap_error = served_judge.swap(judge) if results else ""
    policy_summary = policy_pipeline.train(
        config.policy.model_copy(update={"base": policy, "judge_service": None}), folder / "policy"
    )
    return {
        "iteration": len(results) + 1,
        "judge": judge,
        "served_judge": results[-1]["served_judge"] if swap_error else judge,
        "policy": str(folder / "policy" / "policy" / "best"),
        "accuracy": max(result["pairwise_accuracy"] for result in reward_summary["rounds"]),
        "first": _without_outcomes(policy_summary["first"]),
        "best": _without_outcomes(policy_summary["best"]),
        "swap_error": swap_error,
    }


class ServedJudge:
    """The judge's service, running from the first iteration to the end of the co-training."""

    def __init__(self, service: ManagedJudgeService, run: Path) -> None:
        """Configure the service without starting it. `run` is the folder of the co-training."""
        self._service = service
        self._run = run
        self._stack = ExitStack()
        self._url = ""
        # Only this run may swap the model.
        self._token = secrets.token_urlsafe(32)

    def __enter__(self) -> "ServedJudge":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, judge: str) -> None:
        """Serve a model folder, unless the service is already running."""
        if self._url:
            return
        service = self._service.model_copy(update={"model": judge})
        tokens = ApiTokens.from_secrets(operator=self._token)
        self._url = self._stack.enter_context(policy_pipeline.served(service, self._run, tokens))

    def swap(self, judge: str) -> str:
        """Replace the served model while the service runs.

        Returns:
            "" on success, otherwise the service's reason; it then keeps the previous model.

        Raises:
            StageError: The service does not answer.
        """
        import httpx

        try:
            reply = httpx.post(
                f"{self._url}/v1/model",
                json={"model": judge},
                headers={"Authorization": f"Bearer {self._token}"},
                timeout=_MODEL_SWAP_TIMEOUT_S,
                trust_env=False,
            )
        except httpx.TransportError as error:
            raise StageError(f"the judge's service at {self._url} does not answer: {error}") from error
        return "" if reply.status_code == 200 else f"{reply.status_code}: {reply.text[:500]}"


def _reward_config(reward: RunConfig, judge: str, policy: str) -> RunConfig:
    """Return the reward run's configuration with `judge` as base and `policy` as the first generator of responses."""
    first, *others = reward.responses.generators
    policy_generator = first.model_copy(update={"engine": first.engine.model_copy(update={"model": policy})})
    responses = reward.responses.model_copy(update={"generators": (policy_generator, *others)})
    return reward.model_copy(update={"base": judge, "responses": responses})


def _without_outcomes(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return an evaluation without the outcomes of single questions."""
    return {name: value for name, value in evaluation.items() if name != "outcomes"}
