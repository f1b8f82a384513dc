import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import tensorflow as tf

import keras_ssd as ssd
from data.mining.networks import Subclassed, images, linear, network, softmax
from keras_ssd import data
from keras_ssd.data.mining import array_pool, open_pool, scoring, select
from keras_ssd.data.mining.pools import Record
from keras_ssd.data.mining.scores import Scores
from keras_ssd.data.mining.scoring import score

COUNT = 21
IMAGES = images(COUNT)
IDS = [f"image {number:02d}" for number in range(COUNT)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 8)


@pytest.fixture(scope="module")
def model():
    return network(classes=4, seed=1)


def pool(count=COUNT, order=None, name="pool"):
    rows = np.arange(count) if order is None else order
    return array_pool(name, [IDS[row] for row in rows], IMAGES[rows])


def target(images=IMAGES[3:9]):
    return tf.data.Dataset.from_tensor_slices(images).batch(4)


def run(model, pool, folder, **options):
    options = {"target": None, "batch_size": 4, "verbose": 0, **options}
    return score(model, pool, folder, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir())}


class OddPool:
    """A pool of a user's own, which notes what is read of it."""

    def __init__(self, records, size=None, name="odd"):
        self.name, self._records = name, list(records)
        self.size = len(self._records) if size is None else size
        self.starts, self.read_ids = [], []

    def read(self, start=0):
        self.starts.append(start)
        for record in self._records[start:]:
            self.read_ids.append(record.id)
            if isinstance(record.problem, BaseException):
                raise record.problem
            yield record


def records(count=COUNT, **replaced):
    """The images, some in whose place is another image, a reason or an exception."""
    for number in range(count):
        other = replaced.get(f"at_{number}", IMAGES[number])
        image, problem = (other, None) if isinstance(other, np.ndarray) else (None, other)
        yield Record(IDS[number], f"odd/{number}", image, problem)


# --- What is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("classes_per_image", [1, 3])
def test_scores_of_every_image(model, tmp_path, classes_per_image):
    scores = run(model, pool(), tmp_path / "a", classes_per_image=classes_per_image)
    probabilities = softmax(model(IMAGES, training=False).numpy().astype("float64"))
    found = list(scores.records())
    assert len(found) == COUNT
    for number, record in enumerate(found):
        best = np.argsort(-probabilities[number])[:classes_per_image]
        assert (record.id, record.source) == (IDS[number], "")
        assert record.classes == tuple(best)
        np.testing.assert_allclose(record.scores, probabilities[number][best], rtol=1e-4)
        content = struct.pack("<II", 4, 4) + IMAGES[number].tobytes()
        assert record.sha256 == hashlib.sha256(content).hexdigest()
        assert (record.detector, record.best_match, record.best_similarity) == (None, None, None)
    assert scores.tallies == {"seen": COUNT, "non_finite": 0, "unreadable": [], "duplicates": {}}
    assert scores.complete
    assert isinstance(scores, Scores)


def test_header(model, tmp_path):
    scores = run(
        ssd.freeze(model),
        pool(),
        tmp_path / "a",
        target=target(),
        class_names=["a", "b", "c", "d"],
        hamming_distance=np.int64(3),
        similarity=np.float32(0.75),
        temperature=2,
        classes_per_image=np.int32(2),
    )
    header = json.loads((tmp_path / "a" / "header.json").read_text())
    assert scores.header == header
    for name in ("scorer", "evaluation", "pool"):
        assert len(header.pop(f"{name}_digest")) == 64
    preprocessing = header.pop("preprocessing")
    assert sorted(preprocessing) == ["crop", "interpolation", "mean", "resize", "std"]
    assert header == {
        "schema": 1,
        "scorer": "net",
        "num_classes": 4,
        "class_names": ["a", "b", "c", "d"],
        "temperature": 2.0,
        "classes_per_image": 2,
        "pool_name": "pool",
        "pool_size": COUNT,
        "shard": [0, 1],
        "evaluation_name": "evaluation",
        "detectors": {
            "exact": True,
            "dhash": {"hamming_distance": 3},
            "embedding": {"similarity": 0.75},
        },
        "chunk": 8,
    }


