"""What the service counts, for Prometheus."""

from collections.abc import Callable

from vlgenrm_ray.judge.wire import ScoreReply, Status
from vlgenrm_ray.serving.tasks import Outcome

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_MASS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry()
        r = self.registry
        self._items = Counter("vlgenrm_items", "Items answered, by status.", ["status"], registry=r)
        self._hits = Counter("vlgenrm_cache_hits", "Items answered from the cache.", registry=r)
        self._seconds = Histogram("vlgenrm_item_seconds", "From arrival to reply.", buckets=_SECONDS, registry=r)
        self._queued = Histogram("vlgenrm_queued_seconds", "Of it not at the engine.", buckets=_SECONDS, registry=r)
        self._engine = Histogram("vlgenrm_engine_seconds", "Of it at the engine.", buckets=_SECONDS, registry=r)
        self._tokens = Counter("vlgenrm_critique_tokens", "Tokens of finished critiques.", registry=r)
        self._critiques = Counter("vlgenrm_critiques", "Finished critiques.", registry=r)
        self._batch = Histogram("vlgenrm_batch_items", "Items per call.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=r)
        self._mass = Histogram("vlgenrm_verdict_mass", "Mean p(Yes) + p(No) per item.", buckets=_MASS, registry=r)
        self._lost = Counter("vlgenrm_replica_losses", "Calls that were lost with an engine replica.", registry=r)
        self._looks = Counter("vlgenrm_evidence", "Requests for evidence, by status.", ["status"], registry=r)
        self._look = Histogram("vlgenrm_evidence_seconds", "From arrival to reply.", buckets=_SECONDS, registry=r)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Show a number that is read when the metrics are."""
        from prometheus_client import Gauge

        Gauge(name, what, registry=self.registry).set_function(value)

    def replied(self, reply: ScoreReply, seconds: float) -> None:
        """An item has its reply."""
        self._items.labels(reply.status.value).inc()
        self._seconds.observe(seconds)
        if reply.cached:
            self._hits.inc()

    def computed(self, outcome: Outcome, queued_s: float) -> None:
        """An engine has answered a task, which spent `queued_s` not at the engine."""
        self._queued.observe(queued_s)
        self._engine.observe(outcome.engine_s)
        self._tokens.inc(outcome.num_tokens)
        self._critiques.inc(len(outcome.critiques))
        if outcome.critiques:
            self._mass.observe(outcome.verdict_mass)

    def called(self, num_items: int) -> None:
        """A call with so many items went to a replica."""
        self._batch.observe(num_items)

    def lost(self) -> None:
        """A replica died with a call."""
        self._lost.inc()

    def examined(self, status: Status, seconds: float) -> None:
        """A request for evidence has its reply."""
        self._looks.labels(status.value).inc()
        self._look.observe(seconds)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
