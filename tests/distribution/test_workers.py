"""Two worker processes: one writes, a lost one ends the job, a restarted job goes on."""

import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

TESTS = pathlib.Path(__file__).parent.parent
sys.path.append(str(TESTS.parent / "examples"))

from processes import Configuration  # noqa: E402

pytestmark = pytest.mark.slow

LIMIT = 200  # seconds for a job; one that hangs is killed, and fails


def job(folder, how):
    """The exit codes and outputs of both workers."""
    environments = Configuration(workers=2).environments()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "distribution.worker", folder, how],
            cwd=TESTS,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for environment in environments
    ]
    end = time.monotonic() + LIMIT
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=max(end - time.monotonic(), 1))[0])
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [process.returncode for process in processes], outputs


def weights(folder, index):
    with np.load(folder / f"weights_{index}.npz") as file:
        return [file[name] for name in file.files]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    codes, outputs = job(folder, "whole")
    assert codes == [0, 0], outputs
    return folder


def assert_same_weights(actual, expected):
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_chief_alone_writes(undisturbed):
    lines = (undisturbed / "log.csv").read_text().splitlines()
    assert len(lines) == 1 + 4  # a second writer would add its own
    # Batch normalisation keeps averages of its own on each worker while they train.
    assert_same_weights(weights(undisturbed, 1), weights(undisturbed, 0))
    names = {path.name for path in undisturbed.iterdir()}
    assert names == {
        "backup",
        "last.keras",
        "log.csv",
        "student",
        "weights_0.npz",
        "weights_1.npz",
    }
    assert [path.name for path in (undisturbed / "backup").iterdir()] == ["epoch_000004.weights.h5"]


@pytest.mark.parametrize(("how", "victim"), [("first dies", 0), ("second dies", 1)])
def test_a_lost_worker_ends_the_job_and_the_next_one_goes_on(undisturbed, tmp_path, how, victim):
    codes, outputs = job(tmp_path, how)
    assert codes[victim] == -9, outputs
    assert codes[1 - victim] == 1, outputs
    assert (
        "RuntimeError: Another of the 2 workers ended or cannot be reached" in outputs[1 - victim]
    )
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["epoch_000002.weights.h5"]

    codes, outputs = job(tmp_path, "whole")
    assert codes == [0, 0], outputs
    assert_same_weights(weights(tmp_path, 0), weights(undisturbed, 0))


def told(tmp_path, how):
    """For each worker, what each attempt raised."""
    codes, outputs = job(tmp_path, how)
    assert codes == [0, 0], outputs
    return [
        dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)
        for output in outputs
    ]


def test_mistakes_are_told(tmp_path):
    for words in told(tmp_path, "mistakes"):
        assert words["plain_model"] == "nothing"
        assert words["dense_model"] == "nothing"
        assert words["another_strategy"] == "nothing"
        assert words["files_are_there"] == "nothing"
        assert "use `keras_ssd.callbacks.Backup(folder)`" in words["keras_backups"]
        assert (
            "of the backups must be the same on all workers, got [2, 0]"
            in words["backups_of_their_own"]
        )


def test_under_the_strategy_of_tensorflow_keras_fails_and_a_distiller_says_what_to_use(tmp_path):
    for words in told(tmp_path, "bare"):
        assert 'use `keras_ssd.distribution.get_strategy("multi_worker")`' in words["distiller"]
        # Once Keras trains under TensorFlow's own strategy, ours is not needed any more.
        assert "PerReplica" in words["dense_model"]
