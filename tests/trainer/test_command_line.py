"""`pawsort-train` as a person calls it: a process, its output, its exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

import drawn
from trainer.__main__ import main


@pytest.fixture
def command(root, cache, weights):
    """Runs `python -m trainer` from the repository and gives the finished process."""

    def start(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "trainer", *map(str, arguments)],
            cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(*arguments):
        process = start(*arguments)
        output, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    run.start = start
    run.fit = ("fit", "--init", weights, "--cache", cache, "--size", 64, "--threads", 1)
    return run


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A data set that takes a moment."""
    return drawn.write_classes(tmp_path_factory.mktemp("few"), 24, size=80, seed=2)


def test_help_names_every_command_and_option():
    runner = CliRunner()
    assert {"fit", "evaluate"} <= set(runner.invoke(main, ["--help"]).output.split())
    options = runner.invoke(main, ["fit", "--help"]).output
    for option in (
        "--data",
        "--other",
        "--init",
        "--out",
        "--name",
        "--epochs",
        "--seed",
        "--device",
        "--quick",
    ):
        assert option in options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "has no folders"),
        (lambda folder: (folder / "only").mkdir(parents=True), "has no photos"),
        (lambda folder: drawn.write_folder(folder / "only", "circles", 4), "only one class"),
    ],
)
def test_unusable_data_is_a_wrong_call_and_told(tmp_path, weights, make, message):
    make(tmp_path / "data")
    result = CliRunner().invoke(
        main,
        ["fit", "--data", str(tmp_path / "data"), "--init", str(weights), "--out", str(tmp_path / "models")],
    )
    assert result.exit_code == 2
    assert message in result.stderr
    assert str(tmp_path / "data") in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_weights_that_are_none_are_named(few, tmp_path, cache):
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    result = CliRunner().invoke(
        main,
        [
            "fit",
            "--data",
            str(few),
            "--init",
            str(tmp_path / "w.safetensors"),
            "--out",
            str(tmp_path),
            "--cache",
            str(cache),
        ],
    )
    assert result.exit_code == 1
    assert "w.safetensors" in result.stderr


def test_resume_without_an_interrupted_run_is_told(few, tmp_path):
    result = CliRunner().invoke(main, ["fit", "--data", str(few), "--out", str(tmp_path), "--resume"])
    assert result.exit_code == 2
    assert "no interrupted run to resume" in result.stderr


@pytest.mark.slow
def test_interrupted_fit_resumes_to_a_model_and_json_is_all_there_is_on_stdout(command, few, tmp_path):
    call = [
        *command.fit,
        "--data",
        few,
        "--out",
        tmp_path / "models",
        "--name",
        "shapes",
        "--epochs",
        9,
        "--json",
    ]
    process = command.start(*call)
    checkpoint = tmp_path / "models" / ".checkpoints" / "shapes.pt"
    deadline = time.monotonic() + 240
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, told = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert "go on with --resume" in told
    assert checkpoint.exists()

    other = command(*call[:-2], 8, "--json", "--resume")
    assert other.returncode == 2
    assert "another run (recipe differ)" in other.stderr

    finished = command(*call, "--resume")
    assert finished.returncode == 0, finished.stderr
    document = json.loads(finished.stdout)
    assert document["model"] == "shapes"
    assert (tmp_path / "models" / "current").resolve() == (tmp_path / "models" / "shapes").resolve()
    assert not checkpoint.exists()

    evaluated = command(
        "evaluate", "--data", few, "--models", tmp_path / "models", "--other", few / "circles", "--json"
    )
    assert evaluated.returncode == 0, evaluated.stderr
    figures = json.loads(evaluated.stdout)
    wanted = {
        "n",
        "accuracy",
        "per_class",
        "confusion",
        "auto_sorted",
        "auto_sorted_precision",
        "ece",
        "model",
    }
    assert wanted | {"other_auroc", "other_auto_sorted"} <= figures.keys()
    assert figures["n"] == 72


@pytest.mark.slow
def test_imagenet_weights_without_a_network_are_told_with_the_remedy(command, few, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # or an earlier download would serve
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    finished = command("fit", "--data", few, "--out", tmp_path, "--cache", tmp_path / "cache")
    assert finished.returncode == 1
    assert "--init PATH" in finished.stderr
    assert "Traceback" not in finished.stderr
