"""The photos that are measured with: the shared ones where they are there, else drawn ones with a photo's detail."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data" / "animals"
SIZES = ((640, 480), (1024, 768), (1200, 800), (500, 375), (900, 1200))  # of drawn ones
TWELVE_MEGAPIXELS = (4000, 3000)
_DIFFERENT_LARGE_ONES = 12  # one takes a second to make

sys.path.insert(0, str(ROOT / "tests"))
import drawn  # noqa: E402  the tests' drawn pictures


def as_they_are(count: int, folder: Path) -> list[Path]:
    """Paths of `count` photos; drawn ones are written into `folder`."""
    if SHARED.is_dir():
        everything = sorted(SHARED.rglob("*.jpg"))
        step = max(1, len(everything) // count)
        return everything[::step][:count]
    folder.mkdir(parents=True, exist_ok=True)
    return [
        drawn.write(folder / f"{number:05d}.jpg", drawn.photo(number, *SIZES[number % len(SIZES)]))
        for number in range(count)
    ]


def twelve_megapixels(count: int, folder: Path) -> list[Path]:
    """Paths of `count` photos of 4000 x 3000 pixels, written into `folder`: enlarged, with the grain of a sensor."""
    folder.mkdir(parents=True, exist_ok=True)
    grain = cv2.resize(drawn.photo(0, 1000, 750), TWELVE_MEGAPIXELS, interpolation=cv2.INTER_NEAREST)
    made: list[Path] = []
    for number, path in enumerate(as_they_are(min(count, _DIFFERENT_LARGE_ONES), folder / "small")):
        large = cv2.resize(cv2.imread(str(path)), TWELVE_MEGAPIXELS, interpolation=cv2.INTER_CUBIC)
        target = folder / f"large-{number:05d}.jpg"
        cv2.imwrite(str(target), cv2.addWeighted(large, 0.9, grain, 0.1, 0), [cv2.IMWRITE_JPEG_QUALITY, 90])
        made.append(target)
    return [made[number % len(made)] for number in range(count)]


def copy(photos: Sequence[Path], inbox: Path) -> None:
    """Put copies of all of them into `inbox`, each under a name of its own."""
    inbox.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(photos):
        shutil.copyfile(path, inbox / f"{number:06d}-{path.name}")
