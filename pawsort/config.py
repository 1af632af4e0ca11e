"""config.yaml -> frozen, typed settings; or every problem in it at once, each with its line, key, value and remedy.

A key is added in three places: the model below, config.yaml, and the code that obeys it. A null value (a key with
nothing after the colon, or a section whose keys are all commented out) means the default.
"""

import difflib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails

from pawsort import machine
from pawsort.yamlfile import Document, Key

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt]i?)?b)?", re.IGNORECASE)
_UNITS: Final = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


def _resolve(value: object, base: Path) -> Path:
    """A path as written -> absolute, relative to the folder of the file that it is written in."""
    if not isinstance(value, str | Path):
        raise ValueError("wants a path; put it in quotes if it is meant as one")  # noqa: TRY004  pydantic's protocol
    text = os.fspath(value)
    if not text.strip():
        raise ValueError("wants a path, and is empty")
    if "\0" in text:
        raise ValueError("has a NUL character in it, which no path can have")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        raise ValueError(
            "begins with the home folder of a user that is not known here; write the path in full"
        )
    return Path(os.path.abspath(os.path.join(base, expanded)))


def _absolute(value: object, info: ValidationInfo) -> Path:
    assert info.context is not None
    return _resolve(value, info.context["base"])


def _bytes(value: object) -> int:
    """`256MB`, `1.5 GiB`, or a whole number -> bytes."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("wants a size such as 256MB or 1.5GiB, or a whole number of bytes")  # noqa: TRY004
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError("wants a size such as 256MB or 1.5GiB, or a whole number of bytes")
    number, unit = match.groups()
    return round(float(number) * (_UNITS[unit.lower()] if unit else 1))


def _locations(value: object, info: ValidationInfo) -> tuple[Path, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("wants a list of folders, such as [photos, more-photos]")  # noqa: TRY004
    return tuple(_absolute(item, info) for item in value)


def _address(value: object) -> str:
    """`127.0.0.1:9105`, `[::1]:9105` or `localhost:9105`."""
    match = (
        re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):(\d{1,5})", value) if isinstance(value, str) else None
    )
    if match is None or int(match[2]) > 65535:
        raise ValueError("wants an address to listen on, such as 127.0.0.1:9105")
    return str(value)


Address = Annotated[str, BeforeValidator(_address)]
Location = Annotated[Path, BeforeValidator(_absolute)]
Locations = Annotated[tuple[Path, ...], BeforeValidator(_locations)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    """Keys that stand together. Values are taken as YAML has them: `"5"` is no number, 1 is not true."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, strict=True, validate_default=True, hide_input_in_errors=True
    )


class Limits(Section):
    """What is spent on one photo at most; the fields are those of pawsort.image.Limits."""

    bytes: Bytes = 256 * 2**20
    pixels: Count = 100_000_000
    side: Count = 32_768
    frames: Count = 10_000
    seconds: Seconds = 20.0
    memory_bytes: Bytes = 2**30


class Log(Section):
    """What is written about the work, and where to. `file` is None: standard error only."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    file: Location | None = None
    rotate_bytes: Bytes = 10_000_000
    rotate_keep: Count = 5


class Trainer(Section):
    """How `pawsort-train refresh` learns from the sorted folders."""

    data: Locations = ()  # none: the folders that the current model was made from, where they still exist
    other: Location | None = None
    epochs: Count | None = None  # None: 6, and more where photos are few
    seed: Annotated[int, Field(ge=0)] = 0
    min_photos: Annotated[int, Field(ge=3)] = 20
    trust_after_days: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None  # None: never
    max_recall_loss: Fraction = 0.02
    keep_models: Annotated[int, Field(ge=2)] = 5
    nice: bool = True


class Settings(Section):
    """All of config.yaml. Every path is absolute; symbolic links in it are left as they are."""

    inbox: Location = Field(description="the folder that photos arrive in")
    sorted: Location = Field(description="the folder in which the folders of the classes are made")
    review: Location = Path("review")
    rejected: Location = Path("rejected")
    state: Location = Path("state")
    models: Location = Path("models")
    recursive: bool = True
    engine: Literal["auto", "openvino", "torch"] = "auto"
    threshold: Fraction | None = None  # None: the model's own
    duplicates: Literal["keep", "skip", "folder"] = "keep"
    watch: Literal["auto", "native", "polling"] = "auto"
    settle_s: Seconds = 2.0
    rescan_s: Seconds = 60.0
    patience_s: Seconds = 300.0
    decoders: int = Field(default_factory=machine.usable_cores, gt=0)
    batch_size: Count = 16
    limits: Limits = Limits()
    log: Log = Log()
    metrics: Address | None = None  # None: not served
    trainer: Trainer = Trainer()


FOLDERS: Final = ("inbox", "sorted", "review", "rejected", "state", "models")


def load(path: Path) -> Settings:
    """Read the settings in `path`. Raises ConfigError with all that is wrong with it."""
    path = Path(os.path.abspath(path))
    document = Document(path)
    values = _without_nulls(document.values)
    settings = None
    try:
        settings = Settings.model_validate(values, context={"base": path.parent})
    except ValidationError as error:
        for detail in error.errors():
            document.report(_key(detail), _say(detail, document.values))
    # Looked at whatever else is wrong, so that one run shows everything.
    for key, problem in _overlaps(values, path):
        document.report(key, problem)
    document.raise_problems()
    assert settings is not None  # or there was a problem
    return settings


def _without_nulls(values: Mapping[Any, object], levels: int = 2) -> dict[str, object]:
    """What has a value, in the settings and in the sections under them."""
    return {
        str(key): _without_nulls(value, levels - 1) if isinstance(value, Mapping) and levels > 1 else value
        for key, value in values.items()
        if value is not None
    }


def _key(detail: ErrorDetails) -> Key:
    return tuple(str(part) for part in detail["loc"])


# pydantic's types of error -> words for the person who edits the file, filled in with the error's context.
_WORDS: Final = {
    "literal_error": "wants one of {expected}",
    "bool_type": "wants true or false",
    "int_type": "wants a whole number",
    "int_from_float": "wants a whole number",
    "float_type": "wants a number",
    "finite_number": "wants a finite number",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than_equal": "must be {le:g} or less",
    "value_error": "{error}",
    "model_type": "wants keys of its own, indented, in the lines under it: {keys}",
}


def _say(detail: ErrorDetails, values: Mapping[Any, object]) -> str:
    """What is wrong with a key, and the remedy."""
    key = _key(detail)
    if detail["type"] == "missing":
        return f"is required: {_section(key[:-1]).model_fields[key[-1]].description}; add `{key[-1]}: FOLDER`"
    if detail["type"] == "extra_forbidden":
        return f"is no key that is known here; {_suggestion(key)}"
    context = dict(detail.get("ctx", {}))
    if detail["type"] == "model_type":
        context["keys"] = ", ".join(_section(key).model_fields)
    words = _WORDS[detail["type"]].format(**context).replace("'", "")
    return f"{_shown(_value(values, key))} {words}"


def _value(values: Any, key: Key) -> Any:  # noqa: ANN401  YAML may hold anything
    for part in key:
        values = next(value for name, value in values.items() if str(name) == part)
    return values


def _shown(value: Any) -> str:  # noqa: ANN401  YAML may hold anything
    """A value as YAML has it, shortened: it may be a page long."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    text = text.removesuffix("...\n").strip()
    return text if len(text) <= 80 else f"{text[:77]}..."


