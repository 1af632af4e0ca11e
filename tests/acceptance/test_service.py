"""pawsort as a service, under a real systemd: installed, watched, restarted, fenced in, and taken away again."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest

import drawn
import machine as machines
from harness import PHOTO_EVENTS, wait_until

pytestmark = pytest.mark.slow

PHOTOS = "/srv/pawsort"
PAWSORT = "/opt/pawsort/bin/pawsort"
CONFIG = "/etc/pawsort/config.yaml"


@pytest.fixture(scope="module")
def machine(root, tiny_model, tmp_path_factory):
    """A machine on which pawsort was just made a service, with the tiny model."""
    dist = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", dist, root]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    place = tmp_path_factory.mktemp("machine")
    try:
        with machines.booted(place, wheel) as machine:
            machine.run("useradd", "--create-home", "alice")
            models = machine.at("/var/lib/pawsort/models")
            shutil.copytree(tiny_model.parent, models, symlinks=True)
            # As if from an earlier installation.
            machine.run("useradd", "--system", "--home-dir", "/var/lib/pawsort", "pawsort")
            machine.run("chown", "--recursive", "pawsort:pawsort", "/var/lib/pawsort")
            # Limits that a test can wait for, and a refresh that does not wait for a machine with nothing to do.
            for unit, text in (
                ("pawsort", "RestartSec=100ms"),
                ("pawsort-retrain", "CPUSchedulingPolicy=other\nNice=0"),
            ):
                drop_in = machine.at(f"/etc/systemd/system/{unit}.service.d/test.conf")
                drop_in.parent.mkdir()
                drop_in.write_text(f"[Service]\n{text}\n")
            machine.told = machine.run(PAWSORT, "service", "install", "--retrain")
            machine.run("usermod", "--append", "--groups", "pawsort", "alice")
            yield machine
    except machines.UnavailableError as error:
        pytest.skip(f"no machine with a systemd of its own can be had here: {error}")


@pytest.fixture(autouse=True)
def running(machine):
    """Each test begins with a service that runs and that systemd has nothing against."""
    machine.run("systemctl", "reset-failed", "pawsort")
    machine.run("systemctl", "start", "pawsort")
    assert machine.property("SubState") == "running"


def photos_of(machine, names):
    """Photos that somebody has, outside of the inbox: name -> bytes."""
    folder = machine.at("/var/photos")
    folder.mkdir(exist_ok=True)
    return {
        name: drawn.write(folder / name, drawn.draw("circles", seed)).read_bytes()
        for seed, name in enumerate(names)
    }


def drop(machine, *names):
    """Have Alice copy photos into the inbox, with a umask that lets nobody else read them. Gives name -> bytes."""
    photos = photos_of(machine, names)
    machine.run("sh", "-c", f"umask 077; cd /var/photos; cp {' '.join(names)} {PHOTOS}/inbox/", user="alice")
    return photos


def filed(machine, name):
    """The photo, once it is in its place."""
    return wait_until(
        lambda: [p for p in machine.at(PHOTOS).rglob(name) if p.parent.name != "inbox"], f"{name} filed"
    )[0]


def lines(machine, unit="pawsort"):
    """Our own lines in the journal."""
    found = []
    for line in machine.journal(unit).splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def pid(machine):
    return int(machine.property("MainPID"))


def test_installing_tells_how_to_look_and_how_to_remove(machine):
    assert "systemctl status pawsort" in machine.told
    assert "pawsort service remove" in machine.told
    assert f"wrote {CONFIG}" in machine.told


def test_installing_again_changes_nothing_and_says_so(machine):
    again = machine.run(PAWSORT, "service", "install", "--retrain")
    assert "wrote" not in again
    assert "made" not in again


def test_it_is_ready_and_says_how_it_is(machine):
    assert machine.property("ActiveState") == "active"
    assert machine.property("StatusText").startswith("model shapes-1")
    status = machine.run(PAWSORT, "status", "--config", CONFIG, "--json", user="pawsort")
    assert json.loads(status)["ready"] is True


def test_a_photo_that_another_user_drops_is_moved_and_stays_theirs(machine):
    photo = drop(machine, "hers.jpg")["hers.jpg"]
    path = filed(machine, "hers.jpg")
    assert path.read_bytes() == photo
    status = path.stat()
    alice = int(machine.run("id", "-u", "alice"))
    assert status.st_uid == alice, "renamed, not copied"
    line = next(line for line in lines(machine) if line.get("file") == "hers.jpg")
    assert line["destination"] == f"{PHOTOS}/{path.relative_to(machine.at(PHOTOS))}"
    # She may put it right herself.
    machine.run("mv", line["destination"], f"{PHOTOS}/review/", user="alice")


def test_whether_somebody_still_writes_is_known_of_other_people_s_photos_too(machine):
    script = f"exec 3> {PHOTOS}/inbox/slow.jpg; cat /var/photos/slow.jpg >&3; sleep 60"
    photos_of(machine, ["slow.jpg"])
    machine.run("systemd-run", "--quiet", "--unit=writer", "--uid=alice", "sh", "-c", script)

    def waiting():
        status = machine.run(PAWSORT, "status", "--config", CONFIG, "--json", user="pawsort")
        return json.loads(status)["waiting"].get("a writer has it open")

    wait_until(waiting, "the writer noticed")
    machine.run("systemctl", "stop", "writer")
    filed(machine, "slow.jpg")


def test_only_its_group_may_look_at_the_photos(machine):
    machine.run("useradd", "bob")
    assert "Permission denied" in machine.run("ls", f"{PHOTOS}/inbox", check=False, user="bob")
    assert stat.S_IMODE(machine.at("/var/lib/pawsort").stat().st_mode) & 0o007 in {0, 5}


def test_the_journal_knows_how_grave_a_line_is(machine):
    drop(machine, "info.jpg")
    filed(machine, "info.jpg")
    text = machine.run(
        "journalctl", "--unit=pawsort", "--output=json", "--output-fields=PRIORITY,MESSAGE", "--no-pager"
    )
    priorities = {}
    for line in map(json.loads, text.splitlines()):
        if str(line["MESSAGE"]).startswith("{"):
            priorities.setdefault(json.loads(line["MESSAGE"])["level"], set()).add(line["PRIORITY"])
    assert priorities["info"] == {"6"}
    machine.at(PHOTOS).joinpath("inbox").rename(machine.at(PHOTOS) / "away")
    wait_until(lambda: "DEGRADED" in machine.property("StatusText"), "degraded")
    (machine.at(PHOTOS) / "away").rename(machine.at(PHOTOS) / "inbox")
    wait_until(lambda: "DEGRADED" not in machine.property("StatusText"), "recovered")
    grave = machine.journal("pawsort", "--priority=err")
    assert json.loads(grave.splitlines()[-1])["event"] == "degraded"


def test_a_reload_takes_over_what_is_current_without_a_restart(machine):
    before = pid(machine)
    machine.run("systemctl", "reload", "pawsort")
    wait_until(lambda: machine.property("ActiveState") == "active", "active again")
    wait_until(lambda: any(line["event"] == "reloaded" for line in lines(machine)), "the reload told")
    assert pid(machine) == before


def test_a_daemon_that_is_stuck_is_restarted(machine):
    impatient = machine.at("/etc/systemd/system/pawsort.service.d/watchdog.conf")
    impatient.write_text("[Service]\nWatchdogSec=3\n")
    try:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "pawsort")
        restarts = int(machine.property("NRestarts"))
        machine.run("kill", "-STOP", str(pid(machine)))
        wait_until(lambda: int(machine.property("NRestarts")) > restarts, "restarted by the watchdog")
        wait_until(lambda: machine.property("SubState") == "running", "running again")
        assert "watchdog" in machine.journal().lower()
        drop(machine, "after-watchdog.jpg")
        filed(machine, "after-watchdog.jpg")
    finally:
        impatient.unlink()
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "pawsort")


def test_kill_9_in_the_middle_loses_nothing(machine):
    names = [f"kill-{number}.jpg" for number in range(40)]
    photos = drop(machine, *names)
    machine.run("kill", "-KILL", str(pid(machine)))
    for name in names:
        assert filed(machine, name).read_bytes() == photos[name]
    assert not [p for p in machine.at(PHOTOS).joinpath("inbox").iterdir() if p.name in names]
    rows = [line for line in lines(machine) if line["event"] in PHOTO_EVENTS and line["file"] in names]
    shown = machine.run(PAWSORT, "show", names[-1], "--config", CONFIG, "--json", user="pawsort")
    assert len(json.loads(shown)) == 1
    assert len(rows) <= len(names)


def test_stopped_under_load_it_ends_in_time_and_in_order(machine):
    names = [f"load-{number}.jpg" for number in range(60)]
    photos = drop(machine, *names)
    begun = time.monotonic()
    machine.run("systemctl", "stop", "pawsort")
    assert time.monotonic() - begun < 15
    assert machine.property("Result") == "success"
    assert lines(machine)[-1]["event"] == "stopped"
    machine.run("systemctl", "start", "pawsort")
    for name in names:
        assert filed(machine, name).read_bytes() == photos[name]


def test_broken_settings_fail_at_once_with_the_reason_and_are_not_tried_again(machine):
    settings = machine.at(CONFIG)
    text = settings.read_text()
    settings.write_text(text + "\nthresold: 2\n")
    try:
        machine.run("systemctl", "stop", "pawsort")
        restarts = machine.property("NRestarts")
        assert "failed" in machine.run("systemctl", "start", "pawsort", check=False)
        assert machine.property("ActiveState") == "failed"
        assert machine.property("ExecMainStatus") == "2"
        assert machine.property("NRestarts") in {restarts, "0"}
        assert "thresold" in machine.journal("pawsort", "--lines=20")
    finally:
        settings.write_text(text)


def test_what_does_not_come_up_is_not_tried_for_ever(machine):
    drop_in = machine.at("/etc/systemd/system/pawsort.service.d/broken.conf")
    drop_in.write_text("[Service]\nExecStart=\nExecStart=/bin/false\n")
    try:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "stop", "pawsort")
        machine.run("systemctl", "reset-failed", "pawsort")
        machine.run("systemctl", "start", "--no-block", "pawsort")
        wait_until(lambda: "Start request repeated too quickly" in machine.journal(), "given up")
        assert machine.property("ActiveState") == "failed"
    finally:
        drop_in.unlink()
        machine.run("systemctl", "daemon-reload")


def test_the_sandbox_lets_it_write_nowhere_else_and_talk_to_nobody(machine):
    """Tried from inside: as a process that joins the service's own namespaces, with its own account."""
    inside = [
        "nsenter",
        f"--target={pid(machine)}",
        "--mount",
        "--net",
        "env",
        "--chdir=/",
        "runuser",
        "--user",
        "pawsort",
        "--",
    ]

    def try_(command):
        return machine.run(*inside, "sh", "-c", command, check=False)

    assert try_(f"touch {PHOTOS}/review/x && rm {PHOTOS}/review/x && echo fine") == "fine\n"
    for place in ("/etc", "/usr", "/opt/pawsort", "/var/log", "/srv"):
        assert "Read-only file system" in try_(f"touch {place}/x"), place
    assert "Permission denied" in try_("ls /home")
    assert [line.split(":")[0].strip() for line in try_("cat /proc/net/dev").splitlines()[2:]] == ["lo"]
    status = machine.run("cat", f"/proc/{pid(machine)}/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"
    assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 1 << 28, "CAP_LEASE alone"


def test_the_timer_is_set_and_its_refresh_runs_fenced_in(machine):
    assert machine.property("ActiveState", "pawsort-retrain.timer") == "active"
    assert machine.property("NextElapseUSecRealtime", "pawsort-retrain.timer")
    machine.run("systemctl", "start", "pawsort-retrain")
    assert machine.property("Result", "pawsort-retrain") == "success"
    assert "nothing to learn from" in machine.journal("pawsort-retrain")


def test_a_refresh_learns_from_people_and_the_daemon_takes_its_model_over_without_a_restart(machine):
    settings = machine.at(CONFIG)
    settings.write_text(
        settings.read_text().replace("\ntrainer:\n", "\ntrainer:\n  epochs: 1\n  nice: false\n")
    )
    drawn.write_classes(machine.at("/var/shapes"), 24, seed=7)
    machine.run(
        "cp",
        "--recursive",
        *(f"/var/shapes/{label}" for label in drawn.LABELS),
        f"{PHOTOS}/sorted/",
        user="alice",
    )
    before = pid(machine)
    machine.run("systemctl", "start", "pawsort-retrain", timeout=300)
    assert machine.property("Result", "pawsort-retrain") == "success", machine.journal("pawsort-retrain")
    current = machine.at("/var/lib/pawsort/models/current").readlink().name
    assert current != "shapes-1", machine.journal("pawsort-retrain")
    wait_until(lambda: machine.property("StatusText").startswith(f"model {current}"), "the new model serves")
    assert pid(machine) == before


def test_a_service_of_one_s_own_takes_no_root_and_sorts_in_the_home_folder(machine):
    machine.run("useradd", "--create-home", "carol")
    number = machine.run("id", "-u", "carol").strip()
    # As when she logs in.
    machine.run("systemctl", "start", "dbus", "systemd-logind", f"user@{number}")

    def hers(*command):
        return machine.run(
            "env", "HOME=/home/carol", f"XDG_RUNTIME_DIR=/run/user/{number}", *command, user="carol"
        )

    told = hers(PAWSORT, "service", "install", "--user", "--program", PAWSORT)
    assert "enable-linger" in told
    assert hers("systemctl", "--user", "is-active", "pawsort").strip() == "active"
    photos = machine.at("/home/carol/pawsort")
    photos_of(machine, ["carols.jpg"])
    hers("cp", "/var/photos/carols.jpg", "/home/carol/pawsort/inbox/")
    wait_until(lambda: [p for p in photos.rglob("carols.jpg") if p.parent.name != "inbox"], "her photo filed")
    hers(PAWSORT, "service", "remove", "--user")
    assert not machine.at("/home/carol/.config/systemd/user/pawsort.service").exists()
    assert list(photos.rglob("carols.jpg"))


def test_removing_leaves_photos_ledger_models_and_settings(machine):
    drop(machine, "last.jpg")
    photo = filed(machine, "last.jpg")
    told = machine.run(PAWSORT, "service", "remove")
    assert "are where they were" in told
    for path in (
        "/opt/pawsort",
        "/etc/systemd/system/pawsort.service",
        "/etc/systemd/system/pawsort-retrain.timer",
    ):
        assert not machine.at(path).exists()
    assert (
        machine.run("systemctl", "show", "--value", "--property=LoadState", "pawsort").strip() == "not-found"
    )
    assert photo.is_file()
    assert os.path.isfile(machine.at("/var/lib/pawsort/ledger.sqlite3"))
    assert machine.at("/var/lib/pawsort/models/current").is_symlink()
    assert machine.at(CONFIG).is_file()
