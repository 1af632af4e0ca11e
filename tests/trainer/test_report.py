"""The report: complete in itself, honest, and fit to be looked at in a browser."""

import dataclasses
import html.parser
import re
import shutil
import subprocess

import cv2
import pytest

from pawsort import bundle
from pawsort.decision import Decision
from trainer import dataset, report
from trainer.evaluate import Judged

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page(made):
    return (made.bundle.path / bundle.REPORT).read_text(encoding="utf-8")


class Links(html.parser.HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in {"src", "href", "xlink:href"} and value]


def test_nothing_is_fetched_from_anywhere(page):
    links = Links()
    links.feed(page)
    assert all(link.startswith(("data:", "#")) for link in links.found)
    assert "@import" not in page
    assert not re.search(r"url\((?!['\"]?#)", page)


def test_headline_figures_are_those_of_the_bundle(page, made):
    metrics = made.bundle.manifest["metrics"]["test"]
    assert f"{100 * metrics['accuracy']:.2f} %" in page
    assert f"{100 * metrics['auto_sorted']:.1f} %" in page
    assert made.bundle.name in page
    assert "95 % interval" in page


def test_every_chart_is_there(page):
    assert page.count("<svg") == 5
    for title in (
        "What each class is taken for",
        "How it learned",
        "Does its confidence",
        "Sorting more",
        "strangers",
    ):
        assert title in page


def judged(path, label, best, confidence):
    decision = Decision(
        label=best if confidence > 0.9 else None,
        best=best,
        confidence=confidence,
        familiarity=1.0,
        probabilities=tuple(confidence if name == best else (1 - confidence) / 2 for name in ("a", "b", "c")),
        threshold=0.9,
        look=0,
    )
    return Judged(path=path, label=label, sha256=str(path), decision=decision)


@pytest.fixture
def rendered(made, shapes):
    """A page about made-up decisions on real files."""
    files = sorted((shapes / "circles").iterdir())
    tested = [
        judged(files[0], "a", "b", 0.97),
        judged(files[1], "a", "b", 0.55),
        judged(files[2], "c", "c", 0.6),
        judged(files[3], "c", "c", 0.99),
    ]
    data = dataset.Dataset(
        labels=("a", "b", "c"), examples=(), copies=3, conflicts=((files[4], files[5]),), near_duplicates=()
    )
    metrics = {
        "n": 4, "accuracy": 0.5, "per_class": {}, "auto_sorted": 0.5, "auto_sorted_precision": 0.5, "ece": 0.1, "second_look": 0.25,
        "confusion": {"a": {"a": 0, "b": 2, "c": 0}, "b": {"a": 0, "b": 0, "c": 0}, "c": {"a": 0, "b": 0, "c": 2}},
    }  # fmt: skip
    manifest = dict(made.bundle.manifest) | {"metrics": {"test": metrics}}

    def render(**options):
        return files, report.render(manifest, data, tested, [judged(files[6], "b", "a", 0.95)], **options)

    return render


def section(page, title):
    return page.split(f"<h2>{title}</h2>")[1].split("<h2>")[0]


def test_photos_stand_in_the_sections_they_belong_to(rendered):
    files, page = rendered()
    mistakes = section(page, "Mistakes, the most confident first")
    assert mistakes.index(files[0].name) < mistakes.index(files[1].name)
    assert files[2].name not in mistakes
    unsure = section(page, "Least sure")
    assert unsure.index(files[1].name) < unsure.index(files[2].name)
    suspects = section(page, "Perhaps in the wrong folder")
    assert files[0].name in suspects
    assert files[6].name in suspects
    assert files[1].name not in suspects
    assert page.count("data:image/jpeg;base64,") == 6


def test_photos_and_their_folders_can_be_left_out(rendered, shapes):
    _, page = rendered(photos=False)
    assert "data:image/jpeg" not in page
    assert str(shapes) not in page


def test_photo_that_is_gone_leaves_its_card_without_a_picture(rendered, tmp_path):
    files, _ = rendered()
    hidden = files[0].rename(tmp_path / "hidden.jpg")
    try:
        _, page = rendered()
    finally:
        hidden.rename(files[0])
    assert files[0].name in section(page, "Mistakes, the most confident first")


def test_interval_by_hand():
    low, high = report.interval(0.98, 300)
    assert (round(low, 4), round(high, 4)) == (0.9571, 0.9908)
    assert report.interval(1.0, 20)[1] == 1
    assert report.interval(None, 0) is None


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to look at the report with")
def test_browser_shows_it_whole(made, tmp_path):
    file = made.bundle.path / bundle.REPORT
    picture = tmp_path / "report.png"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    shown = subprocess.run(
        [BROWSER, *options, "--enable-logging=stderr", "--window-size=1180,2400", f"--screenshot={picture}", file.as_uri()],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in shown.stderr, shown.stderr
    pixels = cv2.imread(str(picture))
    assert pixels.shape[:2] == (2400, 1180)
    # Tiles of the page: panels, charts and tables reach from top to bottom and from side to side.
    busy = [
        tile.std() > 3
        for row in (pixels[100 * i : 100 * i + 100] for i in range(1, 20))
        for tile in (row[:, :590], row[:, 590:])
    ]
    assert sum(busy) > 0.7 * len(busy)
    # The page is as wide as the window: nothing sticks out.
    wide = subprocess.run(
        [BROWSER, *options, "--window-size=1180,900", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=180, check=True,
    ).stdout  # fmt: skip
    assert wide.rstrip().endswith("</html>")


def test_judgement_of_a_photo_can_be_replaced_without_changing_the_photo(made):
    first = judged(made.bundle.path, "a", "b", 0.5)
    assert dataclasses.replace(first, label="b").right
    assert not first.right
