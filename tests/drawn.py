"""Drawn pictures, so that tests need no photo: a class is a shape with a colour, on a background of noise.

Every picture follows from its label and seed alone. Pictures are (height, width, 3) uint8 RGB.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

LABELS = ("circles", "squares", "triangles")

_CORNERS = {"circles": 48, "squares": 4, "triangles": 3}
_HUES = {"circles": 0, "squares": 60, "triangles": 115}  # OpenCV's: 0 to 179


def draw(label: str, seed: int, size: int | tuple[int, int] = 96) -> np.ndarray:
    """A picture of class `label`, `size` square or (width, height). Any other label than LABELS has a look of its own."""
    width, height = (size, size) if isinstance(size, int) else size
    random = np.random.default_rng([zlib.crc32(label.encode()), seed])
    picture = noise(random, width, height, coarseness=8)
    short = min(width, height)
    radius = random.uniform(0.22, 0.4) * short
    centre = random.uniform([radius, radius], [width - radius, height - radius])
    cv2.fillPoly(
        picture, [_outline(label, centre, radius, random.uniform(0, 2 * np.pi))], _colour(label, random)
    )
    return picture


def photo(seed: int, width: int = 1024, height: int = 768, label: str = "circles") -> np.ndarray:
    """A picture with detail at every scale, as a camera's has: it costs a decoder what a photo costs."""
    random = np.random.default_rng([zlib.crc32(b"photo"), seed])
    picture = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 9):
        rows, columns = max(2, height >> octave), max(2, width >> octave)
        layer = random.uniform(-1, 1, (rows, columns, 3)).astype(np.float32)
        picture += cv2.resize(layer, (width, height), interpolation=cv2.INTER_LINEAR) * 2.0 ** (octave / 2)
    picture += random.normal(0, 0.35, picture.shape).astype(np.float32)  # the sensor's grain
    shaded = np.clip(128 + picture * (100 / np.abs(picture).max()), 0, 255).astype(np.uint8)
    radius = 0.3 * min(width, height)
    outline = _outline(label, np.array([width / 2, height / 2]), radius, random.uniform(0, 2 * np.pi))
    shape = shaded.copy()
    cv2.fillPoly(shape, [outline], _colour(label, random))
    return cv2.addWeighted(shaded, 0.35, shape, 0.65, 0)


def noise(random: np.random.Generator, width: int, height: int, coarseness: int) -> np.ndarray:
    """A background that tells nothing about the class: grey of any brightness, in blotches of `coarseness` pixels."""
    rows, columns = max(2, height // coarseness), max(2, width // coarseness)
    blotches = random.uniform(40, 215) + random.normal(0, 22, (rows, columns, 3))
    blotches = np.clip(blotches, 0, 255).astype(np.uint8)
    return cv2.resize(blotches, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(picture: np.ndarray, suffix: str = ".jpg", *parameters: int) -> bytes:
    """The picture as a file's bytes; `suffix` names the format, `parameters` are those of cv2.imencode."""
    fine, data = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), list(parameters))
    assert fine, f"OpenCV cannot write {suffix}"
    return data.tobytes()


def write(path: Path, picture: np.ndarray) -> Path:
    """The picture in a file, in the format that its name says."""
    path.write_bytes(encode(picture, path.suffix))
    return path


def write_folder(
    folder: Path,
    label: str,
    count: int,
    *,
    size: int | tuple[int, int] = 96,
    suffix: str = ".jpg",
    seed: int = 0,
) -> list[Path]:
    """`count` pictures of one class in a folder, made when missing. Other seeds give other pictures and names."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(seed * 1_000_000, seed * 1_000_000 + count)
    return [write(folder / f"{label}-{number:07d}{suffix}", draw(label, number, size)) for number in numbers]


def write_classes(
    folder: Path,
    count: int,
    *,
    labels: Iterable[str] = LABELS,
    size: int | tuple[int, int] = 96,
    suffix: str = ".jpg",
    seed: int = 0,
) -> Path:
    """A folder for each class with `count` pictures each, as the trainer takes it. Gives `folder`."""
    for label in labels:
        write_folder(folder / label, label, count, size=size, suffix=suffix, seed=seed)
    return folder


def _outline(label: str, centre: np.ndarray, radius: float, turn: float) -> np.ndarray:
    """Corners (n, 1, 2) of the label's shape: a regular polygon, or a star for labels that have none."""
    corners = _CORNERS.get(label)
    if corners is None:
        points = 4 + zlib.crc32(label.encode()) % 5
        radii = radius * np.tile([1.0, 0.45], points)
    else:
        radii = np.full(corners, radius)
    angles = turn + np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    outline = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.round(outline).astype(np.int32)[:, None]


def _colour(label: str, random: np.random.Generator) -> tuple[int, int, int]:
    """The label's hue, in any light. For labels that have none it follows from the name."""
    hue = _HUES.get(label, zlib.adler32(label.encode()) * 47 % 180)
    hsv = np.array(
        [[[(hue + random.integers(-5, 6)) % 180, random.integers(140, 256), random.integers(120, 256)]]]
    )
    red, green, blue = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue
