"""What a user would write in an evening, to be held against: PIL, torchvision's transforms, float32, shutil.move.

    python bench/naive.py MODEL INBOX SORTED

Prints "ready" once the model is loaded and "done" once the inbox is empty; a JSON line for each photo on stderr.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from PIL import Image

from pawsort import bundle, network  # before torchvision: it knows how to import it beside any PyTorch

# isort: split
from torchvision import transforms


def main(model: Path, inbox: Path, target: Path) -> None:
    """Sort what is in the inbox."""
    about = bundle.load(model)
    labels = about.labels
    net = network.load(about.weights, len(labels))
    transform = transforms.Compose(
        [
            transforms.Resize(256),  # these two as everywhere with ResNet-18
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(network.MEAN, network.STD),
        ]
    )
    for label in labels:
        (target / label).mkdir(parents=True, exist_ok=True)
    print("ready", flush=True)
    with torch.no_grad():
        for path in sorted(inbox.iterdir()):
            picture = Image.open(path).convert("RGB")
            probabilities = net(transform(picture)[None]).softmax(dim=1)[0]
            best = int(probabilities.argmax())
            shutil.move(path, target / labels[best] / path.name)
            line = {"file": path.name, "label": labels[best], "confidence": float(probabilities[best])}
            print(json.dumps(line), file=sys.stderr)
    print("done", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
