"""`cached_teacher`: what is refused, and a full disk."""

import errno
import importlib
import json
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssd as ssd
from keras_ssd.views import Plain, Rotations

from .stored_teacher import cached, files, splits, teacher

MODULE = importlib.import_module("keras_ssd.data.cache.cached_teacher")


def network_with(output):
    images = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(images)
    return keras.Model(images, {"logits": keras.layers.Dense(3)(x), **output(x)})


def teacher_of_logits():
    network = teacher()
    return keras.Model(network.input, network.output["logits"])


def scale(x):
    return {"scale": keras.layers.Lambda(lambda x: keras.ops.mean(x))(x)}


def centred(x):
    return {"centred": x - keras.ops.mean(x, axis=0, keepdims=True)}


class Noise(keras.layers.Layer):
    """Adds chance, also in inference mode."""

    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


def noisy(x):
    return {"noisy": Noise()(x)}


class Scale(keras.layers.Layer):
    """Its factor is in its code, as in that of many a layer of one's own."""

    def call(self, x):
        return x * 2.0


def scaled(x):
    return {"scaled": Scale()(x)}


def values_of_top_k(x):
    return {"logits+values": keras.layers.Dense(2)(x)}


MISTAKES = {
    "a function": (lambda: {"network": lambda x: x}, TypeError, "nothing tells a function"),
    "read by a function": (
        lambda: {"network": ssd.freeze(teacher(), read=lambda outputs: outputs)},
        TypeError,
        "must be named by its model",
    ),
    "preprocessed by a function": (
        lambda: {"network": ssd.freeze(teacher(), preprocessing=lambda x: x)},
        TypeError,
        "preprocessing of the teacher must be a Keras layer",
    ),
    "statistics of the batch": (
        lambda: {
            "network": ssd.freeze(
                ssd.models.build("resnet8", num_classes=3, input_shape=(8, 8, 3)),
                batch_norm="batch",
            )
        },
        ValueError,
        "depends on the images beside it",
    ),
    "no such output": (lambda: {"outputs": ["hidden"]}, ValueError, "no output 'hidden'"),
    "statistics in its graph": (
        lambda: {"network": network_with(centred), "outputs": None},
        ValueError,
        r"neither on the images beside it nor on chance to be stored, got 'centred' off by",
    ),
    "chance in its graph": (
        lambda: {"network": network_with(noisy), "outputs": None},
        ValueError,
        r"neither on the images beside it nor on chance to be stored, got 'noisy' off by",
    ),
    "statistics in its graph, an image at a time": (
        lambda: {"network": network_with(centred), "outputs": None, "batch_size": 1},
        ValueError,
        r"neither on the images beside it nor on chance to be stored, got 'centred' off by",
    ),
    "a softmax": (
        lambda: {
            "network": keras.Sequential([teacher_of_logits(), keras.layers.Softmax()]),
            "outputs": None,
        },
        ValueError,
        "must give logits to be stored, got probabilities",
    ),
    "an output without rows": (
        lambda: {"network": network_with(scale), "outputs": None},
        ValueError,
        r"'scale' must be \[rows, ...\] of known shape",
    ),
    "a data set": (lambda: {"data": splits().train}, TypeError, "takes what `data.load` returns"),
    "stored before": (
        lambda: {"data": ssd.data.imported_teacher(np.zeros((23, 3)), splits())},
        ValueError,
        "takes images without outputs of a teacher",
    ),
    "mixed": (
        lambda: {"data": splits().with_unlabeled(splits(), 0.4)},
        ValueError,
        "got both in one set",
    ),
    "random layers as views": (
        lambda: {"views": keras.layers.RandomCrop(8, 8)},
        TypeError,
        "whose random numbers can be drawn again",
    ),
    "copies": (lambda: {"augmentations": 2}, ValueError, "they would all be the same"),
    "no augmentations": (
        lambda: {"views": Plain(True), "augmentations": 0},
        ValueError,
        "`augmentations` must be an integer >= 1",
    ),
    "one name": (lambda: {"outputs": "logits"}, ValueError, "`outputs` must be None or names"),
    "dtype": (lambda: {"dtype": "bfloat16"}, ValueError, "`dtype` must be one of"),
    "all classes": (lambda: {"top_k": 3}, ValueError, "less than the 3 classes"),
    "no logits": (
        lambda: {"top_k": 2, "outputs": ["projection"]},
        ValueError,
        "`top_k` is for the output `logits`",
    ),
    "a name that is of a part": (
        lambda: {"network": network_with(values_of_top_k), "outputs": None, "top_k": 2},
        ValueError,
        r"names of stored outputs must be without '\+', got 'logits\+values'",
    ),
    "seed": (lambda: {"seed": -1}, ValueError, "`seed` must be"),
    "batch size": (lambda: {"batch_size": 0}, ValueError, "`batch_size` must be an integer"),
    "verbose": (lambda: {"verbose": 2}, ValueError, "`verbose` must be 0 or 1"),
    "size of images": (
        lambda: {
            "network": ssd.models.build("resnet8", num_classes=3, input_shape=(9, 9, 3)),
            "outputs": None,
        },
        ValueError,
        "9",
    ),
}


