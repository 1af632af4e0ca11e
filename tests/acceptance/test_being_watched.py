"""What the service manager and Prometheus are told by the real process."""

import json
import os
import signal
import socket
import urllib.error
import urllib.request

import pytest

import drawn
from harness import wait_until


@pytest.fixture
def manager(tmp_path):
    """A service manager's end of the line, and the environment that leads to it."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(30)
        yield listener, {**os.environ, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"}


def message_with(listener, text):
    while True:
        message = listener.recv(4096).decode()
        if text in message.splitlines() or any(line.startswith(text) for line in message.splitlines()):
            return message


def test_systemd_hears_ready_only_when_the_watch_is_armed_and_then_signs_of_life(sandbox, manager):
    listener, environment = manager
    box = sandbox(threshold=0.0)
    with box.running(env=environment) as daemon:
        assert "STATUS=model shapes-1" in message_with(listener, "READY=1")
        drawn.write(box.inbox / "photo.jpg", drawn.draw("circles", 1))
        daemon.wait_for_photo("photo.jpg")
        for _ in range(3):
            message_with(listener, "WATCHDOG=1")
        assert "last photo.jpg: circles" in message_with(listener, "STATUS=model shapes-1, 1 filed")


def test_systemd_hears_of_a_reload_and_of_the_end(sandbox, manager):
    listener, environment = manager
    with sandbox().running(env=environment) as daemon:
        message_with(listener, "READY=1")
        daemon.process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in message_with(listener, "RELOADING=1")
        message_with(listener, "READY=1")
        daemon.process.terminate()
        message_with(listener, "STOPPING=1")


def test_a_loop_that_is_stuck_gives_no_sign_of_life(sandbox, manager):
    listener, environment = manager
    with sandbox().running(env=environment) as daemon:
        message_with(listener, "WATCHDOG=1")
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            listener.settimeout(0.1)
            with pytest.raises(TimeoutError):
                while True:
                    listener.recv(4096)
            listener.settimeout(2)
            with pytest.raises(TimeoutError):
                listener.recv(4096)
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        listener.settimeout(30)
        message_with(listener, "WATCHDOG=1")


def test_prometheus_finds_counts_latencies_and_the_model(sandbox):
    port = free_port()
    box = sandbox(threshold=0.0, metrics=f"127.0.0.1:{port}")
    with box.running() as daemon:
        drawn.write_folder(box.inbox, "circles", 3)
        (box.inbox / "text.jpg").write_text("no picture")
        for name in (*(f"circles-{number:07d}.jpg" for number in range(3)), "text.jpg"):
            daemon.wait_for_photo(name)
        lines = wait_until(
            lambda: (
                (now := get(port, "/metrics")[1].splitlines())
                and any("pawsort_model_info" in x for x in now)
                and now
            ),
            "the model in the figures",
        )
        assert 'pawsort_photos_total{event="sorted",label="circles"} 3.0' in lines
        assert 'pawsort_rejected_total{reason="not_an_image"} 1.0' in lines
        assert 'pawsort_stage_seconds_count{stage="total"} 4.0' in lines
        assert 'pawsort_stage_seconds_count{stage="decode"} 3.0' in lines
        assert any(line.startswith("pawsort_model_info{") and 'name="shapes-1"' in line for line in lines)
        assert get(port, "/healthz") == (200, '{"healthy":true,"problems":{}}')


def test_healthz_means_it(sandbox, tmp_path):
    port = free_port()
    box = sandbox(metrics=f"127.0.0.1:{port}")
    with box.running() as daemon:
        box.inbox.rename(tmp_path / "elsewhere")
        daemon.wait_for("degraded", problem="inbox")
        code, body = wait_until(lambda: (now := get(port, "/healthz"))[0] == 503 and now, "unhealthy")
        assert code == 503
        assert "inbox" in json.loads(body)["problems"]
        (tmp_path / "elsewhere").rename(box.inbox)
        daemon.wait_for("recovered", problem="inbox")
        wait_until(lambda: get(port, "/healthz")[0] == 200, "healthy again")


def test_nothing_listens_unless_asked(sandbox):
    with sandbox().running() as daemon:
        inodes = set()
        for descriptor in os.listdir(f"/proc/{daemon.process.pid}/fd"):
            target = os.readlink(f"/proc/{daemon.process.pid}/fd/{descriptor}")
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        for table in ("tcp", "tcp6", "udp", "udp6"):
            with open(f"/proc/{daemon.process.pid}/net/{table}") as lines:
                assert not inodes & {line.split()[9] for line in list(lines)[1:]}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