def _section(key: Key) -> type[Section]:
    """The section that `key` names."""
    section: type[Section] = Settings
    for part in key:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, Section)
        section = annotation
    return section


def _suggestion(key: Key) -> str:
    """What an unknown key may have been meant for: one spelled alike beside it, or anywhere else."""
    here = list(_section(key[:-1]).model_fields)
    alike = difflib.get_close_matches(key[-1], here, n=1)
    if alike:
        return f"did you mean `{alike[0]}`?"
    everywhere = {".".join(known): known for known in known_keys()}
    by_last = {known[-1]: name for name, known in everywhere.items()}
    by_joined = {"_".join(known): name for name, known in everywhere.items()}  # log_file for log.file
    elsewhere = {**by_last, **by_joined}
    alike = difflib.get_close_matches("_".join(key), elsewhere, n=1) or difflib.get_close_matches(
        key[-1], elsewhere, n=1
    )
    if alike:
        return f"did you mean `{elsewhere[alike[0]]}`?"
    return f"the keys here are {', '.join(here)}"


def known_keys(section: type[Section] = Settings, parent: Key = ()) -> Iterator[Key]:
    """The path of every key that has a value of its own, in the order of the settings."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from known_keys(field.annotation, (*parent, name))
        else:
            yield (*parent, name)


def _places(values: Mapping[str, object], base: Path) -> dict[str, Path]:
    """Where the folders and the log file really are, so far as they can be told, whatever else is wrong."""
    written = {name: values.get(name, Settings.model_fields[name].default) for name in FOLDERS}
    log = values.get("log")
    written["log.file"] = log.get("file") if isinstance(log, Mapping) else None
    places = {}
    for name, value in written.items():
        try:
            places[name] = Path(os.path.realpath(_resolve(value, base)))
        except ValueError:
            continue  # not given, or reported already
    return places


def _overlaps(written: Mapping[str, object], file: Path) -> Iterator[tuple[Key, str]]:
    """Folders that would get in each other's way, with the key to change."""
    recursive = written.get("recursive") is not False
    places = _places(written, file.parent)
    folders = {name: place for name, place in places.items() if name in FOLDERS}
    for (first, one), (second, other) in itertools.combinations(folders.items(), 2):
        if one == other:
            here, there = (second, first) if second in written else (first, second)
            yield (here,), f"{one} is the folder of `{there}` too; give each its own"
    if "inbox" in folders:
        files = {
            "this file": Path(os.path.realpath(file)),
            **{n: p for n, p in places.items() if n not in FOLDERS},
        }
        taken = [
            name for name, place in files.items() if _within(place, folders["inbox"], recursive=recursive)
        ]
        if taken:
            yield (
                ("inbox",),
                f"{folders['inbox']} has {' and '.join(taken)} in it, which would be taken for a photo",
            )
    for outer, why in _OWN_GROUND.items():
        if outer in folders and (outer != "inbox" or recursive):
            inside = [f"`{name}`" for name, place in folders.items() if folders[outer] in place.parents]
            if inside:
                yield (outer,), f"{folders[outer]} has {', '.join(inside)} inside it, {why}"


def _within(file: Path, folder: Path, *, recursive: bool) -> bool:
    return folder in file.parents if recursive else folder == file.parent


# Folders that no other may lie in, and why. `state` may hold others: it only looks at its own files.
_OWN_GROUND: Final = {
    "inbox": "where what was sorted would arrive again; keep them apart, or set recursive: false",
    "sorted": "where each folder is a class; keep them apart",
    "review": "which is for photos alone; keep them apart",
    "rejected": "which is for photos alone; keep them apart",
    "models": "which is for models alone; keep them apart",
}
