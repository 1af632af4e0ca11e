import dataclasses
import json

import numpy as np
import pytest
import torch

import drawn
from pawsort import errors, network
from trainer import augment, fit

RECIPE = fit.Recipe(
    epochs=3,
    least_steps=0,
    batch=8,
    first_size=32,
    last_size=48,
    rate=0.02,
    head_factor=2.0,
    depth_factor=1.0,
    averaging=0.8,
)


class Drawings:
    """Drawn photos in memory, as fit.Photos."""

    def __init__(self, per_class=(16, 16), seed=0):
        self.targets = np.repeat(np.arange(len(per_class)), per_class)
        self.weights = np.ones(len(self.targets))
        self._pixels = [
            drawn.draw(drawn.LABELS[target], seed + number, 56) for number, target in enumerate(self.targets)
        ]

    def pixels(self, index):
        return self._pixels[index]


def run(checkpoint, *, photos=None, recipe=RECIPE, seed=3, **fields):
    torch.manual_seed(seed)
    return fit.train(
        network.build(2),
        photos or Drawings(),
        recipe,
        seed=seed,
        device=torch.device("cpu"),
        checkpoint=checkpoint,
        identity=fields.pop("identity", {"recipe": repr(recipe), "seed": seed}),
        validate=fields.pop("validate", lambda model: 0.5),
        **fields,
    )


def assert_same_weights(first, second):
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_it_learns_shapes(tmp_path):
    photos = Drawings((40, 40))
    unseen = Drawings((20, 20), seed=5000)
    recipe = dataclasses.replace(RECIPE, epochs=8)
    model, history = run(tmp_path / "c.pt", photos=photos, recipe=recipe)
    pictures = np.stack([unseen.pixels(index)[4:52, 4:52] for index in range(40)])
    assert fit.validation_accuracy(model, pictures, unseen.targets, torch.device("cpu")) > 0.85
    assert history.loss[-1] < history.loss[0]


@pytest.mark.parametrize(("least_steps", "epochs"), [(0, 3), (12, 3), (13, 4), (17, 5)])
def test_few_photos_are_gone_through_more_often(tmp_path, least_steps, epochs):
    # 32 photos, 8 a step: 4 steps an epoch.
    recipe = dataclasses.replace(RECIPE, least_steps=least_steps)
    told = []
    _, history = run(tmp_path / "c.pt", recipe=recipe, progress=told.append)
    assert len(history.loss) == epochs
    assert (told[-1].step, told[-1].steps, told[-1].epochs) == (4 * epochs, 4 * epochs, epochs)


def test_old_weights_have_their_share_in_the_new_ones(tmp_path):
    torch.manual_seed(3)
    old = network.build(2).state_dict()
    plain, _ = run(tmp_path / "plain.pt", recipe=dataclasses.replace(RECIPE, epochs=1))
    mixed, _ = run(tmp_path / "mixed.pt", recipe=dataclasses.replace(RECIPE, epochs=1, old_share=0.25))
    for name, weights in mixed.state_dict().items():
        if weights.is_floating_point():
            expected = 0.25 * old[name] + 0.75 * plain.state_dict()[name]
            torch.testing.assert_close(weights, expected, msg=name)


def test_kept_layers_keep_their_weights_and_the_others_learn(tmp_path):
    torch.manual_seed(3)
    before = network.build(2).state_dict()
    # As a list, which is what a recipe read back from a bundle has.
    after, _ = run(
        tmp_path / "c.pt", recipe=dataclasses.replace(RECIPE, epochs=1, kept=["conv1", "bn1", "layer1"])
    )
    changed = {name for name, weights in after.named_parameters() if not torch.equal(weights, before[name])}
    assert not {name for name in changed if name.startswith(("conv1", "bn1", "layer1"))}
    assert {name.partition(".")[0] for name in changed} == {"layer2", "layer3", "layer4", "fc"}


def test_one_seed_is_one_run_and_another_seed_another(tmp_path):
    first, history = run(tmp_path / "1.pt")
    second, again = run(tmp_path / "2.pt")
    other, _ = run(tmp_path / "3.pt", seed=4)
    assert_same_weights(first, second)
    assert history.loss == again.loss
    assert not torch.equal(first.fc.weight, other.fc.weight)


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_interrupted_run_resumes_to_the_same_result(tmp_path, steps):
    whole, expected = run(tmp_path / "whole.pt")
    seen = []
    with pytest.raises(fit.InterruptedFit):
        run(tmp_path / "c.pt", progress=seen.append, stop=lambda: len(seen) == steps)
    assert seen[-1].step == steps
    resumed, history = run(tmp_path / "c.pt", progress=seen.append)
    assert [progress.step for progress in seen] == list(range(1, 13))
    assert_same_weights(whole, resumed)
    assert (history.loss, history.accuracy) == (expected.loss, expected.accuracy)


