"""Several processes score one pool into one folder."""

import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from data.mining.networks import images, network
from keras_ssd.data.mining import array_pool, scores, scoring
from keras_ssd.data.mining.records import Record
from keras_ssd.data.mining.scoring import score
from keras_ssd.whole_files import claimed

COUNT, CHUNK = 45, 8
IMAGES = images(COUNT)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", CHUNK)


@pytest.fixture(scope="module")
def model():
    return network(classes=4, seed=1)


@pytest.fixture
def expected(model, tmp_path):
    """The folder that one process alone comes to."""
    run(model, Noted(), tmp_path / "alone")
    return tmp_path / "alone"


class Noted:
    """A pool that notes what is read of it, and does something before it hands out an image."""

    name, size = "pool", COUNT

    def __init__(self, at=None, do=None, order=range(COUNT)):
        self.starts, self.numbers = [], set()
        self._at, self._do, self._order = at, do, order

    def read(self, start=0):
        self.starts.append(start)
        for number in range(start, COUNT):
            if number == self._at:
                self._do()
            self.numbers.add(number)
            row = self._order[number]
            yield Record(f"{row:04d}", "", IMAGES[row])


def run(model, pool, folder, **options):
    return score(model, pool, folder, **{"target": None, "batch_size": 4, "verbose": 0, **options})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir())}


def chunk(number):
    return f"{number:08d}.jsonl"


def numbers_of(*chunks):
    return {n for number in chunks for n in range(CHUNK * number, min(CHUNK * number + 8, COUNT))}


def waiting(monkeypatch, module, *actions):
    """Runs one action after the other where the module would wait for another process."""
    left = list(actions)
    clock = types.SimpleNamespace(sleep=lambda _: left.pop(0)(), perf_counter=time.perf_counter)
    monkeypatch.setattr(module, "time", clock)
    return left


class Other:
    """Another process that is at a file: a lock of another open file is as good."""

    def __init__(self, path):
        path.parent.mkdir(exist_ok=True)
        self._claim, self._path = claimed(path), path
        assert self._claim.__enter__()

    def finish(self, source):
        shutil.copy(source / self._path.name, self._path)
        self.die()

    def die(self):
        self._claim.__exit__(None, None, None)


# --- Who does what -------------------------------------------------------------------------------


def test_what_another_wrote_meanwhile_is_not_read(model, expected, tmp_path):
    folder = tmp_path / "a"
    pool = Noted(3, lambda: [shutil.copy(expected / chunk(n), folder) for n in (2, 4)])
    result = run(model, pool, folder)
    assert contents(folder) == contents(expected)
    assert not pool.numbers & numbers_of(2, 4) - {16, 32}  # an image tells whether the order is one
    assert pool.starts == [0, 24, 40, 32]
    assert result.complete


def test_another_wrote_it_just_before_it_was_claimed(model, expected, tmp_path, monkeypatch):
    original = scores.Scores.claimed

    def claimed_late(self, number):
        if number == 2:
            shutil.copy(expected / chunk(2), tmp_path / "a")
        return original(self, number)

    monkeypatch.setattr(scores.Scores, "claimed", claimed_late)
    pool = Noted()
    run(model, pool, tmp_path / "a")
    assert contents(tmp_path / "a") == contents(expected)
    assert not pool.numbers & numbers_of(2) - {16}


def test_another_one_is_at_work_in_front(model, expected, tmp_path, monkeypatch):
    """From the middle of what is left to its end, then from the middle of what is left before."""
    other = Other(tmp_path / "a" / chunk(0))
    left = waiting(monkeypatch, scoring, lambda: other.finish(expected))
    pool = Noted()
    run(model, pool, tmp_path / "a")
    assert contents(tmp_path / "a") == {**contents(expected)}
    assert pool.starts == [24, 16, 8, 0]  # the last one to see whether the order is one
    assert not left


