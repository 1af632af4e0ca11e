"""The models folder: which models there are, which one serves, how a new one takes over, and the way back.

    models/NAME/         a bundle (see pawsort.bundle)
    models/.NAME.part/   a bundle in the making; ignored by every reader
    models/.NAME.gone/   a bundle being removed; likewise
    models/current       a symbolic link to the NAME that serves; replaced in one step
    models/.served.json  which model took over from which: the way that `rollback` goes back

The model that pawsort ships serves while none was made current here. So do models that the gate refused (see
trainer.gate): they lie here to be looked at, and serve only when somebody says so.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pawsort import bundle, errors
from pawsort.classifier import open_classifier

CURRENT = "current"
SERVED = ".served.json"
# Far more than anybody goes back.
_MOST_CHANGES = 200


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
        Raises ModelError when `current` points nowhere, or is missing although there are models that may serve.
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
        if not all(was_refused(bundle.read_manifest(self.root / name)) for name in self.names()):
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

        Its files have their checksums, it loads, and it answers once; or ModelError is raised. It does not become
        the current one by that.
        """
        open_classifier(staged)
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
        before = self._serving()
        if before != name:
            # Written first: should we be stopped in between, a change to a model that does not serve is no way back.
            self._write_changes([*self._changes(), {"before": before, "name": name}])
        self._link(name)

    def hold_current(self) -> None:
        """Where the shipped model serves because nothing else does, say so by a link.

        For whoever is about to publish a model and then use it: in between, the old one is to serve.
        """
        if not (self.root / CURRENT).is_symlink():
            self.root.mkdir(parents=True, exist_ok=True)
            self._link(os.fspath(self.current()))

    def rollback(self) -> str:
        """Make the model serve that served before the current one; its name. Called again, it goes on backwards.

        Raises ModelError when there is no way back.
        """
        changes = self._changes()
        name = self._serving()
        passed = set()
        while name is not None and name not in passed:
            passed.add(name)
            change = next((c for c in reversed(changes) if c["name"] == name and not c.get("undone")), None)
            if change is not None:
                change["undone"] = True
                name = change["before"]
            elif name in self.names():
                name = bundle.read_manifest(self.root / name).get("parent")
                if name not in self.names():
                    break
            else:
                break
            # One that was removed since cannot serve: then further back.
            if name is None or name in self.names():
                folder = shipped() if name is None else self.root / name
                bundle.load(folder)
                self._link(os.fspath(folder) if name is None else name)
                self._write_changes(changes)
                return folder.name
        message = f"{self.root}: no model served before this one; `pawsort models` lists what there is"
        raise errors.ModelError(message)

    def prune(self, keep: int, spare: Collection[str] = ()) -> list[str]:
        """Remove the oldest models until `keep` are left; the names of those removed.

        Never the current one, its parent, or one whose name is in `spare`, be there more than `keep` of them or not.
        Raises ModelError when nobody can say which one is current.
        """
        for rest in self.root.glob(".*.gone"):
            shutil.rmtree(rest)
        current = self.current()
        names = self.names()
        spared = {current.name, bundle.read_manifest(current).get("parent"), *spare}
        removable = [name for name in names if name not in spared]
        removed = removable[: max(len(names) - keep, 0)]
        for name in removed:
            gone = self.root / f".{name}.gone"
            (self.root / name).rename(gone)
            shutil.rmtree(gone)
        return removed

    def listing(self) -> list[dict[str, Any]]:
        """One entry a model, oldest first: name, created, parent, figures, and its state.

        State is "current"; "refused" by the gate; "superseded" when it served once; "kept" when it never did.
        The shipped model is listed when it is the one that serves.
        """
        try:
            current = self.current()
        except errors.ModelError:
            current = None
        folders = [self.root / name for name in self.names()]
        if current is not None and current.parent != self.root.resolve():
            folders.append(current)
        served = {name for change in self._changes() for name in (change["before"], change["name"])}
        entries = []
        for folder in folders:
            manifest = bundle.read_manifest(folder)
            if current is not None and folder.resolve() == current:
                state = "current"
            elif was_refused(manifest):
                state = "refused"
            else:
                state = "superseded" if folder.name in served else "kept"
            entries.append(
                {
                    "name": manifest.get("name", folder.name),
                    "state": state,
                    "created": manifest.get("created"),
                    "parent": manifest.get("parent"),
                    "labels": manifest.get("labels"),
                    "accuracy": bundle.accuracy(manifest),
                    # Two models' accuracies are of different test photos; only the gate held both against the same.
                    "against_the_one_before": _compared(manifest.get("gate") or {}),
                    "metrics": manifest.get("metrics", {}),
                }
            )
        return entries

    def _serving(self) -> str | None:
        """Name of the current model; None for the shipped one, or where nothing can serve."""
        try:
            current = self.current()
        except errors.ModelError:
            return None
        return current.name if current.parent == self.root.resolve() else None

    def _link(self, target: str) -> None:
        temporary = self.root / f".{CURRENT}.part"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(self.root / CURRENT)
        bundle.sync_directory(self.root)

    def _changes(self) -> list[dict[str, Any]]:
        """Which model (`name`) took over from which (`before`; None is the shipped one), oldest first.

        `undone` stands where a rollback took it back.
        """
        try:
            changes: list[dict[str, Any]] = json.loads((self.root / SERVED).read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise errors.ModelError(f"{self.root / SERVED}: cannot be read ({error}); delete it") from error
        return changes

    def _write_changes(self, changes: list[dict[str, Any]]) -> None:
        temporary = self.root / f"{SERVED}.part"
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(changes[-_MOST_CHANGES:], stream, indent=1, ensure_ascii=False)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.root / SERVED)


def was_refused(manifest: Mapping[str, Any]) -> bool:
    """Whether the gate kept this model from serving, and nobody overruled it."""
    gate = manifest.get("gate") or {}
    return not (gate.get("passed", True) or gate.get("forced", False))


def _compared(gate: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the gate found of this model and the one before it on the same photos; None where it was not asked."""
    if "accuracy" not in gate:
        return None
    accuracy = gate["accuracy"]
    return {"accuracy": accuracy["challenger"], "before": accuracy["champion"], "n": gate["n"]}


def shipped() -> Path:
    """Folder of the model that comes with pawsort: inside the installed package, or in the source tree beside it."""
    package = Path(__file__).resolve().parent
    for folder in (package / "shipped", package.parent / "models" / CURRENT):
        if (folder / bundle.MANIFEST).is_file():
            return folder.resolve()
    message = "this installation of pawsort has no model of its own; train one with `pawsort-train fit`"
    raise errors.ModelError(message)
