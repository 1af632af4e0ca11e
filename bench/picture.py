"""Take the picture of a run that README shows: the real program on a terminal, its output as an SVG.

python bench/picture.py [--photos 40] [--out docs/run.svg]
"""

import argparse
import os
import pty
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


def main() -> None:
    """Sort some photos where they can be seen, and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "run.svg")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
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
        for photo in photos[: options.photos]:
            shutil.copy(photo, home / "inbox")
        (home / "inbox" / "notes.jpg").write_text("not a photo at all\n")
        output = on_a_terminal([sys.executable, "-m", "daemon", "run", "--once"], home)
        output = output.replace(f"{home}/", "").replace(str(home), "~")
    lines = settled(output)
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), color_system="truecolor")  # noqa: SIM115
    console.print(Text.from_ansi("$ pawsort run --once\n" + "\n".join(lines[-LINES_SHOWN:])))
    console.save_svg(str(options.out), title="pawsort")


if __name__ == "__main__":
    main()