def test_header_without_target_or_names(model, tmp_path):
    header = run(model, pool(), tmp_path / "a").header
    assert header["class_names"] is header["evaluation_name"] is header["evaluation_digest"] is None
    assert header["detectors"] == {"exact": None, "dhash": None, "embedding": None}


def test_temperature(model, tmp_path):
    logits = model(IMAGES, training=False).numpy().astype("float64")
    found = [r.scores[0] for r in run(model, pool(), tmp_path / "a", temperature=5.0).records()]
    np.testing.assert_allclose(found, softmax(logits / 5).max(axis=1), rtol=1e-5)


def test_chunks(model, tmp_path):
    run(model, pool(), tmp_path / "a")
    names = [f"{number:08d}.jsonl" for number in range(3)]
    assert list(contents(tmp_path / "a")) == [*names, "header.json"]
    lines = [(tmp_path / "a" / name).read_text().splitlines() for name in names]
    assert [len(some) - 1 for some in lines] == [8, 8, 5]
    assert [json.loads(some[0])["first"] for some in lines] == IDS[::8]
    assert [json.loads(some[0])["seen"] for some in lines] == [8, 8, 5]


def test_scores_that_are_not_finite_are_counted(tmp_path):
    model = linear([[3e38, 0.0], [0.0, 1.0], [0.0, 0.0]])
    pixels = np.array([[0, 1, 0], [255, 1, 0], [0, 2, 0]], np.uint8).reshape(3, 1, 1, 3)
    target = tf.data.Dataset.from_tensors(pixels[[0, 2]])
    for options in ({}, {"target": target, "detectors": ["embedding"]}):
        folder = tmp_path / str(len(options))
        scores = run(model, array_pool("pool", ["a", "b", "c"], pixels), folder, **options)
        assert [record.id for record in scores.records()] == ["a", "c"]
        assert (scores.tallies["seen"], scores.tallies["non_finite"]) == (3, 1)
    assert [record.detector for record in scores.records()] == ["exact", "exact"]


def test_unreadable_images_are_listed(model, tmp_path):
    broken = {f"at_{number}": f"reason {number}" for number in (0, 5, 6, 7, 8, 20)}
    with pytest.warns(UserWarning, match="cannot be read are left out") as warned:
        scores = run(model, OddPool(records(**broken)), tmp_path / "a")
    assert str(warned[0].message) == (
        "Images of the pool 'odd' that cannot be read are left out (6 of 21): odd/0 (reason 0), "
        "odd/20 (reason 20), odd/5 (reason 5), odd/6 (reason 6), odd/7 (reason 7) and 1 more."
    )
    assert warned[0].filename == __file__
    unreadable = [[f"odd/{n}", f"reason {n}"] for n in (0, 5, 6, 7, 8, 20)]
    assert (scores.tallies["seen"], scores.tallies["unreadable"]) == (15, unreadable)
    expected = {record.id: record.scores for record in run(model, pool(), tmp_path / "b").records()}
    found = {record.id: record.scores for record in scores.records()}
    assert found == {id: expected[id] for n, id in enumerate(IDS) if f"at_{n}" not in broken}


def test_unreadable_images_without_a_source_are_listed_by_id(model, tmp_path):
    with pytest.warns(UserWarning, match=r"\(1 of 1\): x \(gone\)"):
        scores = run(model, OddPool([Record("x", "", None, "gone")]), tmp_path / "a")
    assert (scores.tallies["unreadable"], list(scores.records())) == ([["x", "gone"]], [])


def test_images_are_resized_for_the_scorer_and_hashed_as_they_are(model, tmp_path):
    large = images(5, shape=(9, 7, 3))
    scores = run(model, array_pool("pool", IDS[:5], large), tmp_path / "a")
    small = ssd.data.images.resize(large, (4, 4)).numpy()
    probabilities = softmax(model(small, training=False).numpy().astype("float64"))
    found = list(scores.records())
    np.testing.assert_allclose([r.scores[0] for r in found], probabilities.max(1), rtol=1e-5)
    content = struct.pack("<II", 9, 7) + large[0].tobytes()
    assert found[0].sha256 == hashlib.sha256(content).hexdigest()
    assert scores.header["preprocessing"]["resize"] == [4, 4]


