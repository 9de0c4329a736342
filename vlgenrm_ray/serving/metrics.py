"""Prometheus metrics of the service (`GET /metrics`)."""

from collections.abc import Callable

from vlgenrm_ray.judge.wire import ScoreReply, Status
from vlgenrm_ray.records import Judgement

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_MASS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


class ServiceMetrics:
    """Counters and histograms of one service, in a registry of their own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self.registry = CollectorRegistry()
        r = self.registry
        self._items = Counter("vlgenrm_items", "Answered items by status.", ["status"], registry=r)
        self._without_image = Counter(
            "vlgenrm_items_without_image", "Items without an image, judged or refused.", ["judged"], registry=r
        )
        self._hits = Counter("vlgenrm_cache_hits", "Items answered from the cache.", registry=r)
        self._substitutes = Counter(
            "vlgenrm_failed_rewards",
            "Samples of gateways that got the operator's substitute instead of no reward.",
            ["gateway", "reason"],
            registry=r,
        )
        self._masked = Counter(
            "vlgenrm_masked_samples",
            "Samples without a reward that a gateway marked so in its protocol's own form.",
            ["gateway", "reason"],
            registry=r,
        )
        self._refusals = Counter(
            "vlgenrm_refusals", "Requests answered with an error.", ["gateway", "route", "reason"], registry=r
        )
        self._seconds = Histogram("vlgenrm_item_seconds", "Arrival to reply, per item.", buckets=_SECONDS, registry=r)
        self._queued = Histogram(
            "vlgenrm_queued_seconds", "Time outside the engine, per computed item.", buckets=_SECONDS, registry=r
        )
        self._engine = Histogram(
            "vlgenrm_engine_seconds", "Time in the engine, per computed item.", buckets=_SECONDS, registry=r
        )
        self._tokens = Counter("vlgenrm_critique_tokens", "Tokens of finished critiques.", registry=r)
        self._critiques = Counter("vlgenrm_critiques", "Finished critiques.", registry=r)
        self._batch = Histogram(
            "vlgenrm_batch_items", "Items per engine call.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=r
        )
        self._mass = Histogram("vlgenrm_verdict_mass", "Mean p(Yes) + p(No) per item.", buckets=_MASS, registry=r)
        self._losses = Counter("vlgenrm_replica_losses", "Calls that were lost with an engine.", registry=r)
        self._chats = Counter("vlgenrm_chats", "Answered conversations by status.", ["status"], registry=r)
        self._chat_seconds = Histogram(
            "vlgenrm_chat_seconds", "Arrival to reply, per conversation.", buckets=_SECONDS, registry=r
        )
        self._chat_tokens = Counter("vlgenrm_chat_tokens", "Tokens of answers to conversations.", registry=r)
        self._evidence = Counter("vlgenrm_evidence", "Evidence requests by status.", ["status"], registry=r)
        self._evidence_seconds = Histogram(
            "vlgenrm_evidence_seconds", "Arrival to reply, per evidence request.", buckets=_SECONDS, registry=r
        )

    def add_gauge(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read at each scrape."""
        from prometheus_client import Gauge

        Gauge(name, description, registry=self.registry).set_function(value)

    def record_reply(self, reply: ScoreReply, seconds: float) -> None:
        """Count the reply to an item."""
        self._items.labels(reply.status.value).inc()
        self._seconds.observe(seconds)
        if reply.cached:
            self._hits.inc()

    def record_without_image(self, *, judged: bool) -> None:
        """Count an item that has no image."""
        self._without_image.labels("yes" if judged else "no").inc()

    def record_substitute(self, gateway: str, status: Status) -> None:
        """Count a sample of a gateway that got a substitute reward."""
        self._substitutes.labels(gateway, status.value).inc()

    def record_masked(self, gateway: str, status: Status) -> None:
        """Count a sample without a reward that the trainer masks."""
        self._masked.labels(gateway, status.value).inc()

    def record_refusal(self, gateway: str, route: str, reason: str) -> None:
        """Count a request that was answered with an error."""
        self._refusals.labels(gateway, route, reason).inc()

    def record_judgement(self, judgement: Judgement, queued_s: float) -> None:
        """Count the judgement of a task that spent `queued_s` outside the engine."""
        self._queued.observe(queued_s)
        self._engine.observe(judgement.engine_s)
        self._tokens.inc(judgement.num_tokens)
        self._critiques.inc(len(judgement.critiques))
        if judgement.critiques:
            self._mass.observe(judgement.verdict_mass)

    def record_call(self, num_items: int) -> None:
        """Count a call of an engine."""
        self._batch.observe(num_items)

    def record_loss(self) -> None:
        """Count a call that was lost with its engine."""
        self._losses.inc()

    def record_chat(self, status: Status, num_tokens: int, seconds: float) -> None:
        """Count the reply to a conversation, and the tokens of its answers."""
        self._chats.labels(status.value).inc()
        self._chat_tokens.inc(num_tokens)
        self._chat_seconds.observe(seconds)

    def record_evidence(self, status: Status, seconds: float) -> None:
        """Count the reply to an evidence request."""
        self._evidence.labels(status.value).inc()
        self._evidence_seconds.observe(seconds)

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
