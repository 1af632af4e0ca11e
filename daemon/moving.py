"""One file from one path to another: whole or not at all, never over another file, across file systems too.

Three ways to move without overwriting, tried in turn, because not every file system knows the first:

1. renameat2 with RENAME_NOREPLACE: one step (EINVAL on bindfs, exFAT, NFS)
2. link, then unlink the source: the file is never missing (EPERM on exFAT)
3. an empty placeholder created with O_EXCL, then rename over it: the name is reserved by us first

Across devices the bytes are copied to a hidden file beside the destination, synced, compared by hash, published with
one of the three, and only then is the source removed.

Nothing here is recorded: the ledger's intent, written before, says what a crash in between left (daemon.recovery).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import os
import shutil
from pathlib import Path

from daemon.intake import Identity
from pawsort import errors
from pawsort.bundle import sync_directory

COPY_CHUNK = 1 << 20  # bytes

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1  # linux/fs.h
_libc = ctypes.CDLL(None, use_errno=True)

_NO_NOREPLACE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class NameTakenError(Exception):
    """Something is at the destination already."""


class SourceChangedError(Exception):
    """The file at the source is gone, or is not the one that was decoded."""


class UncertainError(errors.PawsortError):
    """A sync failed, or a file cannot be looked at after it was moved: nobody can say what is on the disk.

    The kernel may have dropped the data of a failed fsync, so that trying again proves nothing. The only way on is to
    stop and let the recovery of the next start find out.
    """


def move(source: Path, destination: Path, identity: Identity, *, part: Path, sha256: str | None) -> set[Path]:
    """Move the file `identity` from `source` to `destination` and return the folders that have yet to be synced.

    `part` is the hidden file to copy through when the two lie on different file systems; `sha256`, where known, is
    what the copy must hash to.

    Raises NameTakenError, SourceChangedError, or OSError for a fault of the machine: after any of these the source is
    where it was. Raises UncertainError when that cannot be said.
    """
    check_unchanged(source, identity)
    try:
        rename_exclusively(source, destination)
    except OSError as error:
        if error.errno == errno.ENOENT and not os.path.lexists(source):
            raise SourceChangedError(source) from error
        if error.errno != errno.EXDEV:
            raise
        return _copy_across(source, destination, identity, part=part, sha256=sha256)
    try:
        status = os.lstat(destination)
    except FileNotFoundError:
        # Its owner took it away already; it was filed all the same.
        return {source.parent, destination.parent}
    except OSError as error:
        message = f"{destination}: cannot be looked at after the move ({error.strerror})"
        raise UncertainError(message) from error
    if not _is_same_file(status, identity):
        # Replaced between the check and the rename: what was moved is another photo, which nobody has decided about.
        _take_back(destination, source)
        raise SourceChangedError(source)
    return {source.parent, destination.parent}


def _take_back(destination: Path, source: Path) -> None:
    """Put a file that was moved by mistake back where it came from, beside whatever has taken its name meanwhile."""
    for name in itertools.chain(
        (source.name,), (f"{source.stem}-{n}{source.suffix}" for n in itertools.count(1))
    ):
        try:
            rename_exclusively(destination, source.with_name(name))
        except NameTakenError:
            continue
        return


def check_unchanged(source: Path, identity: Identity) -> None:
    """Raise SourceChangedError unless the file at `source` still is `identity`."""
    try:
        status = os.lstat(source)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceChangedError(source) from error
    if Identity.of(status) != identity:
        raise SourceChangedError(source)


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def rename_noreplace(source: Path, destination: Path) -> None:
    """renameat2 with RENAME_NOREPLACE. Raises OSError."""
    result = _libc.renameat2(
        _AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(destination), ctypes.c_uint(_RENAME_NOREPLACE)
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(source), None, os.fspath(destination))


def rename_exclusively(source: Path, destination: Path) -> None:
    """The ladder: give the file its new name on the same file system. Raises NameTakenError, or OSError."""
    try:
        try:
            rename_noreplace(source, destination)
        except OSError as error:
            if error.errno not in _NO_NOREPLACE:
                raise
            _link_and_unlink(source, destination)
    except FileExistsError as error:
        raise NameTakenError(destination) from error


def _link_and_unlink(source: Path, destination: Path) -> None:
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_over_placeholder(source, destination)
    else:
        _unlink_moved(source, destination)


def _rename_over_placeholder(source: Path, destination: Path) -> None:
    os.close(os.open(destination, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    try:
        os.rename(source, destination)
    except OSError:
        os.unlink(destination)
        raise


def _copy_across(
    source: Path, destination: Path, identity: Identity, *, part: Path, sha256: str | None
) -> set[Path]:
    if os.path.lexists(destination):
        # Only to spare the copying: the publication below is what decides.
        raise NameTakenError(destination)
    part.unlink(missing_ok=True)
    try:
        copied = _copy(source, part, identity)
        if sha256 is not None and copied != sha256:
            raise SourceChangedError(source)
        if hash_file(part) != copied:
            raise OSError(errno.EIO, "the copy does not read back as it was written", os.fspath(part))
        check_unchanged(source, identity)
        rename_exclusively(part, destination)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    # The copy has to be durable under its name before the only other copy goes.
    try:
        sync_directory(destination.parent)
    except OSError:
        os.unlink(destination)
        raise
    _unlink_moved(source, destination)
    return {source.parent}


def _unlink_moved(source: Path, destination: Path) -> None:
    """Remove the source of a photo that is whole at its destination, or take the destination back."""
    try:
        os.unlink(source)
    except FileNotFoundError:
        return
    except OSError:
        os.unlink(destination)
        raise


def _copy(source: Path, part: Path, identity: Identity) -> str:
    """Copy bytes, times and permissions, synced. Returns the SHA-256 of the bytes that were read."""
    digest = hashlib.sha256()
    with open(source, "rb", opener=_open_plain) as reader, part.open("xb") as writer:
        if Identity.of(os.fstat(reader.fileno())) != identity:
            raise SourceChangedError(source)
        while chunk := reader.read(COPY_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        shutil.copystat(source, part)
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _open_plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _is_same_file(status: os.stat_result, identity: Identity) -> bool:
    """By inode; where a file system makes inode numbers up anew for each path (some of FUSE do), by size and time."""
    found = Identity.of(status)
    if found.inode == identity.inode:
        return True
    return (found.bytes, found.mtime_ns) == (identity.bytes, identity.mtime_ns)
