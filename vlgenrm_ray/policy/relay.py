"""A learner's transfer of weights straight into the engines, phase by phase: who hangs, who is lost. Pure asyncio.

From `hold` to `settle` no engine samples. A transfer that fails once it has begun ends all its engines: those that live
may wait in it for the one that does not, and nothing calls them back.
"""

from collections.abc import Awaitable, Mapping
from typing import Any

from vlgenrm_ray.engines.weight_sync import Weights
from vlgenrm_ray.engines.weight_transfer import Muster, Phase
from vlgenrm_ray.errors import EngineLostError, TransferBrokenError, WeightSyncError
from vlgenrm_ray.policy.place import Sampler
from vlgenrm_ray.policy.pool import Pool


class Relay:
    """One transfer at a time; another that begins gives up the one before, whose learner must be gone."""

    def __init__(self, pool: Pool, *, timeout_s: float) -> None:
        """`timeout_s`: longest that engines may take to come to rest, and then for each phase."""
        self._pool = pool
        self._timeout_s = timeout_s
        self._held: tuple[Sampler, ...] = ()
        self._muster = Muster(members=(), gpus=())
        self._begun = False
        self._turn = 0

    async def hold(self) -> Muster:
        """Begin a transfer: the engines, which sample nothing from now on.

        Raises WeightSyncError where one does not come to rest, EngineLostError where one does not start,
        TransferBrokenError where one is lost.
        """
        self.let_go("the learner began another transfer")
        self._turn += 1
        turn = self._turn
        held = await self._pool.hold(timeout_s=self._timeout_s)
        if turn != self._turn:
            self._pool.let_go()
            raise TransferBrokenError("another learner began a transfer while this one waited for the engines")
        self._held = held
        members = tuple(sampler.name for sampler in self._held)
        self._muster = Muster(members=members, gpus=((),) * len(members))
        gpus = await self.phase(Phase.MUSTER, {})
        self._muster = Muster(members=members, gpus=tuple(gpus))
        return self._muster

    async def phase(self, phase: Phase, info: Mapping[str, Any]) -> list[Any]:
        """What each engine says to a phase, with vLLM's `info`; a JOIN has each engine's own ranks.

        Raises TransferBrokenError where an engine was lost, WeightSyncError where one hangs or refuses.
        """
        held = self._held
        if not held:
            raise TransferBrokenError(f"{phase}: no transfer is under way")
        self._begun = self._begun or phase is not Phase.MUSTER
        infos = self._muster.infos(info) if phase is Phase.JOIN else [info] * len(held)
        doing = [_named(sampler, phase, one) for sampler, one in zip(held, infos, strict=True)]
        try:
            return await self._pool.together(doing, self._timeout_s, "new weights", f"ended the {phase}")
        except BaseException as error:
            # Unless another transfer has taken its place.
            if held is self._held:
                self.let_go(str(error))
            raise

    async def settle(self, version: int, checksum: str) -> None:
        """End a transfer: the engines check what they have, and sample with it. Raises as `phase` does."""
        await self.phase(Phase.FINISH, {"version": version, "checksum": checksum})
        self._held, self._begun = (), False
        self._pool.settle(Weights(version=version, checksum=checksum, parts=(), kept=False))

    def let_go(self, why: str) -> None:
        """Give a transfer up, if one is under way."""
        if not self._held:
            return
        begun = self._begun
        self._held, self._begun = (), False
        if begun:
            self._pool.abandon(why)
        else:
            self._pool.let_go()


async def _named(sampler: Sampler, phase: Phase, info: Mapping[str, Any]) -> Any:
    """What an engine says, and its name with what it raises."""
    try:
        doing: Awaitable[Any] = sampler.transfer(phase, info)
        return await doing
    except EngineLostError as error:
        raise TransferBrokenError(f"{sampler.name} was lost in the {phase} of new weights: {error}") from error
    except WeightSyncError as error:
        raise WeightSyncError(f"{sampler.name}: {error}") from error
