import os
import shutil

import pytest

import faultstage


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A bundle that tells drawn shapes apart. Not to be changed: take `copied` for that."""
    import tinymodel

    return tinymodel.shapes(tmp_path_factory)


@pytest.fixture
def copied(trained, tmp_path):
    """A bundle's folder of one's own. Its large files are links: replace them, never write into them."""
    folder = shutil.copytree(trained.path, tmp_path / "bundle", copy_function=os.link)
    shutil.copy(folder / "bundle.json", folder / "bundle.json.copy")
    (folder / "bundle.json.copy").replace(folder / "bundle.json")
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    with faultstage.file_system(tmp_path / "small") as folder:
        yield folder
