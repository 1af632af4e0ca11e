"""Figures for Prometheus at /metrics, and /healthz for whoever restarts what is ill. Served only when asked for.

The loop counts; the server's threads only read. Health is judged by the loop's own turns: when they stop coming, the
answer is 503, whatever else still works.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

import orjson
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    generate_latest,
)

from daemon.filing import Filed
from daemon.status import Snapshot
from pawsort import __version__

SILENT_AFTER = 15.0  # seconds without a turn of the loop after which the daemon counts as stuck
STAGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # seconds


class Metrics:
    """Counts what happens, and serves it at `address`, "host:port"; use it as a context manager.

    Raises OSError when the address cannot be had.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._registry = CollectorRegistry()
        self._photos = Counter(
            "pawsort_photos",
            "Photos filed, by outcome and class.",
            ["event", "label"],
            registry=self._registry,
        )
        self._rejected = Counter(
            "pawsort_rejected", "Files rejected, by reason.", ["reason"], registry=self._registry
        )
        self._seconds = Histogram(
            "pawsort_stage_seconds",
            "Time a photo takes: decode, infer, and total from the finished file to the filed one.",
            ["stage"],
            buckets=STAGES,
            registry=self._registry,
        )
        self._waiting = Gauge(
            "pawsort_waiting", "Files that wait, by reason.", ["why"], registry=self._registry
        )
        self._in_flight = Gauge(
            "pawsort_in_flight", "Photos between intake and place.", registry=self._registry
        )
        self._recovered = Gauge(
            "pawsort_recovered_by_rescan", "Photos that only a rescan found.", registry=self._registry
        )
        self._degraded = Gauge(
            "pawsort_degraded", "1 while this problem lasts.", ["problem"], registry=self._registry
        )
        self._turned = Gauge(
            "pawsort_last_turn_timestamp_seconds", "When the loop last turned.", registry=self._registry
        )
        self._model = Info("pawsort_model", "The model that serves.", registry=self._registry)
        Info("pawsort_build", "This program.", registry=self._registry).info({"version": __version__})
        self._problems: Mapping[str, str] = {}
        self._reasons: set[str] = set()  # for which files have waited
        self._last_turn = time.monotonic()
        self._server = ThreadingHTTPServer((host.strip("[]"), int(port)), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """The port that is listened on; of interest when 0 was asked for."""
        return int(self._server.server_address[1])

    def count(self, filed: Sequence[Filed]) -> None:
        """Photos that were filed."""
        for photo in filed:
            verdict = photo.verdict
            self._photos.labels(event=verdict.event, label=verdict.label or "").inc()
            if verdict.event == "rejected":
                self._rejected.labels(reason=(verdict.reason or "").partition(":")[0]).inc()
            self._seconds.labels(stage="total").observe(photo.latency_ms / 1e3)
            if verdict.decode_ms is not None:
                self._seconds.labels(stage="decode").observe(verdict.decode_ms / 1e3)
            if verdict.infer_ms is not None:
                self._seconds.labels(stage="infer").observe(verdict.infer_ms / 1e3)

    def turn(self, snapshot: Snapshot) -> None:
        """How things stand, told by the loop about once a second."""
        self._last_turn = time.monotonic()
        self._turned.set_to_current_time()
        self._model.info({"name": snapshot.model, "engine": snapshot.engine})
        self._in_flight.set(snapshot.in_flight)
        self._recovered.set(snapshot.recovered_by_rescan)
        for why in {*self._reasons, *snapshot.waiting}:
            self._waiting.labels(why=why).set(snapshot.waiting.get(why, 0))
        for problem in {*self._problems, *snapshot.problems}:
            self._degraded.labels(problem=problem).set(problem in snapshot.problems)
        self._reasons |= set(snapshot.waiting)
        self._problems = dict(snapshot.problems)

    def health(self) -> tuple[int, dict[str, object]]:
        """HTTP status and document of /healthz."""
        problems = dict(self._problems)
        silent = time.monotonic() - self._last_turn
        if silent > SILENT_AFTER:
            problems["daemon"] = f"no sign of life for {silent:.0f} s"
        return (503 if problems else 200), {"healthy": not problems, "problems": problems}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        metrics = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(metrics._registry))
                elif self.path == "/healthz":
                    code, document = metrics.health()
                    self._answer(code, "application/json", orjson.dumps(document))
                else:
                    self._answer(404, "text/plain", b"/metrics or /healthz\n")

            def _answer(self, code: int, kind: str, body: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Who asked is nobody's news."""

        return Handler