@pytest.mark.parametrize("broken", [0, 2])
def test_the_size_of_an_open_input_is_that_of_the_first_image(tmp_path, broken):
    model = network(shape=(None, None, 3))
    replaced = {f"at_{number}": "broken" for number in range(broken)}
    with pytest.warns(UserWarning, match="cannot be read") if broken else contextlib.nullcontext():
        scores = run(model, OddPool(records(**replaced)), tmp_path / "a")
    assert (scores.header["preprocessing"]["resize"], scores.tallies["seen"]) == (None, 21 - broken)


# --- Independence (T21) --------------------------------------------------------------------------


def mined(folders, path, k=2):
    select(folders, path, k=k)
    return path.read_bytes()


@pytest.mark.parametrize("batch_size", [1, 7, 8, 64])
def test_any_batch_size(model, tmp_path, batch_size):
    for size in (4, batch_size):
        run(model, pool(), tmp_path / str(size), target=target(), batch_size=size)
    assert contents(tmp_path / "4") == contents(tmp_path / str(batch_size))


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order(model, tmp_path, seed):
    order = np.random.default_rng(seed).permutation(COUNT)
    for name, some in (("a", pool()), ("b", pool(order=order))):
        run(model, some, tmp_path / name, target=target(), detectors=["embedding"], similarity=1.0)
    first, second = mined(tmp_path / "a", tmp_path / "1"), mined(tmp_path / "b", tmp_path / "2")
    assert first == second
    assert first.count(b"\n") > 4


@pytest.mark.parametrize("count", [2, 5])
def test_any_shards(model, tmp_path, count):
    options = {"target": target(), "detectors": ["embedding"], "similarity": 1.0}
    run(model, pool(), tmp_path / "a", **options)
    parts = [tmp_path / f"part {index}" for index in range(count)]
    for index, part in enumerate(parts):
        run(model, pool().shard(index, count), part, **options)
    assert mined(parts, tmp_path / "1") == mined(tmp_path / "a", tmp_path / "2")


def test_a_frozen_teacher_is_its_model(model, tmp_path):
    run(model, pool(), tmp_path / "a", target=target())
    run(ssd.freeze(model), pool(), tmp_path / "b", target=target())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# --- Duplicates of the target set ----------------------------------------------------------------


def photos(count, seed):
    """Smooth images of 16x16, as different from one another as photographs."""
    coarse = images(count, seed, (5, 5, 3)).astype("float32")
    fine = tf.image.resize(coarse, (16, 16), method="bicubic")
    return tf.cast(tf.clip_by_value(fine, 0, 255), tf.uint8).numpy()


def test_planted_copies_are_found(tmp_path):
    """Plain, written as JPEG of quality 90, and mirrored: by one detector or another."""
    model = network(shape=(16, 16, 3))
    of_target, others = photos(6, 1), photos(8, 2)
    again = tf.io.decode_jpeg(tf.io.encode_jpeg(of_target[1], quality=90)).numpy()
    planted = [of_target[0], again, of_target[2][:, ::-1]]
    some = array_pool("pool", IDS[:11], [*others[:4], *planted, *others[4:]])
    options = {"target": target(of_target), "detectors": ["dhash"]}
    scores = run(model, some, tmp_path / "a", **options)
    found = list(scores.records())
    assert [record.detector for record in found[4:7]] == ["exact", "dhash", "dhash"]
    assert [record.best_match for record in found[4:7]] == [
        f"evaluation/{row:08d}" for row in range(3)
    ]
    assert all(record.detector is None for record in found[:4] + found[7:])
    assert scores.tallies["duplicates"] == {"exact": 1, "dhash": 2}
    clean = array_pool("pool", [*IDS[:4], *IDS[7:11]], others)
    run(model, clean, tmp_path / "b", **options)
    rows = [
        [
            (row.id, row.rank)
            for row in select(tmp_path / name, tmp_path / f"{name}.jsonl", k=2).rows
        ]
        for name in "ab"
    ]
    assert rows[0] == rows[1]


