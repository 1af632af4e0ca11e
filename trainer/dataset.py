"""Folders of photos -> examples, each with a label, an origin and a side of the split.

Every folder of a data set is a class, named by its folder; photos may lie deeper in it. An example is known by the
hash of its content, so renaming or moving a photo changes nothing. Near-duplicates, also those filed under different
classes, stay on one side of the split: a photo that the model has learned from must not be in its own examination.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pawsort import errors
from trainer import likeness
from trainer.cache import PhotoCache

# Shares of the photos: enough to learn from, and for the two others enough to tell 98 % from 99 % at all.
VALIDATION_SHARE = 0.125
TEST_SHARE = 0.125
# One photo to learn from, one to calibrate with, one to be tested on.
LEAST_PHOTOS = 3  # different ones, a class


class Side(StrEnum):
    """What an example is for."""

    TRAIN = "train"
    VALIDATION = "validation"  # to choose temperature and thresholds with
    TEST = "test"  # to measure with, and for nothing else


class Origin(StrEnum):
    """Where a label comes from."""

    PLACED = "placed"  # a person put the photo into the folder; the daemon never saw it
    CORRECTED = "corrected"  # a person moved it from the class that the daemon had chosen
    CONFIRMED = "confirmed"  # a person agreed with the daemon, or decided where it was unsure
    PREDICTED = "predicted"  # the daemon put it there and nobody looked


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file in a class folder, not yet opened."""

    path: Path
    label: str
    origin: Origin = Origin.PLACED
    sha256: str | None = None  # of the content that the label was given to; None: whatever is there


