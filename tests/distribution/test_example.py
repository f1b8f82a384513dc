"""The public command that compares configurations on a user's own network."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from example_modules import EXAMPLES, example

sys.path.append(str(EXAMPLES))

from processes import Configuration, run

FEW = ["--steps=2", "--batch_size=8", "--preset=kd"]


def equality(*options):
    """What the command prints, and its exit code."""
    command = [sys.executable, EXAMPLES / "equality.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    return done.stdout + done.stderr, done.returncode


def save_network(path, *inner):
    """A user's network of images of 12 pixels, with a bias in front of what may normalise it."""
    layers = [
        keras.Input((12, 12, 3)),
        keras.layers.Rescaling(1 / 128, -1),
        keras.layers.Conv2D(4, 3, strides=2),
        *inner,
        keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(5),
    ]
    keras.Sequential(layers).save(path)
    return f"--student={path}"


@pytest.mark.slow
def test_configurations_are_equal_on_the_default_network():
    printed, code = equality(*FEW)
    assert code == 0, printed
    rows = [line.split() for line in printed.splitlines()]
    names = ["1 replica", "2 replicas", "4 replicas", "2 workers"]
    assert [" ".join(row[:2]) for row in rows if row[1:2] and " ".join(row[:2]) in names] == names
    assert printed.count(" equal ") == 3


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "mixed_bfloat16"])
def test_a_bias_whose_gradient_is_0_is_no_difference(tmp_path, precision):
    student = save_network(
        tmp_path / "my.keras", keras.layers.BatchNormalization(synchronized=True)
    )
    options = "--replicas=1,2", "--workers=0", f"--precision={precision}"
    printed, code = equality(student, *FEW, *options)
    assert code == 0, printed


@pytest.mark.slow
def test_statistics_of_each_replica_are_a_difference_and_told_before(tmp_path):
    student = save_network(tmp_path / "my.keras", keras.layers.BatchNormalization())
    printed, code = equality(student, *FEW, "--replicas=1,2", "--workers=0")
    assert code == 1, printed
    told = printed.index("differs by design: batch normalisation")
    assert told < printed.index("configuration") < printed.index(" different ")


@pytest.mark.slow
def test_random_layers_are_a_difference_and_told_before(tmp_path):
    student = save_network(tmp_path / "my.keras", keras.layers.Dropout(0.5))
    printed, code = equality(student, *FEW, "--replicas=1,2", "--workers=0")
    assert code == 1, printed
    assert "draws other random numbers on each replica" in printed


MISTAKES = {
    "no network": (["--student=resnet9000"], "'resnet9000' is no file and no name of"),
    "nothing to compare": (["--replicas=1", "--workers=0"], "two configurations or more"),
    "no number": (["--replicas=one"], "Give --replicas such as 1,2,4"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_a_sentence(name):
    options, words = MISTAKES[name]
    printed, code = equality(*options)
    assert code == 1
    assert words in printed.splitlines()[-1]


# Processes; without TensorFlow in them, so that they start at once.


def python(code):
    return [sys.executable, "-c", code]


def test_a_process_that_hangs_is_ended_and_told(tmp_path):
    commands = [python("pass"), python("import time; time.sleep(60)")]
    told = run(Configuration(workers=2), commands, tmp_path / "log", 0.7)
    assert told == "worker 1 had not ended after 0.7 seconds and was stopped"


def test_a_process_that_fails_is_told_and_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("processes._GRACE", 0.2)
    commands = [python("import time; time.sleep(60)"), python("raise ValueError('no such')")]
    told = run(Configuration(workers=2), commands, tmp_path / "log", 60.0)
    assert told == "worker 1 ended with code 1: ValueError: no such"


def test_processes_that_end_well_are_no_failure(tmp_path):
    assert run(Configuration(), [python("print(1)")], tmp_path / "log", 60.0) is None
    assert (tmp_path / "log0").read_text() == "1\n"


def test_each_worker_is_told_of_all_and_of_itself(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "that of somebody else")
    assert "TF_CONFIG" not in Configuration(replicas=2).environments()[0]
    configs = [json.loads(e["TF_CONFIG"]) for e in Configuration(workers=3).environments()]
    assert [config["task"] for config in configs] == [
        {"type": "worker", "index": index} for index in range(3)
    ]
    addresses = configs[0]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    assert all(config["cluster"]["worker"] == addresses for config in configs)


# Differences.


def test_differences_are_relative_with_a_floor():
    kernel, bias = np.full(99, 1.0), np.array([1e-18])
    with example("equality") as script:
        expected = {"0 kernel": kernel, "1 bias": bias, script._LOSSES: np.array([2.0, 4.0])}
        noise = {**expected, "1 bias": 3 * bias}
        assert script._differences(noise, expected)[1] < 1e-15
        moved = {**expected, "0 kernel": 1.001 * kernel, script._LOSSES: np.array([2.0, 4.4])}
        losses, weights, worst = script._differences(moved, expected)
        np.testing.assert_allclose((losses, weights), (0.1, 1e-3))
        assert worst == "kernel"
        broken = {**expected, "1 bias": np.array([np.nan])}
        assert script._differences(broken, expected)[1:] == (np.inf, "bias")
