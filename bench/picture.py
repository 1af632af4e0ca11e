"""Take the pictures that README shows: the real programs on a terminal, their output as an SVG.

python bench/picture.py run [--out docs/run.svg]
python bench/picture.py teach [--out docs/teach.svg]
"""

import argparse
import os
import pty
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
COLUMNS = 112
LINES_SHOWN = 34
PHOTOS = 24  # sorted in the picture of a run
LEARNED, ARRIVING = 60, 120  # photos a class in the picture of the teaching
MOVES_SHOWN = 4


def on_a_terminal(command: list[str], folder: Path) -> str:
    """What a command prints when a person is looking."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "LINES": "50", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        command, cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=environment, close_fds=True
    )
    os.close(slave)
    output = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        output += part
    process.wait()
    os.close(master)
    return output.decode(errors="replace")


def settled(output: str) -> list[str]:
    """The lines as they stand in the end: what was erased or written over is left out."""
    lines = []
    for line in output.replace("\r\n", "\n").split("\n"):
        last = re.split(r"\r|\x1b\[1A|\x1b\[2K", line)[-1]
        last = re.sub(r"\x1b\[\?25[lh]", "", last)
        if last.strip():
            lines.append(last)
    return lines


def run(home: Path) -> list[str]:
    """Some photos, two of them strangers, and what is no photo."""
    (home / "inbox").mkdir()
    (home / "config.yaml").write_text(f"inbox: inbox\nsorted: sorted\nmodels: {ROOT / 'models'}\n")
    photos = [
        *[
            path
            for folder in sorted((SHARED / "animals").iterdir())
            for path in sorted(folder.iterdir())[5::160]
        ],
        *sorted((SHARED / "other").iterdir())[::90],
    ]
    for photo in photos[:PHOTOS]:
        shutil.copy(photo, home / "inbox")
    (home / "inbox" / "notes.jpg").write_text("not a photo at all\n")
    output = on_a_terminal([sys.executable, "-m", "daemon", "run", "--once"], home)
    return ["$ pawsort run --once", *settled(output)[-LINES_SHOWN:]]


def teach(home: Path) -> list[str]:
    """A model made of few photos sorts others, a person puts right what went wrong, and it learns from that."""
    chance, arriving = random.Random(0), []
    for folder in sorted((SHARED / "animals").iterdir()):
        chosen = chance.sample(sorted(folder.iterdir()), LEARNED + ARRIVING)
        (home / "few" / folder.name).mkdir(parents=True)
        for photo in chosen[:LEARNED]:
            shutil.copy(photo, home / "few" / folder.name)
        arriving += [(photo, folder.name) for photo in chosen[LEARNED:]]
    trainer = [sys.executable, "-m", "trainer"]
    weights = ["--init", str(SHARED.parent / "weights" / "resnet18-backbone.pth")]
    where = ["--data", "few", "--out", "models", "--name", "first", "--cache", "cache"]
    subprocess.run([*trainer, "fit", *where, *weights], check=True, cwd=home)
    (home / "config.yaml").write_text(
        "inbox: inbox\nsorted: sorted\nmodels: models\ntrainer: {nice: false}\n"
    )
    (home / "inbox").mkdir()
    for number, (photo, label) in enumerate(arriving):
        shutil.copy(photo, home / "inbox" / f"{label.removesuffix('s')}-{number:03d}.jpg")
    subprocess.run([sys.executable, "-m", "daemon", "run", "--once"], check=True, cwd=home)

    moves = []
    for path in sorted([*home.glob("sorted/*/*"), *home.glob("review/*")]):
        label = path.name.split("-")[0] + "s"
        if path.parent.name != label:
            moves.append(f"$ mv {path.relative_to(home)} sorted/{label}/")
            path.rename(home / "sorted" / label / path.name)
    shown = sorted(moves, key=lambda move: "mv review/" in move)[:MOVES_SHOWN]
    told = [*shown, f"... and {len(moves) - len(shown)} more, of {len(arriving)} photos", ""]
    # Not on a terminal: its bars are drawn over and over, and plain lines are what would be left to see.
    done = subprocess.run(
        [*trainer, "refresh"],
        check=True,
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = done.stdout.splitlines()
    epochs = [number for number, line in enumerate(lines) if line.startswith("epoch ")]
    lines[epochs[2] : epochs[-1]] = ["..."]  # as many as a page has lines, and much alike
    return [*told, "$ pawsort-train refresh", *lines]


def main() -> None:
    """Let it happen where it can be seen, and write the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=("run", "teach"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        lines = {"run": run, "teach": teach}[options.which](Path(name))
    text = "\n".join(lines).replace(f"{name}/", "").replace(name, "~")
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), color_system="truecolor")  # noqa: SIM115
    console.print(Text.from_ansi(text))
    console.save_svg(str(options.out or ROOT / "docs" / f"{options.which}.svg"), title="pawsort")


if __name__ == "__main__":
    main()
