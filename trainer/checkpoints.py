"""Where an interrupted run goes on: all that changes while it trains, in one file, which is replaced in one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from pawsort import errors


class Changing(Protocol):
    """A network or an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> object:
        """Take it back."""
        ...


class Record(Protocol):
    """A dataclass whose fields torch can write."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def save(
    file: Path,
    identity: Mapping[str, Any],
    changing: Mapping[str, Changing],
    records: Mapping[str, Record],
    done: int,
) -> None:
    """Write what `restore` reads, after `done` steps. `identity` is what makes this run this run and no other."""
    state = {
        "identity": dict(identity),
        "changing": {name: part.state_dict() for name, part in changing.items()},
        "records": {name: asdict(record) for name, record in records.items()},
        "done": done,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.part")
    torch.save(state, temporary)
    temporary.replace(file)


def restore(
    file: Path,
    identity: Mapping[str, Any],
    changing: Mapping[str, Changing],
    records: Mapping[str, Record],
) -> int:
    """Load a checkpoint into all of these; the number of steps done. Raises DataError when it is another run's."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        found, parts, told = state["identity"], state["changing"], state["records"]
    except Exception as error:  # whatever the unpickler raises: each means that the file is no good
        raise errors.DataError(
            f"{file}: cannot be read as a checkpoint ({error}); delete it, start again"
        ) from error
    different = sorted(key for key in identity.keys() | found.keys() if identity.get(key) != found.get(key))
    if different:
        raise errors.DataError(
            f"{file}: is the checkpoint of another run ({', '.join(different)} differ); resume with the same settings "
            "and photos, or start again without --resume"
        )
    for name, part in changing.items():
        part.load_state_dict(parts[name])
    for name, record in records.items():
        for field, value in told[name].items():
            setattr(record, field, value)
    return int(state["done"])
