import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from pawsort import config, errors, image

ROOT = Path(__file__).parents[2]

# Where the value shown in config.yaml is an example, because the default is not a value.
EXAMPLES = {
    ("threshold",),
    ("decoders",),
    ("metrics",),
    ("log", "file"),
    ("trainer", "other"),
    ("trainer", "epochs"),
    ("trainer", "trust_after_days"),
}


@pytest.fixture
def write(tmp_path):
    """Write a settings file; gives its path."""

    def write(text):
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.fixture
def problems(write):
    """The problems that loading some text tells of, without the file's path in front."""

    def problems(text):
        path = write(text)
        with pytest.raises(errors.ConfigError) as caught:
            config.load(path)
        assert all(problem.startswith(f"{path}:") for problem in caught.value.problems)
        return [problem.removeprefix(f"{path}:").strip() for problem in caught.value.problems]

    return problems


def value_at(settings, key):
    for part in key:
        settings = getattr(settings, part)
    return settings


def uncommented():
    """config.yaml with every key in force: a comment whose text is `key: value` becomes that."""
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    return re.sub(r"^( *)# (?=[a-z_]+: \S+$)", r"\1", text, flags=re.MULTILINE)


def test_two_keys_are_enough_and_everything_else_has_a_default_beside_the_file(write, tmp_path):
    settings = config.load(write("inbox: in\nsorted: out\n"))
    assert settings.inbox == tmp_path / "in"
    assert settings.sorted == tmp_path / "out"
    for name in ("review", "rejected", "state", "models"):
        assert getattr(settings, name) == tmp_path / name
    assert settings.threshold is None
    assert settings.decoders >= 1


def test_the_file_that_comes_with_pawsort_loads_and_has_the_defaults(write):
    shipped = config.load(ROOT / "config.yaml")
    plain = config.load(write("inbox: inbox\nsorted: sorted\n"))
    for key in config.known_keys():
        if isinstance(value_at(plain, key), Path):
            assert value_at(shipped, key).name == value_at(plain, key).name
        else:
            assert value_at(shipped, key) == value_at(plain, key), key


def test_every_key_stands_in_the_file_that_comes_with_pawsort_with_its_default(write):
    path = write(uncommented())
    document = yaml.safe_load(path.read_text())
    written = {
        (name, *rest)
        for name, value in document.items()
        for rest in ([(inner,) for inner in value] if isinstance(value, dict) else [()])
    }
    assert written == set(config.known_keys())
    shown, plain = config.load(path), config.load(write("inbox: inbox\nsorted: sorted\n"))
    for key in written - EXAMPLES:
        assert value_at(shown, key) == value_at(plain, key), key


def test_limits_are_those_that_decoding_takes_with_the_same_defaults(write):
    settings = config.load(write("inbox: in\nsorted: out\n"))
    assert image.Limits(**settings.limits.model_dump()) == image.Limits()
    assert set(config.Limits.model_fields) == {field.name for field in dataclasses.fields(image.Limits)}


def test_paths_are_relative_to_the_file_not_to_where_we_are(write, tmp_path, monkeypatch):
    write("inbox: a/../in\nsorted: ~/out\nmodels: /srv/models\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", "/home/somebody")
    settings = config.load(Path("../config.yaml"))
    assert settings.inbox == tmp_path / "in"
    assert settings.sorted == Path("/home/somebody/out")
    assert settings.models == Path("/srv/models")


def test_the_trainer_s_folders_are_relative_to_the_file_too(write, tmp_path):
    settings = config.load(write("inbox: in\nsorted: out\ntrainer: {data: [a, /b], other: c}\n"))
    assert settings.trainer.data == (tmp_path / "a", Path("/b"))
    assert settings.trainer.other == tmp_path / "c"


def test_settings_cannot_be_changed(write):
    settings = config.load(write("inbox: in\nsorted: out\n"))
    with pytest.raises(ValueError, match="frozen"):
        settings.threshold = 0.5
    with pytest.raises(ValueError, match="frozen"):
        settings.limits.pixels = 1


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1000", 1000),
        ("256MB", 256_000_000),
        ("256 mb", 256_000_000),
        ("1.5GiB", 1_610_612_736),
        ("10KiB", 10_240),
        ("7 B", 7),
        ("3kb", 3_000),
        ("1TB", 10**12),
    ],
)
def test_sizes_may_carry_a_unit(write, written, size):
    assert config.load(write(f"inbox: in\nsorted: out\nlimits: {{bytes: {written}}}\n")).limits.bytes == size


