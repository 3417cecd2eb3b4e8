"""What a reward server's `/metrics` shows, in Prometheus' words."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """Each server has its own, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        mine: dict[str, Any] = {"registry": self.registry}
        sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
        self.requests = Counter("reward_requests", "Requests by path and status.", ["path", "status"], **mine)
        self.images = Counter("reward_images", "Images scored.", **mine)
        self.failures = Counter("reward_image_failures", "Images that got no finite score.", **mine)
        self.waiting = Gauge("reward_waiting_images", "Images accepted and not scored yet.", **mine)
        self.batch = Histogram("reward_batch_images", "Images scored together.", buckets=sizes, **mine)
        self.seconds = Histogram("reward_batch_seconds", "Seconds to score a batch.", **mine)

    def scored(self, images: int, seconds: float) -> None:
        """A batch is done."""
        self.images.inc(images)
        self.batch.observe(images)
        self.seconds.observe(seconds)
