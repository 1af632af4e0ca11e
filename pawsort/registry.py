"""The models folder: which models there are, which one serves, and how a new one takes over.

    models/NAME/       a bundle (see pawsort.bundle)
    models/.NAME.part/ a bundle in the making; ignored by every reader
    models/current     a symbolic link to the NAME that serves; replaced in one step

A folder that holds no model at all is fine: the model that pawsort ships serves then.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from pawsort import bundle, errors

CURRENT = "current"


class Registry:
    """The models folder at `root`, which may not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Names of the models here, oldest first by their folders' time."""
        if not self.root.is_dir():
            return []
        folders = [
            folder
            for folder in self.root.iterdir()
            if not folder.name.startswith(".")
            and not folder.is_symlink()
            and (folder / bundle.MANIFEST).is_file()
        ]
        return [
            folder.name
            for folder in sorted(folders, key=lambda folder: (folder.stat().st_mtime, folder.name))
        ]

    def path(self, name: str) -> Path:
        """Folder of the model `name`. Raises ModelError when there is none."""
        if name == CURRENT:
            return self.current()
        if name not in self.names():
            there = ", ".join(self.names()) or "none"
            message = f"{self.root}: no model named {name!r}; there are: {there}"
            raise errors.ModelError(message)
        return self.root / name

    def current(self) -> Path:
        """Folder of the model that serves: the one `current` points to, or the shipped one when none is here.

        The link is resolved, so that a swap in the middle of loading cannot mix two models.
        Raises ModelError when `current` points nowhere, or is missing although there are models.
        """
        link = self.root / CURRENT
        if link.is_symlink():
            folder = Path(os.path.realpath(link))  # unlike Path.resolve, it does not fail on a link to itself
            if not (folder / bundle.MANIFEST).is_file():
                message = (
                    f"{link}: points to {os.readlink(link)}, which is no model; run `pawsort models use NAME`"
                )
                raise errors.ModelError(message)
            return folder
        if self.names():
            message = f"{self.root}: has models but no link named {CURRENT}; run `pawsort models use NAME`"
            raise errors.ModelError(message)
        return shipped()

    def staging(self, name: str) -> Path:
        """A new, empty folder in which a model may be put together before `publish`.

        Raises ModelError when `name` is taken or is no name. A stale one of the same name is removed.
        """
        if not name or name == CURRENT or name.startswith(".") or "/" in name:
            message = f"{name!r} cannot be the name of a model"
            raise errors.ModelError(message)
        if (self.root / name).exists():
            message = f"{self.root / name}: there is a model of that name already; choose another --name"
            raise errors.ModelError(message)
        folder = self.root / f".{name}.part"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def publish(self, staged: Path, name: str) -> Path:
        """Give the sealed bundle in `staged` its place and name, in one step, after verifying it.

        It does not become the current one by that.
        """
        bundle.load(staged)
        target = self.root / name
        # A folder renames onto an existing empty folder without a word: refuse any.
        if target.exists():
            message = f"{target}: there is a model of that name already"
            raise errors.ModelError(message)
        staged.rename(target)
        bundle.sync_directory(self.root)
        return target

    def use(self, name: str) -> None:
        """Make the model `name` the one that serves, in one step. Raises ModelError when it is not whole."""
        bundle.load(self.path(name))
        if name == CURRENT:
            return  # a link to itself would be a loop
        temporary = self.root / f".{CURRENT}.part"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        temporary.replace(self.root / CURRENT)
        bundle.sync_directory(self.root)

    def listing(self) -> list[dict[str, Any]]:
        """One entry a model, oldest first: name, created, parent, figures, and whether it is the current one.

        The shipped model is listed when it is the one that serves.
        """
        try:
            current = self.current()
        except errors.ModelError:
            current = None
        folders = [self.root / name for name in self.names()]
        if current is not None and current.parent != self.root.resolve():
            folders.append(current)
        entries = []
        for folder in folders:
            manifest = bundle.read_manifest(folder)
            entries.append(
                {
                    "name": manifest.get("name", folder.name),
                    "state": "current" if current is not None and folder.resolve() == current else "kept",
                    "created": manifest.get("created"),
                    "parent": manifest.get("parent"),
                    "labels": manifest.get("labels"),
                    "accuracy": bundle.accuracy(manifest),
                    "metrics": manifest.get("metrics", {}),
                }
            )
        return entries


def shipped() -> Path:
    """Folder of the model that comes with pawsort: inside the installed package, or in the source tree beside it."""
    package = Path(__file__).resolve().parent
    for folder in (package / "shipped", package.parent / "models" / CURRENT):
        if (folder / bundle.MANIFEST).is_file():
            return folder.resolve()
    message = "this installation of pawsort has no model of its own; train one with `pawsort-train fit`"
    raise errors.ModelError(message)
