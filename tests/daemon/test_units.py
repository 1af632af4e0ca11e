import re
import shutil
import subprocess
from pathlib import Path

import pytest

from daemon import installation, units
from pawsort import config, errors

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="there is no systemd-analyze (systemd)")


def layout(tmp_path, flavour="system", program="/opt/pawsort/bin/pawsort", **values):
    file = tmp_path / "config.yaml"
    photos = {name: f"/srv/pawsort/{name}" for name in ("inbox", "sorted", "review", "rejected")}
    values = {**photos, "state": "/var/lib/pawsort", "models": "/var/lib/pawsort/models", **values}
    file.write_text("\n".join(f'{key}: "{value}"' for key, value in values.items()))
    return units.Layout(
        flavour=flavour,
        program=Path(program),
        prefix=Path("/opt/pawsort"),
        config=Path("/etc/pawsort/config.yaml"),
        settings=config.load(file),
    )


def settings_of(text):
    """The lines of a unit that say something: key -> values."""
    found = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def written(tmp_path):
    """All units of a flavour in a folder, with programs that exist."""

    def write(flavour):
        folder = tmp_path / flavour
        folder.mkdir()
        for name in ("pawsort", "pawsort-train"):
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
        filled = layout(tmp_path, flavour, program=str(folder / "pawsort"))
        for name in units.names(retrain=True):
            (folder / name).write_text(units.render(name, filled))
        return folder

    return write


@needs_systemd
@pytest.mark.parametrize("flavour", ["system", "user"])
def test_systemd_finds_nothing_to_complain_about(written, flavour):
    folder = written(flavour)
    # It exits 0 on keys that it does not know: only silence is praise.
    command = [ANALYZE, f"--{flavour}", "--man=no", "verify", *map(str, sorted(folder.glob("pawsort*.*")))]
    answer = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)},
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""


@needs_systemd
@pytest.mark.parametrize("name", ["pawsort.service", "pawsort-retrain.service"])
def test_the_system_s_services_are_exposed_by_1_5_at_most(written, name):
    command = [ANALYZE, "security", "--offline=true", "--no-pager", str(written("system") / name)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    score = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said)[1])
    print(name, score)
    assert score <= 1.5


@pytest.mark.parametrize("flavour", ["system", "user"])
@pytest.mark.parametrize("name", units.names(retrain=True))
def test_a_unit_has_no_word_left_to_fill_in_and_nothing_of_the_other_flavour(tmp_path, flavour, name):
    text = units.render(name, layout(tmp_path, flavour))
    assert not re.search(r"@[A-Z_]+@|^(system|user):", text, flags=re.MULTILINE)
    assert ("User=" in text) == (flavour == "system" and name.endswith(".service"))


def test_photos_are_renamed_because_one_mount_holds_all_their_folders(tmp_path):
    """Each path of ReadWritePaths= is a mount of its own, and nothing is renamed from one to another."""
    filled = layout(tmp_path)
    assert settings_of(units.render("pawsort.service", filled))["ReadWritePaths"] == [
        "/srv/pawsort /var/lib/pawsort"
    ]
    assert units.moves_stay_renames(filled.settings)


@pytest.mark.parametrize("top", ["", "/srv", "/home", "/home/somebody"])
def test_no_sandbox_is_opened_for_half_of_the_machine(tmp_path, top):
    photos = {name: f"{top}/{name}" for name in ("inbox", "sorted", "review", "rejected")}
    filled = layout(tmp_path, **photos)
    opened = settings_of(units.render("pawsort.service", filled))["ReadWritePaths"][0].split()
    assert (top or "/") not in opened
    assert not units.moves_stay_renames(filled.settings)


def test_without_figures_to_serve_there_is_no_network(tmp_path):
    found = settings_of(units.render("pawsort.service", layout(tmp_path)))
    assert found["PrivateNetwork"] == ["yes"]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"]


@pytest.mark.parametrize(
    ("address", "fenced"),
    [("127.0.0.1:9105", True), ("[::1]:9105", True), ("localhost:9105", True), ("0.0.0.0:9105", False)],
)
def test_figures_for_this_machine_are_served_to_this_machine(tmp_path, address, fenced):
    found = settings_of(units.render("pawsort.service", layout(tmp_path, metrics=address)))
    assert "PrivateNetwork" not in found
    assert ("IPAddressDeny" in found) == fenced


def test_home_folders_are_out_of_sight_unless_something_lies_there(tmp_path):
    assert settings_of(units.render("pawsort.service", layout(tmp_path)))["ProtectHome"] == ["yes"]
    filled = layout(tmp_path, inbox="/home/somebody/photos/inbox")
    assert settings_of(units.render("pawsort.service", filled))["ProtectHome"] == ["read-only"]


def test_a_folder_that_the_service_could_not_see_is_refused_with_the_reason(tmp_path):
    with pytest.raises(errors.ConfigError, match="/tmp of its own"):
        units.render("pawsort.service", layout(tmp_path, inbox="/tmp/inbox"))


def test_a_path_with_blanks_and_signs_arrives_as_it_is(tmp_path):
    filled = layout(tmp_path, program="/opt/my paws/100% $HOME/pawsort")
    found = settings_of(units.render("pawsort.service", filled))
    assert found["ExecStart"][0].startswith('"/opt/my paws/100%% $$HOME/pawsort" run --config ')


def test_the_first_settings_are_the_commented_ones_with_the_service_s_folders(tmp_path):
    usual = installation.places("system")
    text = installation._first_settings(usual)
    (tmp_path / "config.yaml").write_text(text)
    settings = config.load(tmp_path / "config.yaml")
    assert (settings.inbox, settings.rejected) == (usual.photos / "inbox", usual.photos / "rejected")
    assert (settings.state, settings.models) == (usual.state, usual.models)
    assert "# The confidence, from 0 to 1" in text
