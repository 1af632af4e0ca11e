import dataclasses
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest

import drawn
from pawsort import errors, image
from trainer import dataset, likeness
from trainer.cache import PhotoCache
from trainer.dataset import Origin, Side


def assemble(folder, cache_folder, **fields) -> dataset.Dataset:
    found = dataset.find([folder])
    with PhotoCache(cache_folder, short_side=64) as cache:
        filled = cache.fill([photo.path for photo in found], limits=image.Limits(), workers=1)
        return dataset.assemble(found, filled.sha256, cache, **fields)


# -- Mistakes in the data are told ------------------------------------------------------------------


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(errors.DataError, match="nowhere: no such folder"):
        dataset.find([tmp_path / "nowhere"])


def test_folder_without_class_folders_is_named(tmp_path):
    drawn.write(tmp_path / "loose.png", drawn.draw("circles", 0))
    with pytest.raises(errors.DataError, match="has no folders; put the photos of each class"):
        dataset.find([tmp_path])


def test_empty_class_is_named(tmp_path):
    drawn.write_classes(tmp_path, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.DataError, match="empty: the class has no photos"):
        dataset.find([tmp_path])


def test_single_class_is_an_error(tmp_path):
    drawn.write_folder(tmp_path / "circles", "circles", 3)
    with pytest.raises(errors.DataError, match="only one class, 'circles'"):
        dataset.find([tmp_path])


def test_class_without_any_readable_photo_is_named(tmp_path):
    data = drawn.write_classes(tmp_path / "data", 4)
    (data / "notes").mkdir()
    (data / "notes" / "readme.txt").write_text("no photo")
    with pytest.raises(errors.DataError, match="class 'notes': has 0 readable, different photos; it takes 3"):
        assemble(data, tmp_path / "cache")


# -- What is a class, what is a photo ---------------------------------------------------------------


def test_classes_of_one_name_in_several_folders_are_one_class(tmp_path):
    first = drawn.write_classes(tmp_path / "first", 2)
    second = drawn.write_classes(tmp_path / "second", 3, seed=1)
    found = dataset.find([first, second])
    assert sum(photo.label == "circles" for photo in found) == 5


def test_hidden_files_and_folders_are_no_data(tmp_path):
    drawn.write_classes(tmp_path, 2)
    (tmp_path / ".trash").mkdir()
    drawn.write(tmp_path / ".trash" / "old.png", drawn.draw("circles", 9))
    drawn.write(tmp_path / "circles" / ".half.png", drawn.draw("circles", 8))
    assert len(dataset.find([tmp_path])) == 6


def test_class_names_in_two_unicode_forms_are_one_class(tmp_path):
    for form in ("NFC", "NFD"):
        folder = tmp_path / form / unicodedata.normalize(form, "Kätzchen")
        drawn.write_folder(folder, "circles", 2, seed=len(form) + ord(form[2]))
        drawn.write_folder(tmp_path / form / "犬", "squares", 2, seed=ord(form[2]))
    labels = {photo.label for photo in dataset.find([tmp_path / "NFC", tmp_path / "NFD"])}
    assert labels == {"Kätzchen", "犬"}


def test_copies_count_once_and_conflicts_not_at_all(tmp_path):
    data = drawn.write_classes(tmp_path / "data", 6)
    first, second = sorted((data / "circles").iterdir())[:2]
    shutil.copy(first, data / "circles" / "copy.jpg")
    shutil.copy(second, data / "squares" / "stray.jpg")
    assembled = assemble(data, tmp_path / "cache")
    assert assembled.copies == 1
    assert [{path.name for path in paths} for paths in assembled.conflicts] == [{second.name, "stray.jpg"}]
    assert len(assembled.examples) == 17


# -- The split --------------------------------------------------------------------------------------


def test_near_duplicates_stay_on_one_side_even_across_classes_and_mirrored(tmp_path):
    data = drawn.write_classes(tmp_path / "data", 30, size=120)
    for index, path in enumerate(sorted((data / "circles").iterdir())):
        pixels = cv2.imread(str(path))
        changed = cv2.resize(pixels if index % 2 else pixels[:, ::-1], (90, 90))
        cv2.imwrite(str(data / "squares" / f"again-{index}.jpg"), changed, [cv2.IMWRITE_JPEG_QUALITY, 60])
    assembled = assemble(data, tmp_path / "cache")
    side = {example.path.name: example.side for example in assembled.examples}
    originals = sorted((data / "circles").iterdir())
    assert [side[f"again-{index}.jpg"] for index in range(30)] == [side[path.name] for path in originals]
    assert len(set(side.values())) == 3
    assert len(assembled.near_duplicates) >= 30


def test_different_photos_are_no_near_duplicates(tmp_path):
    data = drawn.write_classes(tmp_path / "data", 40)
    assert assemble(data, tmp_path / "cache").near_duplicates == ()


def test_renaming_and_adding_photos_moves_none_to_another_side(tmp_path):
    data = drawn.write_classes(tmp_path / "data", 40)
    before = {example.sha256: example.side for example in assemble(data, tmp_path / "cache").examples}
    for path in list((data / "circles").iterdir()):
        path.rename(path.with_name(f"renamed-{path.name}"))
    drawn.write_classes(data, 20, seed=7)
    after = {example.sha256: example.side for example in assemble(data, tmp_path / "cache").examples}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 60


