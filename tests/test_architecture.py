"""The shape of the house: which part may know which, what the base install loads, and how large a room may be."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from pawsort import config

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pawsort", "daemon", "trainer")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

# daemon -> pawsort <- trainer
ARROWS = {"pawsort": set(), "daemon": {"pawsort"}, "trainer": {"pawsort"}}

# Modules of the daemon's side that may import PyTorch; the daemon imports them only when `engine: torch` asks for it.
TORCH = {"pawsort/network.py", "pawsort/engine.py"}

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "pydantic_core": "pydantic",
    "yaml": "pyyaml",
}


def name(path):
    return path.relative_to(ROOT).as_posix()


def package(path):
    return path.relative_to(ROOT).parts[0]


def distributions(requirements):
    return {re.split(r"[<>=!~\[; ]", requirement)[0].lower() for requirement in requirements}


def imports(path):
    """Every import in a module, wherever it stands: (dotted name, line)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{name(path)}:{node.lineno}: a relative import hides where an arrow points"
            )
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def loaded_by(module):
    """Names of all modules in memory after importing one, in a process of its own."""
    code = f"import {module}, sys; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split())


def test_arrows_point_from_the_programs_to_what_both_know():
    assert not [
        f"{name(path)}:{line} imports {target}"
        for path in MODULES
        for target, line in imports(path)
        if target.split(".")[0] in set(PACKAGES) - {package(path)} - ARROWS[package(path)]
    ]


def test_pytorch_is_known_to_the_network_the_torch_engine_and_the_trainer_alone():
    assert not [
        f"{name(path)}:{line} imports {target}"
        for path in MODULES
        for target, line in imports(path)
        if (target.split(".")[0] == "torch" and name(path) not in TORCH and package(path) != "trainer")
        or (target.split(".")[0] == "torchvision" and name(path) != "pawsort/network.py")
    ]


def test_whatever_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = distributions(project["dependencies"] + project["optional-dependencies"]["heic"])
    train = base | distributions(project["optional-dependencies"]["train"])
    undeclared = []
    for path in MODULES:
        declared = train if package(path) == "trainer" or name(path) in TORCH else base
        for target, line in imports(path):
            top = target.split(".")[0]
            if (
                top not in {*sys.stdlib_module_names, *PACKAGES}
                and DISTRIBUTIONS.get(top, top).replace("_", "-") not in declared
            ):
                undeclared.append(f"{name(path)}:{line} imports {top}")
    assert not undeclared


def test_the_daemon_s_side_can_be_imported_without_pytorch():
    modules = [
        name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in MODULES
        if package(path) != "trainer" and name(path) != "pawsort/network.py"
    ]
    code = f"""
import importlib, sys
sys.modules["torch"] = sys.modules["torchvision"] = None  # importing them raises ImportError
for module in {modules!r}:
    importlib.import_module(module)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_asking_the_command_line_for_help_loads_nothing_heavy():
    heavy = {"cv2", "numpy", "openvino", "pydantic", "torch", "torchvision", "watchdog", "rich"}
    assert not heavy & loaded_by("daemon.__main__")
    assert not {"torch", "torchvision", "openvino", "nncf", "cv2"} & loaded_by("trainer.__main__")


def test_a_decoder_loads_no_more_than_decoding_takes():
    """What a worker has in memory counts as often as there are workers, and hostile bytes get to see it."""
    assert not {"openvino", "torch", "pydantic", "yaml", "sqlite3", "structlog"} & loaded_by(
        "pawsort.decode_worker"
    )


def test_no_module_is_longer_than_a_person_reads_in_one_go():
    lines = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {module: count for module, count in lines.items() if count > 400}


def test_no_module_is_a_drawer():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert not [name(path) for path in MODULES if path.stem in drawers]


def test_the_code_knows_no_class_by_name():
    assert not [
        f"{name(path)}:{number} says {found[0]}"
        for path in MODULES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (found := re.findall(r"(?<![a-z])(?:cat|dog|panda)s?(?![a-z])", line, re.IGNORECASE))
    ]


def test_every_setting_is_obeyed_by_something():
    """A key that nothing reads would promise what does not happen. (`limits` is handed on as a whole.)"""
    read = set()  # (what it is read from, key): settings.inbox, settings.log.level
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute | ast.Name):
                holder = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
                read.add((holder.lstrip("_"), node.attr))
    assert not [
        ".".join(key)
        for key in config.known_keys()
        if key[0] != "limits" and (key[-2] if len(key) > 1 else "settings", key[-1]) not in read
    ]
