"""The documentation tells the truth: commands, keys, files and links in it exist."""

import re

import click
import pytest

from pawsort import config


def documents(root):
    return [root / "README.md", root / "CHANGELOG.md", *sorted((root / "docs").glob("*.md"))]


def test_every_link_to_a_file_leads_somewhere(root):
    for document in documents(root):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_readme_names_every_command_of_both_programs(root):
    from daemon.__main__ import main as pawsort
    from trainer.__main__ import main as pawsort_train

    readme = (root / "README.md").read_text(encoding="utf-8")
    for name, program in (("pawsort", pawsort), ("pawsort-train", pawsort_train)):
        assert isinstance(program, click.Group)
        for command in program.commands:
            assert f"{name} {command}" in readme


def test_readme_shows_no_command_that_does_not_exist(root):
    from daemon.__main__ import main as pawsort
    from trainer.__main__ import main as pawsort_train

    readme = (root / "README.md").read_text(encoding="utf-8")
    programs = {"pawsort": pawsort, "pawsort-train": pawsort_train}
    for name, command in re.findall(r"^(pawsort(?:-train)?) ([a-z]+)", readme, flags=re.MULTILINE):
        assert command in programs[name].commands


def test_readme_names_every_setting(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    for key in config.known_keys():
        assert f"`{key[-1]}`" in readme, ".".join(key)


def test_readme_begins_with_its_two_commands(root):
    beginning = (root / "README.md").read_text(encoding="utf-8")[:1200]
    assert re.findall(r"^make (\w+)", beginning, flags=re.MULTILINE) == ["run", "test"]


@pytest.mark.parametrize("target", ["setup", "run", "test", "lint", "bench", "service"])
def test_the_makefile_has_every_promised_target(root, target):
    assert re.search(rf"^{target}:", (root / "Makefile").read_text(), flags=re.MULTILINE)


def test_every_module_that_the_architecture_names_exists(root):
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    for module in re.findall(r"`((?:daemon|pawsort|trainer)/[a-z_]+\.py)`", text):
        assert (root / module).is_file(), module
