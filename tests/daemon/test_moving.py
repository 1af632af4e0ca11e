import errno
import os
import shutil
import subprocess
import sys

import pytest

import faultstage
from daemon import moving
from daemon.intake import Identity

NO_NOREPLACE = OSError(errno.EINVAL, "no RENAME_NOREPLACE here")
NO_LINKS = OSError(errno.EPERM, "no links here")


@pytest.fixture(params=["noreplace", "link", "placeholder"])
def rung(request, monkeypatch):
    """Each way of moving without overwriting, by a file system that lacks the better ones."""

    def lacking(error):
        def call(*_, **__):
            raise error

        return call

    if request.param != "noreplace":
        monkeypatch.setattr(moving, "rename_noreplace", lacking(NO_NOREPLACE))
    if request.param == "placeholder":
        monkeypatch.setattr(os, "link", lacking(NO_LINKS))
    return request.param


@pytest.fixture(params=["same file system", "across file systems"])
def folders(request, tmp_path):
    source, destination = tmp_path / "from", tmp_path / "to"
    if request.param == "across file systems":
        source = request.getfixturevalue("other_disk") / "from"
    source.mkdir()
    destination.mkdir()
    return source, destination


@pytest.fixture
def photo(folders):
    photo = folders[0] / "a.jpg"
    photo.write_bytes(b"photo" * 1000)
    os.utime(photo, ns=(1_000_000_007, 2_000_000_009))
    photo.chmod(0o640)
    return photo


def move(photo, destination, **options):
    identity = options.pop("identity", None) or Identity.of(os.lstat(photo))
    options = {"part": destination.parent / ".part", "sha256": None, **options}
    return moving.move(photo, destination, identity, **options)


def test_a_photo_is_moved_whole_with_its_times_and_permissions(rung, folders, photo):
    destination = folders[1] / "b.jpg"
    to_sync = move(photo, destination, sha256=moving.hash_file(photo))
    assert list(folders[0].iterdir()) == []
    assert list(folders[1].iterdir()) == [destination]
    assert destination.read_bytes() == b"photo" * 1000
    assert destination.stat().st_mtime_ns == 2_000_000_009
    assert destination.stat().st_mode & 0o777 == 0o640
    assert folders[0] in to_sync


@pytest.mark.parametrize("there", ["file", "empty file", "folder", "dangling link", "link to a file"])
def test_nothing_is_ever_overwritten(rung, folders, photo, there):
    destination = folders[1] / "b.jpg"
    {
        "file": lambda: destination.write_bytes(b"theirs"),
        "empty file": lambda: destination.write_bytes(b""),
        "folder": destination.mkdir,
        "dangling link": lambda: destination.symlink_to("nowhere"),
        "link to a file": lambda: destination.symlink_to(photo),
    }[there]()
    before = os.lstat(destination)
    with pytest.raises(moving.NameTakenError):
        move(photo, destination)
    assert photo.read_bytes() == b"photo" * 1000
    assert os.lstat(destination) == before
    assert list(folders[1].iterdir()) == [destination]


def test_a_name_taken_while_the_copy_was_made_is_not_overwritten(rung, tmp_path, other_disk, monkeypatch):
    photo = other_disk / "a.jpg"
    photo.write_bytes(b"photo")
    folder = tmp_path / "to"
    folder.mkdir()
    destination = folder / "b.jpg"
    copy = moving._copy

    def copy_slowly(*arguments):
        copied = copy(*arguments)
        destination.write_bytes(b"theirs")
        return copied

    monkeypatch.setattr(moving, "_copy", copy_slowly)
    with pytest.raises(moving.NameTakenError):
        move(photo, destination)
    assert photo.read_bytes() == b"photo"
    assert destination.read_bytes() == b"theirs"
    assert list(folder.iterdir()) == [destination]


@pytest.mark.parametrize("change", ["written to", "replaced", "touched", "gone", "a link now"])
def test_what_is_not_the_decoded_file_any_more_is_not_moved(folders, photo, change):
    identity = Identity.of(os.lstat(photo))
    if change == "written to":
        photo.write_bytes(b"another")
    elif change == "replaced":
        other = photo.with_name("other")
        shutil.copy2(photo, other)
        other.replace(photo)
    elif change == "touched":
        os.utime(photo)
    else:
        photo.unlink()
        if change == "a link now":
            photo.symlink_to("/etc/passwd")
    with pytest.raises(moving.SourceChangedError):
        move(photo, folders[1] / "b.jpg", identity=identity)
    assert list(folders[1].iterdir()) == []
    assert os.path.lexists(photo) == (change != "gone")