def test_nothing_after_the_colon_means_the_default(write):
    settings = config.load(
        write("inbox: in\nsorted: out\nreview:\nthreshold:\nlimits:\n  # bytes: 5\nlog: {level: }\n")
    )
    assert settings == config.load(write("inbox: in\nsorted: out\n"))


def test_a_folder_may_be_called_like_a_date(write, tmp_path):
    assert config.load(write("inbox: 2024-13-01\nsorted: 2024-01-31\n")).inbox == tmp_path / "2024-13-01"


def test_all_problems_are_told_at_once_each_with_line_key_value_and_remedy(problems):
    assert problems(
        "inbox: [a]\n"
        "recursiv: true\n"
        "recursive: maybe\n"
        "threshold: 1.5\n"
        "limits:\n"
        "  pixls: 3\n"
        "  bytes: 3 bananas\n"
        "  side: 0\n"
        "  frames: 1.5\n"
        "  seconds: .inf\n"
        "engine: cuda\n"
        "log: 5\n"
        "duplicates: true\n"
        "rescan_s: soon\n"
        "settle_s: -1\n"
        "decoders: '2'\n"
    ) == [
        "sorted: is required: the folder in which the folders of the classes are made; add `sorted: FOLDER`",
        "1: inbox: [a] wants a path; put it in quotes if it is meant as one",
        "2: recursiv: is no key that is known here; did you mean `recursive`?",
        "3: recursive: maybe wants true or false",
        "4: threshold: 1.5 must be 1 or less",
        "6: limits.pixls: is no key that is known here; did you mean `pixels`?",
        "7: limits.bytes: 3 bananas wants a size such as 256MB or 1.5GiB, or a whole number of bytes",
        "8: limits.side: 0 must be above 0",
        "9: limits.frames: 1.5 wants a whole number",
        "10: limits.seconds: .inf wants a finite number",
        "11: engine: cuda wants one of auto, openvino or torch",
        "12: log: 5 wants keys of its own, indented, in the lines under it: level, format, file, rotate_bytes, rotate_keep",
        "13: duplicates: true wants one of keep, skip or folder",
        "14: rescan_s: soon wants a number",
        "15: settle_s: -1 must be above 0",
        "16: decoders: '2' wants a whole number",
    ]


def test_no_value_of_any_kind_is_answered_in_another_library_s_words(problems):
    for key in config.known_keys():
        for value in ("[1, a]", "{a: b}", "-1", "1.5", ".nan", "true", "'text'", "!!binary aGk="):
            text = f"{'  '.join(f'{part}: ' + chr(10) for part in key).rstrip()} {value}\n"
            try:
                found = problems(
                    "inbox: in\nsorted: out\n" + text if key[0] not in {"inbox", "sorted"} else text
                )
            except pytest.fail.Exception:
                continue  # a value that this key takes
            assert not re.search(r"Input should|valid (?!as)|pydantic", "\n".join(found)), found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("log_file: a.log\n", "3: log_file: is no key that is known here; did you mean `log.file`?"),
        ("pixels: 5\n", "3: pixels: is no key that is known here; did you mean `limits.pixels`?"),
        ("5: a\n", "3: 5: is no key that is known here; the keys here are inbox, sorted, "),
        ('"new\\nline": a\n', "3: 'new\\nline': is no key that is known here"),
        ("log: {leve: debug}\n", "3: log.leve: is no key that is known here; did you mean `level`?"),
        (
            "engine: auto\nlog:\n  level: info\nengine: torch\n",
            "3: engine: stands here and in line 6; remove one",
        ),
        ("log:\n  level: info\n  level: debug\n", "4: log.level: stands here and in line 5; remove one"),
        ("review: ''\n", "3: review: '' wants a path, and is empty"),
        ('review: "a\\0b"\n', '3: review: "a\\0b" has a NUL character in it'),
        (
            "review: ~nobody-of-this-name/a\n",
            "3: review: ~nobody-of-this-name/a begins with the home folder of a user",
        ),
        ("review: no\n", "3: review: false wants a path; put it in quotes"),
        (f"review: [{'long, ' * 100}]\n", "..."),
        (
            "trainer: {data: photos}\n",
            "3: trainer.data: photos wants a list of folders, such as [photos, more-photos]",
        ),
        ("trainer: {data: [a, 5]}\n", "3: trainer.data: [a, 5] wants a path; put it in quotes"),
        ("trainer: {keep_models: 1}\n", "3: trainer.keep_models: 1 must be 2 or more"),
        (
            "min_photos: 5\n",
            "3: min_photos: is no key that is known here; did you mean `trainer.min_photos`?",
        ),
    ],
)
def test_a_single_mistake_is_told_with_its_line_and_remedy(problems, text, expected):
    (problem,) = problems("inbox: in\nsorted: out\n" + text)
    assert expected in problem
    assert len(problem) < 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty; it needs at least `inbox: FOLDER` and `sorted: FOLDER`"),
        ("# nothing\n", "is empty; it needs at least `inbox: FOLDER` and `sorted: FOLDER`"),
        ("---\n", "is empty; it needs at least `inbox: FOLDER` and `sorted: FOLDER`"),
        ("\n- a\n", "2: wants keys and values, such as `inbox: FOLDER`"),
        ("inbox: in\nsorted: [out\n", "3: is not YAML, column 1: "),
        ("inbox: in\n sorted: out\n", "2: is not YAML, column 8: mapping values are not allowed here"),
        ("inbox: in\n---\ninbox: in\n", "2: is not YAML, column 1: expected a single document"),
        (
            "inbox: in\n[a]: out\n",
            "2: is not YAML, column 1: while constructing a mapping, found unhashable key",
        ),
        (
            "inbox: !!python/object:os.system {}\n",
            "1: is not YAML, column 8: could not determine a constructor",
        ),
        ("inbox: !!int x\n", "is not YAML: invalid literal for int()"),
        (b"inbox: in\nsorted: caf\xe9\n", "2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"\xff\xfei\x00n\x00", "1: byte 0xff is not UTF-8; save the file as UTF-8"),
        ("inbox: in\nsorted: a\x07\n", "2: holds the control character 0x07; remove it"),
        ("[" * 5000, "is not YAML: maximum recursion depth exceeded"),
    ],
)
def test_a_file_that_is_no_settings_at_all_says_where(problems, text, expected):
    (problem,) = problems(text)
    assert problem.startswith(expected)


