import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from pawsort import errors, network


def python(script, **environment):
    """Run a script in a process of its own; give what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_where_torchvision_has_its_operators_the_guard_does_nothing():
    # Stands for an installation whose compiled operators load: they are defined before the import.
    code, said = python("""
        import torch
        try:
            import torchvision
        except RuntimeError:
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from pawsort import network
        assert network._library is None
        print(network.build(2)(torch.zeros(1, 3, 64, 64)).shape)
    """)
    assert (code, said) == (0, "torch.Size([1, 2])\n")


def test_where_torchvisions_operators_cannot_load_models_work_all_the_same(tmp_path):
    # Stands for such an installation wherever the tests run: the first import of torchvision fails as it does there.
    code, said = python("""
        import importlib.abc, sys, torch

        class Broken(importlib.abc.MetaPathFinder):
            tried = 0
            def find_spec(self, name, path, target=None):
                if name == "torchvision" and not self.tried:
                    Broken.tried = 1
                    raise RuntimeError("operator torchvision::nms does not exist")
        sys.meta_path.insert(0, Broken())
        try:
            from pawsort import network
        except RuntimeError as error:
            # The operators are there after all, so that they cannot be defined again.
            assert "register" in str(error) or "duplicate" in str(error).lower(), error
            print("defined")
        else:
            assert network._library is not None
            assert network.build(2)(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
            print("defined")
        assert Broken.tried
    """)
    assert (code, said) == (0, "defined\n")


def test_any_other_failure_of_torchvision_is_told_as_it_is(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('the disk is on fire')")
    code, said = python(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from pawsort import network
    """)
    assert code == 1
    assert "the disk is on fire" in said


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return network.build(3).eval()


def test_serving_normalises_as_torchvision_trained_it(net):
    pictures = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    x = pictures.permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(network.MEAN).view(1, 3, 1, 1)) / torch.tensor(network.STD).view(1, 3, 1, 1)
    with torch.inference_mode():
        logits, features = network.Serving(net)(pictures)
        torch.testing.assert_close(logits, net(x), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(net.fc(features), logits)
    assert features.shape == (2, network.FEATURES)


def test_saved_weights_come_back(net, tmp_path):
    network.save(net, tmp_path / "weights.safetensors")
    again = network.load(tmp_path / "weights.safetensors", classes=3)
    assert not again.training
    for (name, one), other in zip(net.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_batch_norm_variances_beyond_float16_survive(tmp_path):
    net = network.build(2)
    net.bn1.running_var.fill_(1e6)
    network.save(net, tmp_path / "weights.safetensors")
    assert network.load(tmp_path / "weights.safetensors", classes=2).bn1.running_var[0] == 1e6


def test_a_backbone_gives_all_but_the_head(net):
    built = network.build(5, net.state_dict())
    assert built.fc.out_features == 5
    assert torch.equal(built.layer4[1].conv2.weight, net.layer4[1].conv2.weight)


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("conv1.weight"),
        lambda weights: weights.update({"layer9.weight": torch.zeros(1)}),
        lambda weights: weights.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}),
    ],
    ids=["missing", "unexpected", "another shape"],
)
def test_weights_of_another_network_are_refused(net, change):
    weights = dict(net.state_dict())
    change(weights)
    with pytest.raises(errors.ModelError, match="not those of a ResNet-18"):
        network.build(3, weights)


class Bomb:
    def __reduce__(self):
        return open, ("exploded", "w")


def test_a_pickle_bomb_given_as_weights_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(errors.ModelError, match="cannot be read as weights"):
            network.read_weights(tmp_path / name)
        with pytest.raises(errors.ModelError, match=name):
            network.load(tmp_path / name, classes=3)
    assert not (tmp_path / "exploded").exists()


def test_a_file_of_something_else_than_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "weights.pth")
    with pytest.raises(errors.ModelError, match="holds no weights"):
        network.read_weights(tmp_path / "weights.pth")


def test_a_missing_file_of_weights_is_named(tmp_path):
    with pytest.raises(errors.ModelError, match=r"none\.pth: no such file"):
        network.read_weights(tmp_path / "none.pth")