def test_the_chunk_of_a_dead_one_is_taken_over(model, expected, tmp_path, monkeypatch):
    other = Other(tmp_path / "a" / chunk(1))
    waiting(monkeypatch, scoring, lambda: None, lambda: None, other.die)
    pool = Noted()
    run(model, pool, tmp_path / "a")
    assert contents(tmp_path / "a") == contents(expected)
    assert pool.starts == [0, 24, 16, 8]


def test_a_claim_that_a_kill_left_behind(model, expected, tmp_path):
    (tmp_path / "a").mkdir()
    for number in (0, 3):
        (tmp_path / "a" / f".claim-{chunk(number)}").touch()
    pool = Noted()
    run(model, pool, tmp_path / "a")
    assert contents(tmp_path / "a") == contents(expected)
    assert pool.starts == [0]


def test_a_broken_chunk_that_another_one_mends(model, expected, tmp_path, monkeypatch):
    shutil.copytree(expected, tmp_path / "a")
    (tmp_path / "a" / chunk(2)).write_bytes(b"cut")
    other = Other(tmp_path / "a" / chunk(2))
    waiting(monkeypatch, scoring, lambda: None, lambda: other.finish(expected))
    pool = Noted()
    run(model, pool, tmp_path / "a")
    assert contents(tmp_path / "a") == contents(expected)
    assert pool.starts == [40, 16]  # both to see whether the order is one


