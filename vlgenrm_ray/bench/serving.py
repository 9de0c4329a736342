"""The served judge's speed, as ratios within one run: to `vllm serve`, to itself without its cache, K = 8 to K = 1.

Servers run one at a time, with one engine of equal settings, on the cores that this process may use; so does the
client. `vllm serve` and the service take turns in the order ours, its, its, ours, and a drift of the machine harms
both alike.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

from pydantic import Field

from vlgenrm_ray.bench import load, servers, soak, work
from vlgenrm_ray.bench.dialects import OpenAi, Scored, Wire
from vlgenrm_ray.bench.figures import middle, percentile
from vlgenrm_ray.bench.work import Piece
from vlgenrm_ray.errors import StageError
from vlgenrm_ray.judge.judge import JudgeConfig
from vlgenrm_ray.judge.remote import RemoteJudge, ScoreInput
from vlgenrm_ray.serving.config import ServingConfig
from vlgenrm_ray.settings import Settings

Part = Literal["vllm", "cache", "critiques", "overhead", "soak"]
PARTS: tuple[Part, ...] = ("vllm", "cache", "critiques", "overhead")
LEVELS = (1, 8, 64)
_MANY = 8
"""K of the part `critiques`."""


class BenchConfig(Settings):
    """How much is measured."""

    parts: tuple[Part, ...] = PARTS
    items: int = Field(default=256, ge=8)
    """Responses scored at each concurrency; a quarter of them at 1."""
    turns: int = Field(default=2, ge=1)
    """Of each server in the part `vllm`."""
    soak_s: float = Field(default=0.0, ge=0.0)


class ServingBench:
    """One run. `run` measures part by part; `results` holds what is there so far."""

    def __init__(
        self,
        bench: BenchConfig,
        serving: ServingConfig,
        arguments: Sequence[str],
        pieces: Sequence[Piece],
        tell: Callable[[str], None],
    ) -> None:
        """`arguments`: of `vlgenrm serve`, such that it serves as `serving` says. `pieces`: see `needed`."""
        self.bench = bench
        self.serving = serving
        self.results: dict[str, Any] = {}
        self._arguments = arguments
        self._pieces = pieces
        self._tell = tell

    def run(self) -> dict[str, Any]:
        """All parts' figures. Raises EngineLostError where a server does not come up."""
        if "vllm" in self.bench.parts:
            self.results["vllm"] = self._against_vllm()
        if {"cache", "critiques", "overhead"} & set(self.bench.parts):
            self._alone()
        if "soak" in self.bench.parts:
            # A small cache is full at once, and stays so.
            with self._service(cache_mib=1.0) as (url, pid):
                pieces = self._pieces[: self.bench.items]
                self._warm(url, Wire(self.serving.judge))
                self._tell(f"soaking for {self.bench.soak_s:g} s")
                self.results["soak"] = soak.soak(
                    url, pid, Wire(self.serving.judge), pieces, seconds=self.bench.soak_s, concurrency=LEVELS[-1]
                )
        return self.results

    # -- against vllm serve --------------------------------------------------------------------------------------

    def _against_vllm(self) -> dict[str, Any]:
        wire, openai = Wire(self.serving.judge), OpenAi(self.serving.judge, self.serving.engine.model)
        ours: list[list[load.Measured]] = []
        theirs: list[list[load.Measured]] = []
        for turn in range(self.bench.turns):
            for first in (turn % 2 == 0, turn % 2 == 1):
                name = "the service" if first else "vllm serve"
                self._tell(f"turn {turn + 1} of {self.bench.turns}: {name}")
                with self._service(cache_mib=0.0) if first else servers.vllm_serve(self.serving.engine) as (url, _):
                    (ours if first else theirs).append(self._levels(url, wire if first else openai))
        levels: dict[str, dict[str, Any]] = {
            str(level): {
                "ours": middle([turn[i].figures() for turn in ours]),
                "vllm": middle([turn[i].figures() for turn in theirs]),
                "ratios": [round(a[i].rate / b[i].rate, 3) for a, b in zip(ours, theirs, strict=True)],
            }
            for i, level in enumerate(LEVELS)
        }
        for found in levels.values():
            found["ratio"] = round(found["ours"]["scores_per_s"] / found["vllm"]["scores_per_s"], 3)
        return {"levels": levels, "rewards": _agreement(_read(wire, ours[0]), _read(openai, theirs[0]), wire.judge)}

    def _levels(self, url: str, dialect: Wire | OpenAi) -> list[load.Measured]:
        self._warm(url, dialect)
        found = []
        for i, level in enumerate(LEVELS):
            # Texts and pictures new to the server at every level, the same for both servers.
            pieces = self._pieces[i * self.bench.items :][: self._count(level)]
            found.append(load.put(url, [dialect.request(piece) for piece in pieces], concurrency=level))
            self._tell(f"  {level:>2} at a time: {found[-1].rate:.2f} scores/s")
        return found

    # -- the service alone ---------------------------------------------------------------------------------------

    def _alone(self) -> None:
        wire, parts = Wire(self.serving.judge), self.bench.parts
        pieces = self._pieces[: self.bench.items]
        stream = [wire.request(piece) for piece in work.half_repeated(pieces, 4 * LEVELS[1])]
        self._tell("the service without its cache")
        with self._service(cache_mib=0.0) as (url, _):
            self._warm(url, wire)
            if "overhead" in parts:
                self.results["overhead"] = self._overhead(url)
            if "critiques" in parts:
                self.results["critiques"] = self._critiques(url)
            without = load.put(url, stream, concurrency=LEVELS[1]) if "cache" in parts else None
        if without is not None:
            self._tell("the service with its cache")
            with self._service(cache_mib=self.serving.limits.cache_mib) as (url, _):
                self._warm(url, wire)
                half = load.put(url, stream, concurrency=LEVELS[1])
                full = load.put(url, stream, concurrency=LEVELS[1])
            self.results["cache"] = {
                "without": without.figures(),
                "half_repeated": half.figures() | {"ratio": round(half.rate / without.rate, 3)},
                "fully_cached": full.figures() | {"ratio": round(full.rate / without.rate, 3)},
            }

    def _overhead(self, url: str) -> dict[str, Any]:
        """The package's own client, one response at a time: of a picture new to the service, and of one it has.

        A trainer asks of each picture as often as its group is large, so the second is what it meets.
        """
        pieces = self._pieces[: self._count(1)]
        with RemoteJudge(url) as judge:
            new = [_beyond(judge, piece, seed=0) for piece in pieces]
            known = [_beyond(judge, piece, seed=1) for piece in pieces]
        return {
            "engine_p50_ms": round(1000 * percentile([engine for _, engine in known], 0.5), 2),
            **{
                f"{name}_{label}_ms": round(1000 * percentile([beyond for beyond, _ in found], share), 2)
                for name, found in (("new", new), ("known", known))
                for label, share in (("p50", 0.5), ("p99", 0.99))
            },
        }

    def _critiques(self, url: str) -> dict[str, Any]:
        """Cost of K = 8 over K = 1, as seconds per score: one at a time, and many."""
        found: dict[str, Any] = {}
        for level in (LEVELS[0], LEVELS[1]):
            pieces = self._pieces[: self._count(level)]
            taken: dict[int, list[load.Measured]] = {}
            # K = 1 first and last, so that a drift of the machine falls on both.
            for number in (1, _MANY, _MANY, 1):
                wire = Wire(self.serving.judge.model_copy(update={"num_critiques": number}))
                requests = [wire.request(piece) for piece in pieces]
                taken.setdefault(number, []).append(load.put(url, requests, concurrency=level))
            one, many = (middle([turn.figures() for turn in taken[number]]) for number in (1, _MANY))
            found[str(level)] = {
                "k1": one,
                f"k{_MANY}": many,
                "latency_ratio": round(many["p50_ms"] / one["p50_ms"], 3),
                "cost_ratio": round(one["scores_per_s"] / many["scores_per_s"], 3),
            }
        return found

    # -- what all do ---------------------------------------------------------------------------------------------

    def _service(self, *, cache_mib: float) -> AbstractContextManager[tuple[str, int]]:
        return servers.service(self._arguments, cache_mib=cache_mib)

    def _warm(self, url: str, dialect: Wire | OpenAi) -> None:
        """With pieces that are not measured: the last ones."""
        requests = [dialect.request(piece) for piece in self._pieces[-min(LEVELS[-1], self.bench.items) :]]
        load.put(url, requests[:8], concurrency=1)
        load.put(url, requests[8:], concurrency=LEVELS[1])

    def _count(self, level: int) -> int:
        return self.bench.items if level > 1 else max(self.bench.items // 4, 8)


def _beyond(judge: RemoteJudge, piece: Piece, *, seed: int) -> tuple[float, float]:
    """Seconds of a round trip beyond the engine's own, and those. Raises StageError where no engine was asked."""
    asked = ScoreInput(image=piece.image, question=piece.question, response=piece.response, seed=seed)
    begin = time.perf_counter()
    (reply,) = judge.score([asked])
    taken, engine = time.perf_counter() - begin, reply.timings.engine_s
    if reply.cached or reply.reward is None:
        raise StageError(f"a response has {reply.status.value}{' from the cache' if reply.cached else ''}")
    return taken - engine, engine


def needed(items: int) -> int:
    """How many pieces a run wants."""
    return len(LEVELS) * items + LEVELS[-1]


def _read(dialect: Wire | OpenAi, levels: Sequence[load.Measured]) -> list[Scored]:
    return [dialect.read(reply) for level in levels for reply in level.replies]


def _agreement(ours: Sequence[Scored], theirs: Sequence[Scored], judge: JudgeConfig) -> dict[str, Any]:
    """Whether both did the same work. Raises StageError where one wrote fewer critiques than asked for."""
    asked = 1 if judge.mode == "direct" else judge.num_critiques
    if fewer := [scored for scored in (*ours, *theirs) if scored.num_critiques != asked]:
        raise StageError(f"{len(fewer)} replies without {asked} critiques: not the same work, nothing to compare")
    both = [
        abs(a.reward - b.reward)
        for a, b in zip(ours, theirs, strict=True)
        if a.reward is not None and b.reward is not None
    ]
    return {
        "num": len(ours),
        "ours_without": sum(scored.reward is None for scored in ours),
        "vllm_without": sum(scored.reward is None for scored in theirs),
        "mean_difference": round(math.fsum(both) / len(both), 4) if both else None,
        "equal_within_0.01": round(sum(d <= 0.01 for d in both) / len(both), 3) if both else None,
    }