def test_embeddings_are_compared(model, tmp_path):
    found = list(run(model, pool(), tmp_path / "a", target=target(), similarity=1.0).records())
    for number, record in enumerate(found):
        assert (record.detector == "exact") == (3 <= number < 9)
        if record.detector == "exact":
            assert record.best_match == f"evaluation/{number - 3:08d}"
        assert -1 <= record.best_similarity <= 1
    names = {
        record.detector
        for record in run(
            model, pool(), tmp_path / "b", target=target(), similarity=1e-6, detectors=["embedding"]
        ).records()
    }
    assert names == {"exact", "embedding"}


def test_splits_as_target(prepare, tmp_path):
    splits = data.load("tiny", batch_size=2, data_dir=prepare({"train": 20, "test": 5}))
    numbers = open_pool("tiny", data_dir=tmp_path)
    scores = run(network(), numbers, tmp_path / "a", target=splits, detectors=())
    header = scores.header
    assert (header["class_names"], header["evaluation_name"]) == (["a", "b", "c"], "tiny")
    matches = {record.id: record.best_match for record in scores.records()}
    assert matches["tiny[train]/00000004"] == "tiny[test]/00000004"
    assert sum("validation" in (match or "") for match in matches.values()) == 2 - sum(
        value < 5 for value in np.concatenate([b for b, _ in splits.validation])[:, 0, 0, 0]
    )


def test_names_given_go_before_those_of_the_target(prepare, tmp_path):
    splits = data.load("tiny", batch_size=2, data_dir=prepare({"train": 20, "test": 5}))
    scores = run(network(), pool(), tmp_path / "a", target=splits, class_names="xyz", detectors=())
    assert scores.header["class_names"] == ["x", "y", "z"]