@pytest.mark.parametrize(("make", "kind", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_leaves_nothing_behind(tmp_path, make, kind, message):
    with pytest.raises(kind, match=message):
        cached(tmp_path / "new", **make())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("folder", [None, 3, ""])
def test_a_folder_that_is_none(folder):
    with pytest.raises(TypeError, match="`folder` must be the path of a folder, got"):
        cached(folder)


def test_a_file_in_place_of_a_folder_above(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match=r"`folder` must be a folder, got .*: .*file is a file"):
        cached(tmp_path / "file" / "of" / "mine")


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`folder` must be a folder"):
        cached(tmp_path / "file")


@pytest.mark.parametrize(
    ("scale", "message"),
    [(1e5, r"'logits' reaches .* float16 ends at 65504"), (np.inf, "'logits' is infinite or NaN")],
)
def test_what_is_no_number_is_not_stored(tmp_path, scale, message):
    network = teacher()
    network.layers[-1 if network.layers[-1].units == 3 else -2].bias.assign([0, scale, 0])
    with pytest.raises(ValueError, match=message):
        cached(tmp_path, network, dtype="float16")
    assert set(files(tmp_path)) == {"header.json"}


def test_too_large_for_half_precision_fits_in_float32(tmp_path):
    network = teacher()
    dense = next(layer for layer in network.layers if getattr(layer, "units", 0) == 3)
    dense.bias.assign([0, 1e5, 0])
    cached(tmp_path, network)
    assert np.load(tmp_path / "00000.logits.npy").max() > 9e4


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=600)
    monkeypatch.setattr(MODULE.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"0.0 MB more are needed in .*new.* free: store fewer"):
        cached(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_full_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "SHARD", 7)
    cached(tmp_path / "whole")
    folder = tmp_path / "full"
    folder.mkdir()
    for number in range(4):
        (folder / f".partial-{number:05d}.projection.npy").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"is full: make room and call again") as told:
        cached(folder)
    assert told.value.__cause__.errno == errno.ENOSPC
    left = {path.name for path in folder.iterdir() if not path.is_symlink()}
    assert left == {"header.json"}
    for left in folder.glob(".partial-*"):
        left.unlink()
    cached(folder)
    assert files(folder) == files(tmp_path / "whole")


def test_turns_of_images_that_are_not_square(tmp_path):
    with pytest.raises(ValueError, match="Rotations need square images"):
        MODULE.BatchedTeacher(teacher(), Rotations(), (8, 6, 3), 4, None)


def test_a_call_that_failed_before_its_first_shard_binds_nobody(tmp_path):
    network = teacher()
    network.set_weights([np.full_like(weight, np.nan) for weight in network.get_weights()])
    with pytest.raises(ValueError, match="is infinite or NaN"):
        cached(tmp_path / "one", network)
    cached(tmp_path / "one")
    cached(tmp_path / "other")
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_killed_between_the_arrays_and_the_record_of_the_first_shard(tmp_path):
    cached(tmp_path)
    whole = files(tmp_path)
    for record in tmp_path.glob("0*.json"):
        record.unlink()
    cached(tmp_path)
    assert files(tmp_path) == whole


def test_a_call_with_other_arguments_between_the_arrays_and_their_record(tmp_path, monkeypatch):
    """Its header stands, and so the arrays of the first call are no shard of it."""
    synced = os.fsync
    begun = []

    def another_begins(descriptor):
        synced(descriptor)
        name = pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        if name == ".partial-00000.json" and not begun:
            begun.append(name)
            header = json.loads((tmp_path / "one" / "header.json").read_text())
            fields = {"logits": ((4, 3), "float32"), "projection": ((4, 4), "float32")}
            del header["sha256"]
            MODULE.Store(tmp_path / "one", {**header, "seed": 7}, fields).write_header()

    monkeypatch.setattr(os, "fsync", another_begins)
    cached(tmp_path / "one")
    monkeypatch.undo()
    assert begun
    cached(tmp_path / "one", seed=7)
    cached(tmp_path / "seven", seed=7)
    assert files(tmp_path / "one") == files(tmp_path / "seven")


def test_a_disk_that_tells_late_that_it_is_full(tmp_path, monkeypatch):
    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("projection.npy"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="is full: make room"):
        cached(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"header.json"}


def test_a_call_with_other_arguments_meanwhile_is_noticed(tmp_path, monkeypatch):
    write = MODULE.Store._write

    def interrupted(store, number, parts):
        def while_another_begins():
            for part in parts:
                header = json.loads((tmp_path / "header.json").read_text())
                del header["sha256"]
                MODULE.Store(tmp_path, {**header, "seed": 7}, store._fields).write_header()
                yield part

        write(store, number, while_another_begins())

    monkeypatch.setattr(MODULE.Store, "_write", interrupted)
    with pytest.raises(ValueError, match="another `seed`"):
        cached(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"header.json"}


STORED = [{"outputs": ["scaled"]}, {"outputs": None, "top_k": 2, "dtype": "float16"}]


@pytest.mark.parametrize("options", STORED, ids=str)
@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_code_that_was_changed_meanwhile_is_noticed(tmp_path, monkeypatch, options, batch_size):
    keras.utils.set_random_seed(0)
    first = network_with(scaled)

    def again():
        network = network_with(scaled)
        network.set_weights(first.get_weights())
        return cached(tmp_path, network, batch_size=batch_size, **options)

    again()
    before = files(tmp_path)
    again()
    monkeypatch.setattr(Scale, "call", lambda self, x: x * 2.2)  # noqa: ARG005
    with pytest.raises(ValueError, match="another teacher said: 'scaled' of some images is off"):
        again()
    assert files(tmp_path) == before