@dataclass(frozen=True, kw_only=True)
class Example:
    """A photo to learn from or to be tested on."""

    path: Path  # one of the files with this content
    label: str
    origin: Origin
    sha256: str
    group: str  # the smallest sha256 among its near-duplicates
    side: Side


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The examples, ordered by content, and what was noticed on the way."""

    labels: tuple[str, ...]
    examples: tuple[Example, ...]
    copies: int  # files left out because another has the same bytes and the same label
    conflicts: tuple[tuple[Path, ...], ...]  # same bytes under different labels: all left out
    near_duplicates: tuple[tuple[Path, ...], ...]  # different bytes, same picture: all kept, on one side

    def on(self, side: Side) -> list[Example]:
        """The examples of one side."""
        return [example for example in self.examples if example.side == side]

    def typical(self, side: Side) -> list[Example]:
        """The examples of one side that nobody chose by what a model said of them, if there are some of each class.

        Corrected photos are those that a model found hard. Confidence that is fitted on them is too low for the
        photos that arrive, and sends half of them to a person.
        """
        placed = [example for example in self.on(side) if example.origin is Origin.PLACED]
        return placed if {example.label for example in placed} == {*self.labels} else self.on(side)

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of examples, by label and side."""
        counts = Counter((example.label, example.side) for example in self.examples)
        return {label: {side.value: counts[label, side] for side in Side} for label in self.labels}

    def sides_of_others(self, previous: Mapping[str, Side]) -> dict[str, list[str]]:
        """Those photos in `previous` that are not here, by their side."""
        here = {example.sha256 for example in self.examples}
        return {
            side.value: sorted(
                digest for digest, met in previous.items() if met is side and digest not in here
            )
            for side in Side
        }

    def fingerprint(self) -> str:
        """A hash of what is learned from: contents, labels, origins and sides, whatever the files are called."""
        lines = (
            f"{example.sha256} {example.label} {example.origin} {example.side}\n" for example in self.examples
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def find(folders: Sequence[Path], *, least_classes: int = 2) -> list[Found]:
    """Every file in the class folders of `folders`, in a fixed order. Folders of one name are one class.

    Hidden files and folders are no data. Raises DataError for a missing folder, for one without class folders, for a
    class without files, and when there are fewer than `least_classes` classes.
    """
    found: list[Found] = []
    empty: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise errors.DataError(f"{folder}: no such folder of training photos")
        classes = sorted(
            entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
        if not classes:
            raise errors.DataError(
                f"{folder}: has no folders; put the photos of each class into a folder of its own"
            )
        for class_folder in classes:
            # macOS writes the same name in another Unicode form than Linux; to a person they are one class.
            label = unicodedata.normalize("NFC", class_folder.name)
            files = list(files_below(class_folder))
            if not files:
                empty[label] = class_folder
            found.extend(Found(path=path, label=label) for path in files)
    labels = {photo.label for photo in found}
    for label, class_folder in empty.items():
        if label not in labels:
            raise errors.DataError(f"{class_folder}: the class has no photos; add some or remove the folder")
    if len(labels) < least_classes:
        raise errors.DataError(
            f"{folders[0]}: only one class, {next(iter(labels))!r}; there is nothing to tell apart, "
            "add a folder of another"
        )
    return found


def sides_met(told: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, Side]:
    """The side of every photo that a model or one before it has met, from what its bundle.json says under "data"."""
    return {
        digest: Side(side)
        for sides in (told.get("earlier_sides", {}), told.get("sides", {}))
        for side, digests in sides.items()
        for digest in digests
    }


def files_below(folder: Path) -> Iterable[Path]:
    """Every file below `folder`, however deep, that is not hidden and in no hidden folder, in a fixed order."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def read_folder(folder: Path) -> list[Path]:
    """Every file below `folder` that is not hidden: photos of no class. Raises DataError when there are none."""
    if not folder.is_dir():
        raise errors.DataError(f"{folder}: no such folder of photos")
    files = list(files_below(folder))
    if not files:
        raise errors.DataError(f"{folder}: has no photos")
    return files


def assemble(
    found: Iterable[Found],
    sha256: Mapping[Path, str],
    cache: PhotoCache,
    previous: Mapping[str, Side] | None = None,
) -> Dataset:
    """Examples of those files in `found` that `sha256` says are readable, split.

    `previous` gives the side of photos that a model has met before; they keep it, and so do their near-duplicates.
    A photo that was met on another side than one that it now turns out to be a near-duplicate of is left out.

    Where a person's label and a predicted one are there for the same bytes, the person's counts. Photos with
    predicted labels are learned from only where their content's side is TRAIN, and are never on another: a model
    must not be chosen by, or tested on, what one said itself.

    Raises DataError when a class has too few different photos.
    """
    found = list(found)
    previous = previous or {}
    files: dict[str, list[Found]] = defaultdict(list)
    for photo in found:
        digest = sha256.get(photo.path)
        if digest is not None and photo.sha256 in {None, digest}:
            files[digest].append(photo)
    for digest, photos in files.items():
        files[digest] = [photo for photo in photos if photo.origin is not Origin.PREDICTED] or photos
    conflicts = {digest for digest, photos in files.items() if len({photo.label for photo in photos}) > 1}
    kept = {digest: photos[0] for digest, photos in sorted(files.items()) if digest not in conflicts}
    groups = _groups(list(kept), cache)
    labels = tuple(sorted({photo.label for photo in found}))
    known = {digest: kept[digest].label for digest in kept if kept[digest].origin is not Origin.PREDICTED}
    sides = _split({digest: groups[digest] for digest in known}, known, labels, previous)
    members: dict[str, list[str]] = defaultdict(list)
    for digest, group in groups.items():
        members[group].append(digest)
    return Dataset(
        labels=labels,
        examples=tuple(
            Example(
                path=kept[digest].path,
                label=kept[digest].label,
                origin=kept[digest].origin,
                sha256=digest,
                group=group,
                side=side,
            )
            for digest, group in groups.items()
            if (side := sides.get(group) or _side(group)) is previous.get(digest, side)
            and (digest in known or side is Side.TRAIN)
        ),
        copies=sum(len(photos) - 1 for digest, photos in files.items() if digest not in conflicts),
        conflicts=tuple(tuple(photo.path for photo in files[digest]) for digest in sorted(conflicts)),
        near_duplicates=tuple(
            tuple(kept[digest].path for digest in group) for group in members.values() if len(group) > 1
        ),
    )


def _groups(digests: list[str], cache: PhotoCache) -> dict[str, str]:
    firsts = likeness.group([cache.likeness(digest) for digest in digests])
    return {digest: digests[first] for digest, first in zip(digests, firsts, strict=True)}


def _split(
    groups: Mapping[str, str],
    label_of: Mapping[str, str],
    labels: Sequence[str],
    previous: Mapping[str, Side],
) -> dict[str, Side]:
    """The side of each group: what a model met before keeps its side, the rest goes by hash.

    Should that leave a class without a photo on a side, its group that came closest goes there.
    """
    sides: dict[str, Side] = {}
    known: dict[str, set[Side]] = defaultdict(set)
    by_label: dict[str, set[str]] = defaultdict(set)
    for digest, group in groups.items():
        by_label[label_of[digest]].add(group)
        if digest in previous:
            known[group].add(previous[digest])
    for group in sorted(set(groups.values())):
        # A photo that ties a test photo to a training photo: that the test photo stays unlearned matters more.
        sides[group] = next((side for side in reversed(Side) if side in known[group]), _side(group))
    for label in labels:
        ordered = sorted(by_label[label], key=_position)
        if len(ordered) < LEAST_PHOTOS:
            raise errors.DataError(
                f"class {label!r}: has {len(ordered)} readable, different photos; it takes {LEAST_PHOTOS} or more "
                "(one to learn from, one to calibrate with, one to be tested on)"
            )
        free = [group for group in ordered if not known[group]]
        for side, candidates in ((Side.TEST, free[::-1]), (Side.VALIDATION, free[::-1]), (Side.TRAIN, free)):
            here = Counter(sides[group] for group in ordered)
            if not here[side]:
                spare = next((group for group in candidates if here[sides[group]] > 1), None)
                if spare is not None:
                    sides[spare] = side
    return sides


def _side(group: str) -> Side:
    position = _position(group)
    if position < 1 - VALIDATION_SHARE - TEST_SHARE:
        return Side.TRAIN
    return Side.VALIDATION if position < 1 - TEST_SHARE else Side.TEST


def _position(group: str) -> float:
    """A number 0..1 that depends on the content alone.

    Hashed once more, because others choose photos by their plain sha256 as well.
    """
    return int.from_bytes(hashlib.sha256(b"pawsort split 1 " + group.encode()).digest()[:8], "big") / 2**64
