import os
import shutil

import numpy as np
import pytest

import drawn
from pawsort import errors, image
from trainer.cache import PhotoCache

LIMITS = image.Limits()


def fill(folder, paths):
    with PhotoCache(folder, short_side=64) as cache:
        filled = cache.fill(paths, limits=LIMITS, workers=1)
        return filled, {path: cache.pixels(digest).copy() for path, digest in filled.sha256.items()}


@pytest.fixture
def photos(tmp_path):
    return drawn.write_folder(tmp_path / "photos", "circles", 6, size=(96, 72), suffix=".png")


def test_second_fill_decodes_only_what_is_new(tmp_path, photos):
    assert fill(tmp_path / "cache", photos[:4])[0].decoded == 4
    moved = photos[0].rename(photos[0].with_name("moved.png"))
    filled, _ = fill(tmp_path / "cache", [moved, *photos[1:]])
    assert filled.decoded == 2
    assert len(filled.sha256) == 6


def test_pixels_are_those_of_the_photo(tmp_path, photos):
    _, pixels = fill(tmp_path / "cache", photos)
    for path in photos:
        expected = image.whole(image.decode(path.read_bytes(), LIMITS, 64).pixels, 64)
        assert min(expected.shape[:2]) == 64
        np.testing.assert_array_equal(pixels[path], expected)


def test_changed_photo_is_decoded_again(tmp_path, photos):
    fill(tmp_path / "cache", photos)
    drawn.write(photos[0], drawn.draw("squares", 99))
    assert fill(tmp_path / "cache", photos)[0].decoded == 1


def test_unreadable_files_are_skipped_named_and_not_tried_again(tmp_path, photos):
    text = tmp_path / "photos" / "notes.jpg"
    text.write_text("not a photo")
    cut = tmp_path / "photos" / "cut.jpg"
    cut.write_bytes(drawn.encode(drawn.draw("circles", 1, 300))[:-4000])
    pipe = tmp_path / "photos" / "pipe.jpg"
    os.mkfifo(pipe)
    missing = tmp_path / "photos" / "missing.jpg"
    first, _ = fill(tmp_path / "cache", [*photos, text, cut, pipe, missing])
    again, _ = fill(tmp_path / "cache", [*photos, text, cut, pipe, missing])
    assert {skipped.path: skipped.reason for skipped in first.skipped} == {
        text: "not_an_image",
        cut: "truncated",
        pipe: "unreadable",
        missing: "unreadable",
    }
    assert again.skipped == first.skipped or {s.path: s.reason for s in again.skipped} == {
        s.path: s.reason for s in first.skipped
    }
    assert again.decoded == 0


def test_every_copy_of_an_unreadable_file_is_named(tmp_path, photos):
    paths = [tmp_path / "photos" / name for name in ("a.jpg", "b.jpg")]
    for path in paths:
        path.write_text("not a photo")
    filled, _ = fill(tmp_path / "cache", [*photos, *paths])
    assert {skipped.path for skipped in filled.skipped} == set(paths)


def test_copies_share_one_decoding(tmp_path, photos):
    twin = photos[0].with_name("twin.png")
    shutil.copy(photos[0], twin)
    filled, pixels = fill(tmp_path / "cache", [*photos, twin])
    assert filled.decoded == 6
    np.testing.assert_array_equal(pixels[twin], pixels[photos[0]])


def test_half_written_cache_heals(tmp_path, photos):
    _, before = fill(tmp_path / "cache", photos)
    index, pixels = tmp_path / "cache" / "index-1-64.jsonl", tmp_path / "cache" / "pixels-1-64.bin"
    pixels.write_bytes(pixels.read_bytes()[:-100])
    index.write_bytes(index.read_bytes() + b'{"sha256": "ab')
    filled, after = fill(tmp_path / "cache", photos)
    assert filled.decoded == 1
    for path in photos:
        np.testing.assert_array_equal(after[path], before[path])


def test_pixels_of_photos_that_are_gone_are_removed(tmp_path, photos):
    unreadable = tmp_path / "photos" / "notes.jpg"
    unreadable.write_text("not a photo")
    before, pixels = fill(tmp_path / "cache", [*photos, unreadable])
    gone = {photos[0], photos[3]}
    file = tmp_path / "cache" / "pixels-1-64.bin"
    with PhotoCache(tmp_path / "cache", short_side=64) as cache:
        kept = {digest for path, digest in before.sha256.items() if path not in gone}
        cache.pixels(before.sha256[photos[5]])  # the file is mapped
        assert cache.forget_all_but(kept) == 2
        for path in set(photos) - gone:
            np.testing.assert_array_equal(cache.pixels(before.sha256[path]), pixels[path])
        assert file.stat().st_size == sum(pixels[path].size for path in set(photos) - gone)
        for path in gone:
            assert pixels[path].tobytes() not in file.read_bytes()
        assert cache.forget_all_but(kept) == 0
        assert cache.fill(photos[:1], limits=LIMITS, workers=1).decoded == 1
    again, after = fill(tmp_path / "cache", [*photos, unreadable])
    assert again.decoded == 1
    for path in photos:
        np.testing.assert_array_equal(after[path], pixels[path])
    assert [skipped.path for skipped in again.skipped] == [unreadable]


def test_a_crash_while_photos_are_removed_costs_no_more_than_decoding(tmp_path, photos, monkeypatch):
    before, pixels = fill(tmp_path / "cache", photos)
    with PhotoCache(tmp_path / "cache", short_side=64) as cache, monkeypatch.context() as crash:
        crash.setattr(cache, "_note", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cache.forget_all_but({before.sha256[photos[5]]})
    again, after = fill(tmp_path / "cache", photos)
    assert again.decoded == 6
    for path in photos:
        np.testing.assert_array_equal(after[path], pixels[path])


def test_second_user_of_the_folder_is_refused(tmp_path):
    with PhotoCache(tmp_path, short_side=64), pytest.raises(errors.DataError, match="another training run"):
        PhotoCache(tmp_path, short_side=64)
    PhotoCache(tmp_path, short_side=64).close()


def test_progress_ends_at_the_total(tmp_path, photos):
    seen = []
    with PhotoCache(tmp_path / "cache", short_side=64) as cache:
        cache.fill(photos, limits=LIMITS, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 6)
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)


@pytest.mark.real
def test_hostile_files_are_skipped_and_the_others_decoded(tmp_path, shared, photos):
    hostile = sorted((shared / "data" / "hostile").iterdir())
    filled, _ = fill(tmp_path / "cache", [*hostile, *photos])
    reasons = {skipped.path.name: skipped.reason for skipped in filled.skipped}
    assert set(photos) <= filled.sha256.keys()
    assert len(filled.sha256) + len(reasons) == len(hostile) + len(photos)
    crashes = [path.name for path in hostile if path.suffix == ".crash"]
    assert crashes
    assert all(name in reasons or name in {p.name for p in filled.sha256} for name in crashes)