# --- Interruptions -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
@pytest.mark.parametrize("place", [0, 3, 8, 13, 20])
def test_an_interrupted_pass_goes_on(model, tmp_path, place, error):
    options = {"target": target()}
    expected = contents(run(model, OddPool(records()), tmp_path / "a", **options).folder)
    with pytest.raises(error):
        run(model, OddPool(records(**{f"at_{place}": error()})), tmp_path / "b", **options)
    left = contents(tmp_path / "b") if (tmp_path / "b").exists() else {}
    assert left == {name: expected[name] for name in left}
    assert len(left) == (place // 8 and place // 8 + 1)
    again = OddPool(records())
    run(model, again, tmp_path / "b", **options)
    assert contents(tmp_path / "b") == expected
    done = max(len(left) - 1, 0)
    assert again.starts == [8 * (done - 1), 8 * done] if done else [0]
    assert IDS[0] not in again.read_ids or not done or done == 1


def test_a_finished_pass_returns_at_once(model, tmp_path, monkeypatch):
    options = {"target": target()}
    expected = run(model, OddPool(records()), tmp_path / "a", **options)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    again = OddPool(records())
    monkeypatch.setattr("keras_ssd.data.mining.scorer.Scorer._run", None)
    scores = run(model, again, tmp_path / "a", **options)
    assert again.read_ids == [IDS[16]]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == before
    assert list(scores.records()) == list(expected.records())


def test_broken_and_missing_chunks_are_written_anew(model, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 3)
    run(model, OddPool(records()), tmp_path / "a", target=target())
    expected = contents(tmp_path / "a")
    cut = tmp_path / "a" / "00000002.jsonl"
    cut.write_bytes(cut.read_bytes()[:-9])
    for number in (3, 5):
        (tmp_path / "a" / f"{number:08d}.jsonl").unlink()
    again = OddPool(records())
    run(model, again, tmp_path / "a", target=target())
    assert contents(tmp_path / "a") == expected
    assert again.starts[1:] == [6, 15]


CHANGES = {
    "another teacher": lambda _: (network(classes=4, seed=2), pool(), {}),
    "half precision": lambda model: (ssd.freeze(model, dtype="float16"), pool(), {}),
    "another pool": lambda model: (model, pool(name="x"), {}),
    "fewer images": lambda model: (model, pool(count=20), {}),
    "another order": lambda model: (model, pool(order=np.arange(COUNT)[::-1]), {}),
    "another target": lambda model: (model, pool(), {"target": target(IMAGES[:2])}),
    "no target": lambda model: (model, pool(), {"target": None}),
    "detectors": lambda model: (model, pool(), {"detectors": ["embedding"]}),
    "distance": lambda model: (model, pool(), {"hamming_distance": 5}),
    "similarity": lambda model: (model, pool(), {"similarity": 0.5}),
    "temperature": lambda model: (model, pool(), {"temperature": 2.0}),
    "classes": lambda model: (model, pool(), {"classes_per_image": 2}),
    "names": lambda model: (model, pool(), {"class_names": "abcd"}),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.filterwarnings("ignore:This machine multiplies matrices")
def test_scores_of_something_else_are_refused(model, tmp_path, change, finished):
    run(model, pool(), tmp_path / "a", target=target())
    if not finished:
        (tmp_path / "a" / "00000001.jsonl").unlink()
    before = contents(tmp_path / "a")
    other, some, options = CHANGES[change](model)
    with pytest.raises(ValueError, match=r"holds scores of another .* now\): give another folder"):
        run(other, some, tmp_path / "a", **{"target": target(), **options})
    assert contents(tmp_path / "a") == before


def test_another_shard_is_refused(model, tmp_path):
    run(model, pool(count=20).shard(0, 2), tmp_path / "a")
    with pytest.raises(ValueError, match=r"another shard \(`shard` is \[0, 2\] there and \[1, 2\]"):
        run(model, pool(count=20).shard(1, 2), tmp_path / "a")


def test_a_pool_that_has_changed_is_refused(model, tmp_path):
    run(model, pool(), tmp_path / "a")
    (tmp_path / "a" / "00000001.jsonl").unlink()
    other = array_pool("pool", IDS[:COUNT], np.roll(IMAGES[:COUNT], 1, axis=0))
    for changed in (other, pool(order=np.arange(COUNT)[::-1])):
        with pytest.raises(ValueError, match="another pool \\(`pool_digest` is"):
            run(model, changed, tmp_path / "a")


def test_another_batch_size_goes_on(model, tmp_path):
    run(model, pool(), tmp_path / "a")
    expected = contents(tmp_path / "a")
    (tmp_path / "a" / "00000001.jsonl").unlink()
    run(model, pool(), tmp_path / "a", batch_size=5)
    assert contents(tmp_path / "a") == expected


SLOW_PASS = """
import signal, sys, time
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have turned off
sys.path[:0] = {path!r}
from data.mining.networks import images, network
from keras_ssd.data.mining import scoring, array_pool

class Slow:
    name, size = "slow", 400

    def read(self, start=0):
        ids = [f"{{n:04d}}" for n in range(400)]
        for record in array_pool("slow", ids, images(400)).read(start):
            time.sleep({pause})
            yield record

scoring.CHUNK = 16
scoring.score(network(), Slow(), {folder!r}, target=None, batch_size=4, verbose=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_is_killed(tmp_path, how):
    def start(folder, pause):
        code = SLOW_PASS.format(path=sys.path, folder=str(folder), pause=pause)
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)

    def finish(folder):
        with start(folder, 0) as process:
            _, errors = process.communicate()
        assert process.returncode == 0, errors

    finish(tmp_path / "a")
    expected = contents(tmp_path / "a")
    assert len(expected) == 26
    for kills in range(1, 3):
        with start(tmp_path / "b", 0.005) as process:
            while not (tmp_path / "b" / f"{4 * kills:08d}.jsonl").exists():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.01)
            time.sleep(0.013 * kills)
            process.send_signal(how)
            process.communicate()
        assert process.returncode != 0
        left = contents(tmp_path / "b")
        assert len(left) < 26
        whole = {name: content for name, content in left.items() if name[0] != "."}
        assert whole == {name: expected[name] for name in whole}
    finish(tmp_path / "b")
    assert contents(tmp_path / "b") == expected


# --- Memory --------------------------------------------------------------------------------------


def test_images_are_let_go(model, tmp_path):
    living, most = set(), [0]

    class Counted(OddPool):
        def read(self, start=0):
            for record in super().read(start):
                image = record.image.copy()
                living.add(id(image))
                weakref.finalize(image, living.discard, id(image))
                most[0] = max(most[0], len(living))
                yield record._replace(image=image)
                del image, record

    run(model, Counted(records()), tmp_path / "a", target=target(), batch_size=2)
    assert most[0] <= 3 * 2 + 2


# --- What is shown -------------------------------------------------------------------------------


def test_nothing_is_shown(model, tmp_path, capfd):
    run(model, pool(), tmp_path / "a", verbose=0)
    assert capfd.readouterr().out == ""


def test_progress_and_a_line_at_the_end(model, tmp_path, capsys):
    odd = OddPool(records(at_4="broken"))
    with pytest.warns(UserWarning, match="cannot be read"):
        run(model, odd, tmp_path / "a", target=target(), detectors=(), verbose=1)
    shown = capsys.readouterr().out
    assert "21/21" in shown
    assert "image" in shown
    start = "odd: 20 images scored (0 without a finite score), 1 unreadable; images of the target "
    last = shown.splitlines()[-1]
    assert last.startswith(f"{start}set: exact 5; ")
    assert last.endswith(" images a second.")


def test_progress_of_a_pass_that_goes_on(model, tmp_path, capsys):
    run(model, pool(), tmp_path / "a")
    (tmp_path / "a" / "00000001.jsonl").unlink()
    run(model, pool(), tmp_path / "a", verbose=1)
    shown = capsys.readouterr().out
    assert "21/21" in shown
    assert " 4/21" not in shown
    run(model, pool(), tmp_path / "a", verbose=1)
    assert capsys.readouterr().out == ""


# --- What is refused -----------------------------------------------------------------------------


def test_other_classes_than_the_targets(model, prepare, tmp_path):
    splits = data.load("tiny", batch_size=2, data_dir=prepare({"train": 20, "test": 5}))
    match = "The teacher 'net' has 4 classes and `target` has 3: give a teacher whose classes are"
    for names in (None, "abcd"):
        with pytest.raises(ValueError, match=match):
            run(model, pool(), tmp_path / "a", target=splits, class_names=names)
    with pytest.raises(ValueError, match="has 4 classes and `class_names` has 3"):
        run(model, pool(), tmp_path / "a", class_names="abc")
    assert not (tmp_path / "a").exists()


REFUSED = {  # name: (arguments, error, message)
    "temperature 0": ({"temperature": 0}, ValueError, "`temperature` must be > 0 and finite"),
    "temperature nan": (
        {"temperature": np.nan},
        ValueError,
        "`temperature` must be > 0 and finite",
    ),
    "temperature inf": (
        {"temperature": np.inf},
        ValueError,
        "`temperature` must be > 0 and finite",
    ),
    "temperature text": ({"temperature": "1"}, TypeError, "`temperature` must be a number"),
    "temperature bool": ({"temperature": True}, TypeError, "`temperature` must be a number"),
    "no class": (
        {"classes_per_image": 0},
        ValueError,
        "`classes_per_image` must be an integer >= 1",
    ),
    "half a class": (
        {"classes_per_image": 1.5},
        ValueError,
        "`classes_per_image` must be an integ",
    ),
    "five classes": (
        {"classes_per_image": 5},
        ValueError,
        "must be at most the 4 classes of 'net'",
    ),
    "no batch": ({"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1, got 0"),
    "batch of True": ({"batch_size": True}, ValueError, "`batch_size` must be an integer >= 1"),
    "one size": ({"image_size": 4}, ValueError, "`image_size` must be None or a pair"),
    "no height": ({"image_size": (0, 4)}, ValueError, "`image_size` must be None or a pair"),
    "another size": ({"image_size": (5, 5)}, ValueError, "which the teacher takes"),
    "verbose": ({"verbose": 2}, ValueError, "`verbose` must be 0 or 1, got 2"),
    "detector": ({"detectors": ["sift"]}, ValueError, "`detectors` must be some of"),
    "target": ({"target": IMAGES}, TypeError, "`target` must be what `data.load` gives"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_arguments(model, tmp_path, case):
    arguments, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        run(model, pool(), tmp_path / "a", **arguments)
    assert not (tmp_path / "a").exists()


def test_functions_are_refused(tmp_path):
    with pytest.raises(
        TypeError, match="`teacher` must be a Keras model or a FrozenTeacher of one"
    ):
        run(lambda x: x, pool(), tmp_path / "a")


@pytest.mark.parametrize("other", [IMAGES, "cifar10"])
def test_what_is_no_pool(model, tmp_path, other):
    with pytest.raises(TypeError, match="`pool` must be what `open_pool` or `array_pool` gives"):
        run(model, other, tmp_path / "a")


def test_an_empty_pool(model, tmp_path):
    with pytest.raises(ValueError, match="The pool 'odd' must hold images, got none"):
        run(model, OddPool([]), tmp_path / "a")


def test_no_image_tells_the_size(tmp_path):
    odd = OddPool([Record("x", "", None, "gone")])
    with pytest.raises(ValueError, match="'odd' must hold images that can be read, got 1 others"):
        run(network(shape=(None, None, 3)), odd, tmp_path / "a")


@pytest.mark.parametrize(("size", "count"), [(22, 21), (24, 21), (30, 21), (40, 24)])
def test_pools_with_fewer_images_than_they_say(model, tmp_path, size, count):
    odd = OddPool(itertools.islice(itertools.cycle(records()), count), size)
    with pytest.raises(
        ValueError, match=f"the {size} images of its `size`, got none after {count}"
    ):
        run(model, odd, tmp_path / "a")


WRONG_IMAGES = {
    "floats": (IMAGES[0] / 255, TypeError, "uint8 arrays .* got float64 for 'image 09'"),
    "grey": (IMAGES[0, ..., 0], ValueError, r"got the shape \(4, 4\) for 'image 09'"),
}


@pytest.mark.parametrize("case", WRONG_IMAGES)
def test_images_that_are_none(model, tmp_path, case):
    image, error, message = WRONG_IMAGES[case]
    with pytest.raises(error, match=message):
        run(model, OddPool(records(at_9=image)), tmp_path / "a")
    assert list(contents(tmp_path / "a")) == ["00000000.jsonl", "header.json"]


def test_a_mistake_leaves_nothing_behind(tmp_path):
    mistakes = {
        "probabilities": (linear(np.ones((3, 2)), softmax=True), {}, "must give logits"),
        "no embedding": (
            Subclassed(network(), embeds=False),
            {"target": target()},
            "must give an `embedding`",
        ),
    }
    for model, options, message in mistakes.values():
        with pytest.raises(ValueError, match=message):
            run(model, pool(), tmp_path / "a", **{"image_size": None, **options})
        assert not (tmp_path / "a").exists()


# --- Real images ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_images(real_data, tmp_path, monkeypatch):
    """The first 300 images of each pool, by a network that was trained, at three batch sizes."""
    monkeypatch.setattr(scoring, "CHUNK", 128)
    splits = data.load("cifar100", 64, validation=0, data_dir=real_data, download=False)
    model = ssd.models.build(
        "resnet20",
        num_classes=100,
        input_shape=(32, 32, 3),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    )
    ssd.checkpoints.load_torch_weights(model, real_data / "teachers" / "resnet20.pth")
    test = splits.test.take(5)
    planted = next(iter(test))[0].numpy()[:4]
    manifests = []
    for size in (1, 7, 64):
        folders = []
        for name in ("tiny_imagenet32", "cifar10"):
            read = itertools.islice(open_pool(name, data_dir=real_data).read(), 300)
            ids, some = zip(*((record.id, record.image) for record in read), strict=True)
            some = array_pool(name, [*ids, *(f"{name} {n}" for n in range(4))], [*some, *planted])
            folders.append(tmp_path / f"{name} {size}")
            scores = run(model, some, folders[-1], target=test, batch_size=size)
            assert scores.tallies["duplicates"]["exact"] == 4
        manifests.append(mined(folders, tmp_path / f"{size}.jsonl"))
    assert manifests[0] == manifests[1] == manifests[2]
    assert os.path.getsize(tmp_path / "1.jsonl") > 10_000