def test_a_photo_replaced_between_the_check_and_the_move_goes_back(tmp_path, monkeypatch):
    photo, destination = tmp_path / "a.jpg", tmp_path / "b.jpg"
    photo.write_bytes(b"decoded")
    identity = Identity.of(os.lstat(photo))
    check = moving.check_unchanged

    def check_and_be_overtaken(source, identity):
        check(source, identity)
        newer = tmp_path / "newer"
        newer.write_bytes(b"never seen")
        newer.replace(source)

    monkeypatch.setattr(moving, "check_unchanged", check_and_be_overtaken)
    with pytest.raises(moving.SourceChangedError):
        move(photo, destination, identity=identity)
    assert photo.read_bytes() == b"never seen"
    assert not destination.exists()


def test_a_copy_that_is_not_the_decoded_bytes_is_not_published(tmp_path, other_disk):
    # Changed in place with its old time: only the hash can tell.
    photo = other_disk / "a.jpg"
    photo.write_bytes(b"altered")
    (tmp_path / "to").mkdir()
    with pytest.raises(moving.SourceChangedError):
        move(photo, tmp_path / "to" / "b.jpg", sha256="0" * 64)
    assert photo.read_bytes() == b"altered"
    assert list((tmp_path / "to").iterdir()) == []


def test_a_stale_copy_in_the_way_is_replaced(tmp_path, other_disk):
    photo = other_disk / "a.jpg"
    photo.write_bytes(b"photo")
    (tmp_path / ".part").write_bytes(b"stale")
    move(photo, tmp_path / "b.jpg")
    assert (tmp_path / "b.jpg").read_bytes() == b"photo"
    assert not (tmp_path / ".part").exists()


@pytest.mark.faults
def test_a_disk_that_fills_up_during_the_copy_leaves_the_photo_where_it_was(tmp_path):
    photo = tmp_path / "a.jpg"
    photo.write_bytes(bytes(3 << 20))
    with faultstage.file_system(tmp_path / "small") as small:
        with pytest.raises(OSError, match="No space left"):
            move(photo, small / "b.jpg")
        assert list(small.iterdir()) == []
    assert photo.stat().st_size == 3 << 20


@pytest.mark.faults
def test_a_source_that_cannot_be_removed_is_not_filed_twice(rung, folders, photo):
    destination = folders[1] / "b.jpg"
    with faultstage.immutable(photo), pytest.raises(PermissionError):
        move(photo, destination)
    assert photo.read_bytes() == b"photo" * 1000
    assert list(folders[1].iterdir()) == []


def test_a_destination_folder_that_is_gone_is_a_fault_and_not_a_vanished_photo(rung, folders, photo):
    with pytest.raises(FileNotFoundError):
        move(photo, folders[1] / "gone" / "b.jpg")
    assert photo.exists()


def test_names_that_are_not_utf_8_are_moved_byte_for_byte(rung, folders):
    photo = folders[0] / os.fsdecode(b"caf\xe9\n.jpg")
    photo.write_bytes(b"photo")
    move(photo, folders[1] / photo.name)
    assert os.listdir(os.fsencode(folders[1])) == [b"caf\xe9\n.jpg"]


def test_the_kernels_own_refusals_lead_down_the_ladder(tmp_path):
    # strace makes the system calls themselves fail, as they do on such file systems.
    if not shutil.which("strace"):
        pytest.skip("making system calls fail needs strace")
    script = (
        "import os, sys; from pathlib import Path; from daemon import moving; from daemon.intake import Identity\n"
        "a, b = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "moving.move(a, b, Identity.of(os.lstat(a)), part=b.with_name('.part'), sha256=None)"
    )
    photo, destination = tmp_path / "a.jpg", tmp_path / "b.jpg"
    photo.write_bytes(b"photo")
    command = ["strace", "-qq", "-e", "trace=renameat2,linkat,link", "-e", "inject=renameat2:error=EINVAL"]
    command += ["-e", "inject=linkat,link:error=EPERM", sys.executable, "-c", script, photo, destination]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr:
        pytest.skip(f"strace cannot trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "EINVAL" in done.stderr
    assert "EPERM" in done.stderr
    assert destination.read_bytes() == b"photo"
    assert not photo.exists()


def test_a_photo_moved_by_mistake_goes_back_beside_whatever_has_taken_its_name(tmp_path, monkeypatch):
    source, destination = tmp_path / "in" / "a.jpg", tmp_path / "out" / "a.jpg"
    source.parent.mkdir()
    destination.parent.mkdir()
    source.write_bytes(b"decided about")
    identity = Identity.of(source.stat())
    rename = moving.rename_noreplace

    def replaced_twice(old, new):
        """Between the check and the rename another photo takes the name, and after it a third one."""
        if old == source:
            (tmp_path / "other").write_bytes(b"another photo")
            (tmp_path / "other").replace(source)
            rename(old, new)
            source.write_bytes(b"a third photo")
        else:
            rename(old, new)

    monkeypatch.setattr(moving, "rename_noreplace", replaced_twice)
    with pytest.raises(moving.SourceChangedError):
        moving.move(source, destination, identity, part=tmp_path / ".part", sha256=None)
    assert not destination.exists()
    assert source.read_bytes() == b"a third photo"
    assert (source.parent / "a-1.jpg").read_bytes() == b"another photo"