def test_side_given_before_is_kept_and_passed_on_to_near_duplicates(tmp_path):
    data = drawn.write_classes(tmp_path / "data", 12, size=120)
    examples = assemble(data, tmp_path / "cache").examples
    chosen = next(example for example in examples if example.side is Side.TRAIN)
    pixels = cv2.imread(str(chosen.path))
    cv2.imwrite(str(chosen.path.with_name("again.png")), cv2.resize(pixels, (100, 100)))
    previous = {chosen.sha256: Side.TEST}
    after = {e.path.name: e.side for e in assemble(data, tmp_path / "cache", previous=previous).examples}
    assert after[chosen.path.name] is after["again.png"] is Side.TEST


@pytest.mark.parametrize("count", [3, 5, 9])
def test_small_classes_have_a_photo_on_every_side(tmp_path, count):
    data = drawn.write_classes(tmp_path / "data", count)
    counts = assemble(data, tmp_path / "cache").counts()
    assert all(min(sides.values()) >= 1 for sides in counts.values()), counts


def test_fingerprint_follows_content_and_label_not_names(tmp_path):
    data = drawn.write_classes(tmp_path / "data", 5)
    before = assemble(data, tmp_path / "cache").fingerprint()
    path = next((data / "circles").iterdir())
    renamed = path.rename(path.with_name("other.jpg"))
    assert assemble(data, tmp_path / "cache").fingerprint() == before
    renamed.rename(data / "squares" / "other.jpg")
    assert assemble(data, tmp_path / "cache").fingerprint() != before


def test_grouping_is_transitive_whatever_the_block_size(monkeypatch):
    chain = [
        likeness.Likeness(*[(1 << (7 * step)) - 1] * 2, 0x5555555555555555, 0xAAAAAAAAAAAAAAAA)
        for step in range(5)
    ]
    far = likeness.Likeness(0xFFFFFFFF00000000, 0x00FF00FF00FF00FF, 0x3333333333333333, 0xCCCCCCCCCCCCCCCC)
    whole = likeness.group([*chain, far])
    monkeypatch.setattr(likeness, "_BLOCK", 2)
    assert whole == likeness.group([*chain, far]) == [0, 0, 0, 0, 0, 5]


def test_plain_picture_has_a_likeness():
    assert len(likeness.of(np.full((40, 30, 3), 77, np.uint8))) == 4


# -- Origins ----------------------------------------------------------------------------------------


def example(number, label, origin, side=Side.VALIDATION):
    digest = f"{number:064x}"
    return dataset.Example(path=Path("x"), label=label, origin=origin, sha256=digest, group=digest, side=side)


def test_what_models_found_hard_is_left_out_of_what_is_typical_where_enough_is_left():
    placed = [example(0, "left", Origin.PLACED), example(1, "right", Origin.PLACED)]
    hard = [example(2, "left", Origin.CORRECTED), example(3, "right", Origin.CONFIRMED)]
    elsewhere = [example(4, "left", Origin.PLACED, Side.TEST)]
    data = dataset.Dataset(
        labels=("left", "right"),
        examples=(*placed, *hard, *elsewhere),
        copies=0,
        conflicts=(),
        near_duplicates=(),
    )
    assert data.typical(Side.VALIDATION) == placed
    without = dataclasses.replace(data, examples=(placed[0], *hard))
    assert without.typical(Side.VALIDATION) == [placed[0], *hard]


def test_predicted_photos_are_on_the_training_side_alone_and_give_way_to_people(tmp_path):
    drawn.write_classes(tmp_path / "data", 40)
    found = dataset.find([tmp_path / "data"])
    guessed = {photo.path for photo in found[::2]}
    copied = next(photo.path for photo in found if photo.path not in guessed)
    twin = shutil.copy(copied, tmp_path / "twin.jpg")
    found = [
        dataclasses.replace(photo, origin=Origin.PREDICTED) if photo.path in guessed else photo
        for photo in found
    ]
    found.append(dataset.Found(path=twin, label="squares", origin=Origin.PREDICTED))
    with PhotoCache(tmp_path / "cache", short_side=64) as cache:
        filled = cache.fill([photo.path for photo in found], limits=image.Limits(), workers=1)
        data = dataset.assemble(found, filled.sha256, cache)
    sides = {side: [e.origin for e in data.on(side)].count(Origin.PREDICTED) for side in Side}
    assert sides[Side.TRAIN] > 30
    assert (sides[Side.VALIDATION], sides[Side.TEST]) == (0, 0)
    assert data.conflicts == ()
    assert next(e.origin for e in data.examples if e.path == copied) is Origin.PLACED


def test_a_photo_whose_content_changed_since_it_was_labelled_is_left_out(tmp_path):
    data = drawn.write_classes(tmp_path / "data", 6)
    found = dataset.find([data])
    found[0] = dataclasses.replace(found[0], sha256="0" * 64)
    with PhotoCache(tmp_path / "cache", short_side=64) as cache:
        filled = cache.fill([photo.path for photo in found], limits=image.Limits(), workers=1)
        assembled = dataset.assemble(found, filled.sha256, cache)
    assert len(assembled.examples) == 17
