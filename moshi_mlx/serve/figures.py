"""What Prometheus reads at /metrics: how many are there, how the model keeps up, what our own code takes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MILLISECONDS = tuple(each / 1000 for each in (0.5, 1, 2, 3, 5, 8, 12, 20, 30, 40, 50, 60, 70, 80, 100, 150, 250, 500))


class Figures:
    """A registry of its own, so that two servers can live in one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.slots = Gauge("moshi_slots", "Conversations that fit at once", registry=registry)
        self.people = Gauge("moshi_people", "Conversations now", registry=registry)
        self.waiting = Gauge("moshi_waiting", "People in line", registry=registry)
        self.draining = Gauge("moshi_draining", "1 while the server lets nobody in any more", registry=registry)
        self.started = Counter("moshi_conversations", "Conversations begun", ["protocol"], registry=registry)
        self.ended = Counter("moshi_ended", "Conversations ended", ["reason"], registry=registry)
        self.refused = Counter("moshi_refused", "People not let in", ["reason"], registry=registry)
        self.frames = Counter("moshi_frames", "Frames of 80 ms given out", registry=registry)
        self.lost = Counter("moshi_lost_seconds", "Sound of people left out to catch up", registry=registry)
        self.step = Histogram(
            "moshi_step_seconds", "A step of the whole batch", buckets=MILLISECONDS, registry=registry
        )
        self.late = Histogram("moshi_late_seconds", "How late a tick began", buckets=MILLISECONDS, registry=registry)
        self.hearing = Histogram(
            "moshi_hearing_seconds", "From a message with sound to the model's inbox", buckets=MILLISECONDS,
            registry=registry,
        )  # fmt: skip
        self.speaking = Histogram(
            "moshi_speaking_seconds", "From the model's frame to the socket", buckets=MILLISECONDS, registry=registry
        )

    def text(self) -> bytes:
        """In Prometheus' own format."""
        return generate_latest(self.registry)