def test_a_byte_order_mark_is_no_mistake(write, tmp_path):
    assert config.load(write(b"\xef\xbb\xbfinbox: in\nsorted: out\n")).inbox == tmp_path / "in"


def test_merged_keys_are_not_keys_that_stand_there_twice(write):
    text = "inbox: in\nsorted: out\nlog: {<<: {level: debug, format: json}, level: error}\n"
    assert config.load(write(text)).log.level == "error"


def test_a_missing_file_and_a_folder_in_its_place_are_told(tmp_path):
    with pytest.raises(
        errors.ConfigError, match=r"config\.yaml: no such file; write one, or name another with --config"
    ):
        config.load(tmp_path / "config.yaml")
    with pytest.raises(errors.ConfigError, match="cannot be read: Is a directory"):
        config.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inbox: a\nsorted: a\n", ["2: sorted: HERE/a is the folder of `inbox` too; give each its own"]),
        ("inbox: a\nsorted: link\n", ["2: sorted: HERE/a is the folder of `inbox` too; give each its own"]),
        (
            "inbox: a\nsorted: b\nreview: rejected\n",
            ["3: review: HERE/rejected is the folder of `rejected` too"],
        ),
        (
            "inbox: a\nsorted: a/b\n",
            ["1: inbox: HERE/a has `sorted` inside it, where what was sorted would arrive again"],
        ),
        ("inbox: link\nsorted: a/b\n", ["1: inbox: HERE/a has `sorted` inside it"]),
        ("inbox: a\nsorted: a/b\nrecursive: false\n", []),
        (
            "inbox: b/c\nsorted: b\n",
            ["2: sorted: HERE/b has `inbox` inside it, where each folder is a class"],
        ),
        (
            "inbox: .\nsorted: b\n",
            [
                "1: inbox: HERE has this file in it, which would be taken for a photo",
                "1: inbox: HERE has `sorted`, `review`, `rejected`, `state`, `models` inside it",
            ],
        ),
        ("inbox: .\nsorted: b\nrecursive: false\n", ["1: inbox: HERE has this file in it"]),
        ("inbox: a\nsorted: b\nlog: {file: a/x.log}\n", ["1: inbox: HERE/a has log.file in it"]),
        ("inbox: a\nsorted: b\nlog: {file: b/x.log}\n", []),
        ("inbox: s/a\nsorted: s/b\nstate: s\nmodels: s/m\n", []),
        ("inbox: s/a\nsorted: s/ab\n", []),
    ],
)
def test_folders_that_would_get_in_each_other_s_way_are_refused(write, tmp_path, text, expected):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    path = write(text)
    found = ()
    try:
        config.load(path)
    except errors.ConfigError as error:
        found = error.problems
    assert len(found) == len(expected)
    for problem, beginning in zip(found, expected, strict=True):
        assert problem.startswith(f"{path}:{beginning}".replace("HERE", str(tmp_path)))
