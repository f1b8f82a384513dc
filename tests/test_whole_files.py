"""Files that are there whole or not at all, and who of several processes writes one."""

import errno
import signal
import subprocess
import sys

import pytest

from keras_ssd.whole_files import claimed, replaced_when_complete

HOLD = """
import sys, time
sys.path.insert(0, sys.argv[2])
import whole_files
with whole_files.claimed(sys.argv[1]) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process that claims a file and holds it until it is killed."""
    import keras_ssd.whole_files

    folder = keras_ssd.whole_files.__file__.rpartition("/")[0]
    processes = []

    def start(path):
        command = [sys.executable, "-c", HOLD, str(path), folder]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1], processes[-1].stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def write_half_and_fail(path):
    path.write_text("half")
    raise OSError("the disk is full")


def test_a_file_is_there_once_it_is_whole(tmp_path):
    with replaced_when_complete(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "half"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with (
        pytest.raises(OSError, match="full"),
        replaced_when_complete(tmp_path / "a.txt") as partial,
    ):
        write_half_and_fail(partial)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_is_claimed_once_at_a_time(tmp_path):
    with claimed(tmp_path / "a") as first, claimed(tmp_path / "a") as second:
        assert (first, second) == (True, False)
        with claimed(tmp_path / "b") as other:
            assert other
    with claimed(tmp_path / "a") as again:
        assert again
    assert not any(tmp_path.iterdir())


def test_one_that_is_refused_ends_no_claim(tmp_path):
    with claimed(tmp_path / "a"):
        with claimed(tmp_path / "a") as second:
            assert not second
        with claimed(tmp_path / "a") as third:
            assert not third


def test_a_failure_ends_the_claim(tmp_path):
    with pytest.raises(RuntimeError), claimed(tmp_path / "a"):
        raise RuntimeError
    with claimed(tmp_path / "a") as mine:
        assert mine


def test_another_process_is_seen_and_its_death_ends_its_claim(tmp_path, other_process):
    process, said = other_process(tmp_path / "a")
    assert said == "True"
    with claimed(tmp_path / "a") as mine:
        assert not mine
    process.send_signal(signal.SIGKILL)
    process.wait()
    with claimed(tmp_path / "a") as mine:
        assert mine
    assert not any(tmp_path.iterdir())


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    import fcntl

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match=r"share a folder by locks.*No locks.*shard\(i, n\)"):
        claimed(tmp_path / "a").__enter__()


def test_claiming_what_another_one_gave_back_meanwhile_is_no_claim(tmp_path, monkeypatch):
    """Between opening the file of the claim and locking it, its owner deletes it."""
    import keras_ssd.whole_files as module

    lock = module._locked

    def locked(file):
        (tmp_path / ".claim-a").unlink()
        return lock(file)

    monkeypatch.setattr(module, "_locked", locked)
    with claimed(tmp_path / "a") as mine:
        assert not mine