def test_run_killed_between_checkpoints_goes_on_from_the_last_epoch(tmp_path):
    class Killed(BaseException):
        pass

    def kill(progress):
        if progress.step == 6:  # in the second epoch of four steps each
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "c.pt", progress=kill)
    seen = []
    resumed, _ = run(tmp_path / "c.pt", progress=seen.append)
    assert seen[0].step == 5
    assert_same_weights(run(tmp_path / "whole.pt")[0], resumed)


def test_checkpoint_of_another_run_is_refused(tmp_path):
    run(tmp_path / "c.pt")
    with pytest.raises(errors.DataError, match="another run .*data, seed differ"):
        run(tmp_path / "c.pt", identity={"recipe": repr(RECIPE), "seed": 9, "data": "x"})


def test_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "c.pt").write_bytes(b"nonsense")
    with pytest.raises(errors.DataError, match=r"c\.pt: cannot be read as a checkpoint"):
        run(tmp_path / "c.pt")


def test_mistake_in_the_picture_thread_surfaces(tmp_path):
    photos = Drawings()
    photos.pixels = lambda index: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "c.pt", photos=photos)


def test_progress_tells_where_a_run_is(tmp_path):
    seen = []
    _, history = run(tmp_path / "c.pt", progress=seen.append, validate=lambda model: 0.75)
    assert [progress.epoch for progress in seen] == [1] * 4 + [2] * 4 + [3] * 4
    assert seen[0].steps == 12
    assert seen[0].validation is None
    assert seen[4].validation == 0.75
    assert seen[-1].seconds_left == 0
    assert all(progress.photos_per_second > 0 for progress in seen)
    assert history.validation == [0.75] * 3
    json.dumps(dataclasses.asdict(history))


def test_fewer_photos_than_a_batch_are_enough(tmp_path):
    run(tmp_path / "c.pt", photos=Drawings((2, 3)), recipe=dataclasses.replace(RECIPE, epochs=1))


# -- Which photos an epoch takes --------------------------------------------------------------------


def order(photos, balance, seed=0):
    recipe = dataclasses.replace(RECIPE, balance=balance)
    return fit._order(photos, recipe, np.random.default_rng(seed))


def test_equal_classes_are_seen_once_each_epoch():
    assert sorted(order(Drawings((20, 20)), 0.5)) == list(range(40))


def test_rare_class_is_seen_more_often():
    photos = Drawings((100, 5))
    seen = {
        balance: np.mean([photos.targets[order(photos, balance, s)].mean() for s in range(20)])
        for balance in (0, 0.5, 1)
    }
    assert seen[0] == pytest.approx(5 / 105)
    assert seen[0.5] == pytest.approx(20**0.5 * 5 / (20**0.5 * 5 + 100), rel=0.05)
    assert seen[1] == pytest.approx(0.5, rel=0.05)


def test_less_trusted_labels_are_seen_less_often():
    photos = Drawings((20, 20))
    photos.weights[::2] = 0.25
    counts = np.bincount(np.concatenate([order(photos, 0, seed) for seed in range(50)]), minlength=40)
    assert counts[::2].sum() / counts[1::2].sum() == pytest.approx(0.25, rel=0.05)


def test_pictures_grow_from_the_first_size_to_the_last():
    sizes = [fit.picture_size(share, RECIPE) for share in np.linspace(0, 1, 50)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (32, 48)


# -- Augmentation -----------------------------------------------------------------------------------

EVERYTHING = augment.Augmentation(whole=0.4, small=0.3, grey=0.5, blur=0.5, style=0.9)


@pytest.mark.parametrize("shape", [(80, 60), (1, 1), (3, 200), (500, 9)])
def test_pictures_of_any_photo_have_the_asked_size(shape):
    photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pictures = augment.batch([photo] * 60, 32, EVERYTHING, np.random.default_rng(1))
    assert pictures.shape == (60, 32, 32, 3)
    assert pictures.dtype == np.uint8


def test_pictures_depend_on_the_generator_alone():
    photos = [drawn.draw("circles", seed) for seed in range(30)]
    first, second, third = (
        augment.batch(photos, 32, EVERYTHING, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


def test_photo_itself_is_never_changed():
    photo = drawn.draw("circles", 0)
    photo.setflags(write=False)
    augment.batch([photo] * 60, 32, EVERYTHING, np.random.default_rng(0))


def test_without_any_change_asked_for_a_crop_of_everything_is_the_photo():
    nothing = augment.Augmentation(whole=0, small=0, least_area=1.0, colour=0, grey=0, blur=0, style=0)
    photo = drawn.draw("circles", 0, 32)
    for picture in augment.batch([photo] * 8, 32, nothing, np.random.default_rng(0)):
        assert (picture == photo).all() or (picture == photo[:, ::-1]).all()


@pytest.mark.parametrize("style", augment.STYLES, ids=lambda style: style.__name__.strip("_"))
def test_style_changes_the_look_and_keeps_the_shape(style):
    photo = drawn.draw("triangles", 4)
    changed = style(photo, np.random.default_rng(0))
    assert changed.shape == photo.shape
    assert changed.dtype == np.uint8
    assert np.abs(changed.astype(int) - photo).mean() > 1