def test_a_pass_that_is_interrupted_while_it_waits(model, expected, tmp_path, monkeypatch):
    other = Other(tmp_path / "a" / chunk(5))

    def interrupt():
        raise KeyboardInterrupt

    waiting(monkeypatch, scoring, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(model, Noted(), tmp_path / "a")
    other.die()
    wanted = contents(expected)
    assert contents(tmp_path / "a") == {n: wanted[n] for n in wanted if n != chunk(5)}


def test_nothing_is_left_behind_by_a_mistake(model, tmp_path):
    def fail():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        run(model, Noted(3, fail), tmp_path / "deep" / "er")
    assert not any(tmp_path.iterdir())


def test_progress_counts_what_others_write(model, expected, tmp_path, monkeypatch, capsys):
    shown = []
    bar = types.SimpleNamespace(update=shown.append)
    monkeypatch.setattr(scoring.keras.utils, "Progbar", lambda *_, **__: bar)
    other = Other(tmp_path / "a" / chunk(0))
    waiting(monkeypatch, scoring, lambda: other.finish(expected))
    pool = Noted(25, lambda: shutil.copy(expected / chunk(4), tmp_path / "a"))
    run(model, pool, tmp_path / "a", verbose=1)
    assert shown == sorted(shown)
    assert shown[-2:] == [COUNT - CHUNK, COUNT]
    assert capsys.readouterr().out.startswith(f"pool: {COUNT} images scored")


# --- One header and one order --------------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False])
def test_two_that_begin_at_the_same_moment(model, expected, tmp_path, same):
    """The header comes while the first chunk is scored."""
    folder, source = tmp_path / "a", expected
    if not same:
        source = run(model, Noted(), tmp_path / "b", temperature=2.0).folder
    pool = Noted(3, lambda: shutil.copy(source / "header.json", folder))
    if same:
        run(model, pool, folder)
        assert contents(folder) == contents(expected)
        return
    with pytest.raises(ValueError, match=r"another setting \(`temperature` is 2.0 there and 1.0"):
        run(model, pool, folder)
    assert list(contents(folder)) == ["header.json"]


def test_all_was_written_by_one_of_another_setting(model, tmp_path, monkeypatch):
    run(model, Noted(), tmp_path / "b", temperature=2.0)
    others = [Other(tmp_path / "a" / chunk(n)) for n in range(6)]

    def finish():
        shutil.copy(tmp_path / "b" / "header.json", tmp_path / "a")
        for other in others:
            other.finish(tmp_path / "b")

    waiting(monkeypatch, scoring, finish)
    with pytest.raises(ValueError, match=r"another setting \(`temperature` is 2.0 there and 1.0"):
        run(model, Noted(), tmp_path / "a")


def test_another_one_is_at_the_header(model, expected, tmp_path, monkeypatch):
    other = Other(tmp_path / "a" / "header.json")
    left = waiting(monkeypatch, scores, lambda: None, lambda: other.finish(expected))
    run(model, Noted(), tmp_path / "a")
    assert contents(tmp_path / "a") == contents(expected)
    assert not left


def test_another_order_of_the_pool(model, tmp_path):
    order = np.arange(COUNT)[::-1]
    run(model, Noted(order=order), tmp_path / "b")
    folder = tmp_path / "a"
    pool = Noted(3, lambda: shutil.copy(tmp_path / "b" / chunk(2), folder))
    with pytest.raises(
        ValueError, match=r"another .* order of the pool 'pool' \(image 16 is '0028'"
    ):
        run(model, pool, folder)


# --- Processes -----------------------------------------------------------------------------------

PASS = """
import pathlib, sys, time
sys.path[:0] = {path!r}
from data.mining.networks import images, network
from keras_ssd.data.mining import scoring, array_pool

folder, name, stuck_at = pathlib.Path({folder!r}), {name!r}, {stuck_at}

class Slow:
    name, size = "slow", 400

    def read(self, start=0):
        (folder / f"{{name}} reads").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
        pool = array_pool("slow", [f"{{n:04d}}" for n in range(400)], images(400))
        for number, record in enumerate(pool.read(start)):
            if number == stuck_at:
                (folder / f"{{name}} is stuck").touch()
                time.sleep(600)
            time.sleep(0.002)
            yield record

write = scoring.Scores.write

def noted(self, number, chunk):
    write(self, number, chunk)
    print(number, flush=True)

scoring.Scores.write, scoring.CHUNK = noted, 16
scoring.score(network(), Slow(), folder / "scores", target=None, batch_size=4, verbose=0)
"""


@pytest.fixture
def processes(tmp_path):
    """Starts processes that share a pass; they read once all of them are there."""
    started = []

    def start(**stuck_at):
        for name, place in stuck_at.items():
            code = PASS.format(path=sys.path, folder=str(tmp_path), name=name, stuck_at=place)
            command = [sys.executable, "-c", code]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        for name in stuck_at:
            wait_for(tmp_path / f"{name} reads", started)
        (tmp_path / "go").touch()
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(path, processes):
    while not path.exists():
        for process in processes:
            assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def written_by(process):
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return [int(line) for line in output.split()]


@pytest.fixture
def of_400(tmp_path, monkeypatch):
    """What one process alone comes to."""
    monkeypatch.setattr(scoring, "CHUNK", 16)
    pool = array_pool("slow", [f"{n:04d}" for n in range(400)], images(400))
    slow = types.SimpleNamespace(name="slow", size=400, read=pool.read)
    return contents(run(network(), slow, tmp_path / "alone").folder)


@pytest.mark.slow
def test_two_processes_share(tmp_path, processes, of_400):
    first, second = map(written_by, processes(a=-1, b=-1))
    assert contents(tmp_path / "scores") == of_400
    assert sorted(first + second) == list(range(25))
    assert min(len(first), len(second)) > 5


@pytest.mark.slow
def test_one_that_is_killed_costs_its_chunk_alone(tmp_path, processes, of_400):
    killed, other = processes(a=40, b=-1)  # in its third chunk
    wait_for(tmp_path / "a is stuck", [killed, other])
    killed.send_signal(signal.SIGKILL)
    output, _ = killed.communicate()
    before = [int(line) for line in output.split()]
    assert len(before) == 2
    assert sorted(written_by(other) + before) == list(range(25))
    left = contents(tmp_path / "scores")
    assert left == of_400
