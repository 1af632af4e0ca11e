"""The ceiling: decoding and inference and nothing else. No file is moved, hashed, recorded or logged.

    python bench/ceiling.py MODEL INBOX

A thread a core decodes (OpenCV lets go of Python's lock), and the main thread asks the model about what is there, with
the same looks at the same pictures as the daemon.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the daemon does, see there

import cv2
import numpy as np

from pawsort import image, machine
from pawsort.classifier import open_classifier
from pawsort.render import Limits, Render

BATCH = 16


def main(model: Path, inbox: Path) -> None:
    """Recognise what is in the inbox, and leave it there."""
    cv2.setNumThreads(1)
    classifier = open_classifier(model, kind="openvino", threads=machine.usable_cores())
    render = Render(size=classifier.bundle.size, views=classifier.bundle.views)
    limits = Limits()

    def decode(path: Path) -> image.Pixels:
        photo = image.decode(path.read_bytes(), limits, render.short_side)
        return image.views(photo.pixels, render.views, render.size)

    paths = sorted(inbox.iterdir())
    with ThreadPoolExecutor(machine.usable_cores()) as threads:
        pictures = threads.map(decode, paths)
        for start in range(0, len(paths), BATCH):
            batch = [next(pictures) for _ in paths[start : start + BATCH]]
            classifier.classify(np.stack(batch))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
