import builtins
import importlib
import tracemalloc

import numpy as np
import pytest

from data.contents import contents
from keras_ssd import data
from keras_ssd.data import sources
from keras_ssd.data.images import InMemory

load_module = importlib.import_module("keras_ssd.data.load")  # `data.load` is the function


def values(dataset):
    """The value of the first pixel of each image, in order: in the tiny sets the image's number."""
    return np.concatenate([images[:, 0, 0, 0] for images, _ in dataset.as_numpy_iterator()])


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", batch_size=64)


def test_digits_are_batches_of_raw_images(digits):
    images, labels = next(digits.train.as_numpy_iterator())
    assert images.shape == (64, 16, 16, 3)
    assert images.dtype == np.uint8
    assert images.max() == 255
    np.testing.assert_array_equal(images[..., 0], images[..., 2])
    assert labels.shape == (64,)
    assert labels.dtype == np.int32
    assert digits.train.element_spec[0].shape == (64, 16, 16, 3)


def test_digits_info(digits):
    info = digits.info
    assert info.name == "digits"
    assert info.num_classes == len(info.class_names) == 10
    assert info.input_shape == (16, 16, 3)
    assert info.counts == {"train": 1078, "validation": 120, "test": 599}
    assert len(digits.train) == 1078 // 64
    assert len(digits.validation) == 2
    assert sum(len(labels) for _, labels in digits.test) == 599


def test_constants_are_those_of_the_training_images_and_printed(capsys):
    digits = data.load("digits", batch_size=1078)
    pixels = next(digits.train.as_numpy_iterator())[0].astype("float64") / 255
    np.testing.assert_allclose(digits.info.mean, pixels.mean((0, 1, 2)), atol=5e-5)
    np.testing.assert_allclose(digits.info.std, pixels.std((0, 1, 2)), atol=5e-5)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert str(digits.info.mean) in printed
    assert "1,078 training images" in printed


def test_splits_are_a_partition_of_the_digits():
    splits = data.load("digits", batch_size=1, validation=0.25)
    parts = [contents(part) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [898, 300, 599]
    from sklearn.datasets import load_digits

    assert len({image for part in parts for image, _ in part}) == len(
        np.unique(load_digits().images, axis=0)
    )


def test_seed_moves_validation_but_not_test(digits):
    same, other = (data.load("digits", batch_size=64, seed=seed) for seed in (0, 1))
    assert contents(digits.validation) == contents(same.validation)
    assert contents(digits.validation) != contents(other.validation)
    assert contents(digits.test) == contents(other.test)
    assert digits.info.fingerprint == same.info.fingerprint == other.info.fingerprint


@pytest.mark.parametrize(("validation", "held_out"), [(0, 0), (0.0, 0), (50, 50), (0.5, 599)])
def test_validation_is_a_share_or_a_number(validation, held_out):
    splits = data.load("digits", batch_size=8, validation=validation)
    assert splits.info.counts == {"train": 1198 - held_out, "validation": held_out, "test": 599}
    assert (splits.validation is None) == (held_out == 0)


def test_digits_in_another_size():
    splits = data.load("digits", batch_size=8, image_size=(8, 8))
    assert splits.info.input_shape == (8, 8, 3)
    from sklearn.datasets import load_digits

    expected = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    seen = [np.frombuffer(image, np.uint8)[::3] for image, _ in contents(splits.test)]
    assert {image.tobytes() for image in seen} <= {image.tobytes() for image in expected}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1, got 0"),
        ({"batch_size": 2.0}, "`batch_size` must be an integer >= 1, got 2.0"),
        ({"batch_size": 1079}, "at most the 1078 training images of 'digits', got 1079"),
        ({"validation": 1.0}, r"share in \[0, 1\) or a number of images, got 1.0"),
        ({"validation": -0.1}, r"share in \[0, 1\) or a number of images, got -0.1"),
        ({"validation": -1}, r"share in \[0, 1\) or a number of images, got -1"),
        ({"validation": True}, r"share in \[0, 1\) or a number of images, got True"),
        ({"validation": float("nan")}, r"share in \[0, 1\) or a number of images, got nan"),
        ({"validation": 1198}, "holds out 1198 of 1198 training images: neither split may be"),
        ({"validation": 0.9999}, "holds out 1198 of 1198 training images: neither split may be"),
        ({"validation": 1e-4}, "holds out 0 of 1198 training images: neither split may be empty"),
        ({"seed": -1}, r"`seed` must be an integer in \[0, 2\^32\), got -1"),
        ({"seed": 2**32}, r"`seed` must be an integer in \[0, 2\^32\), got 4294967296"),
        ({"seed": True}, r"`seed` must be an integer in \[0, 2\^32\), got True"),
        ({"seed": 1.0}, r"`seed` must be an integer in \[0, 2\^32\), got 1.0"),
        *(
            ({"image_size": size}, r"`image_size` must be None or a pair of integers >= 1, .*got ")
            for size in (8, (8,), (8, 8, 3), (8, 0), (-8, 8), (8.0, 8), (True, 8), "88", {8, 9}, ())
        ),
    ],
)
def test_refuses_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", **({"batch_size": 8} | arguments))


def test_image_size_may_be_a_list():
    splits = data.load("digits", batch_size=8, image_size=[np.int64(8), 8])
    assert splits.info.input_shape == (8, 8, 3)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'keras-ssd\[quickstart\]'"):
        data.load("digits", batch_size=8)


def test_names():
    assert {"digits", "cifar10", "cifar100"} <= set(data.names())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar_100", "close names: .'cifar100'"),
        ("CIFAR-100", "close names: .'cifar100'"),
        ("qqqqq", "begins a list"),
    ],
)
def test_unknown_name_is_answered_with_near_ones(name, message, tmp_path):
    with pytest.raises(ValueError, match=f"no data set '{name}'; .*{message}"):
        data.load(name, batch_size=8, data_dir=tmp_path)


def test_set_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"'mnist' is not prepared in .*`download=True`"):
        data.load("mnist", batch_size=8, data_dir=tmp_path, download=False)


def test_failed_download(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fails(self, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fails)
    with pytest.raises(OSError, match=r"could not be downloaded \(ConnectionError\)"):
        data.load("mnist", batch_size=8, data_dir=tmp_path)


@pytest.mark.parametrize("inner", ["", "tfds"])
def test_tfds_set(prepare, inner):
    folder = prepare({"train": 20, "test": 7})
    splits = data.load("tiny", batch_size=4, validation=0.2, data_dir=folder / inner)
    assert splits.info.counts == {"train": 16, "validation": 4, "test": 7}
    assert splits.info.input_shape == (4, 4, 1)
    assert splits.info.class_names == ("a", "b", "c")
    assert len(splits.info.mean) == 1
    train, held_out = values(splits.train), values(splits.validation)
    assert sorted([*train, *held_out]) == list(range(20))
    np.testing.assert_array_equal(values(splits.test), np.arange(7))
    for images, labels in splits.train.as_numpy_iterator():
        np.testing.assert_array_equal(images[:, 0, 0, 0] % 3, labels)


def test_set_without_test_split_gives_a_third(prepare):
    folder = prepare({"train": 30})
    splits = data.load("tiny", batch_size=4, validation=0, data_dir=folder)
    assert splits.info.counts == {"train": 20, "validation": 0, "test": 10}
    assert sorted([*values(splits.train), *values(splits.test)]) == list(range(30))
    reseeded = data.load("tiny", batch_size=4, validation=0, seed=5, data_dir=folder)
    np.testing.assert_array_equal(values(splits.test), values(reseeded.test))


def test_own_validation_split_is_the_test_split_where_there_is_no_other(prepare):
    splits = data.load(
        "tiny", batch_size=4, validation=5, data_dir=prepare({"train": 20, "validation": 6})
    )
    assert splits.info.counts == {"train": 15, "validation": 5, "test": 6}


def test_several_sizes_need_image_size(prepare):
    folder = prepare({"train": 9, "test": 3}, image_shape=(None, None, 3))
    with pytest.raises(ValueError, match=r"several sizes: give `image_size=\(height, width\)`"):
        data.load("tiny", batch_size=2, data_dir=folder)
    splits = data.load("tiny", batch_size=2, image_size=(6, 4), data_dir=folder)
    assert splits.info.input_shape == (6, 4, 3)
    images, _ = next(splits.test.as_numpy_iterator())
    np.testing.assert_array_equal(images, np.broadcast_to([[[[0]]], [[[1]]]], (2, 6, 4, 3)))


@pytest.mark.parametrize("wrong", ["no image", "no label", "text label", "16 bits"])
def test_what_is_no_image_classification_set(prepare, wrong):
    import tensorflow_datasets as tfds

    arguments = {
        "no image": {"drop": ("image",)},
        "no label": {"drop": ("label",)},
        "text label": {"label": tfds.features.Scalar(np.int64)},
        "16 bits": {"image": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16)},
    }[wrong]
    missing = "label" if "label" in wrong else "image"
    folder = prepare({"train": 9, "test": 3}, **arguments)
    with pytest.raises(ValueError, match=f"'tiny' needs a feature `{missing}`"):
        data.load("tiny", batch_size=2, data_dir=folder)


def test_set_without_training_images(prepare):
    folder = prepare({"test": 5})
    with pytest.raises(ValueError, match="'tiny' needs images in its splits 'train' and 'test'"):
        data.load("tiny", batch_size=2, data_dir=folder)


@pytest.mark.parametrize("empty", ["train", "test"])
def test_empty_split(prepare, monkeypatch, empty):
    import tensorflow_datasets as tfds

    folder = prepare({"train": 5, "test": 4})
    sizes = property(lambda split: 0 if split.name == empty else 5)
    monkeypatch.setattr(tfds.core.SplitInfo, "num_examples", sizes)
    with pytest.raises(ValueError, match=f"got .*'{empty}': 0.*prepare the data set again"):
        data.load("tiny", batch_size=2, data_dir=folder)


def test_constant_channel(prepare):
    folder = prepare({"train": 1, "test": 1})
    with pytest.raises(ValueError, match="the same in every training image"):
        data.load("tiny", batch_size=1, validation=0, data_dir=folder)


def test_class_held_out_whole_is_refused_where_labels_are_at_hand(prepare, monkeypatch):
    folder = prepare({"train": 20, "test": 7})
    with pytest.raises(ValueError, match=r"`validation`=19 with `seed`=0 holds out every .* of "):
        data.load("tiny", batch_size=1, validation=19, data_dir=folder)
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(sources.Streamed, "_read_labels", None)
    splits = data.load("tiny", batch_size=1, validation=18, data_dir=folder)
    assert splits.info.counts["train"] == 2


# --- Mean and deviation -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(700, 1, 1, 3), (9, 40, 30, 2), (3, 70, 60, 1)])
def test_statistics_are_exact_in_any_batches(shape, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    rows = np.arange(1, shape[0])
    whole = pixels[rows].astype(np.int64)
    count = whole[..., 0].size
    mean = whole.sum(axis=(0, 1, 2)) / count
    std = np.sqrt(np.square(whole).sum(axis=(0, 1, 2)) / count - mean**2)
    expected = tuple(tuple((part / 255).round(4).tolist()) for part in (mean, std))
    images = InMemory(pixels, np.zeros(shape[0]))
    for at_once in (1, 5_000, 2**25):
        monkeypatch.setattr(load_module, "_STATISTICS_BYTES", at_once)
        assert load_module.channel_statistics(images, rows, shape[1:]) == expected


@pytest.mark.parametrize(("side", "batch"), [(32, 10_922), (400, 69), (6_000, 1)])
def test_statistics_take_some_megabytes_of_pixels_at_once(side, batch):
    class Photos(InMemory):
        def batches(self, rows, batch_size):
            assert batch_size == batch
            return super().batches(rows, batch_size)

    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 1, 3)).astype(np.uint8)
    photos = Photos(pixels, np.zeros(2))  # their size is only said to be another
    load_module.channel_statistics(photos, np.arange(2), (side, side, 3))


def test_statistics_need_little_memory():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 128, 128, 3)).astype(np.uint8)
    images = InMemory(pixels, np.zeros(40))
    tracemalloc.start()
    load_module.channel_statistics(images, np.arange(40), (128, 128, 3))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * pixels.nbytes


def test_streamed_set_holds_the_same_images(prepare, monkeypatch):
    folder = prepare({"train": 40, "test": 7}, shards=3)
    held = data.load("tiny", batch_size=4, data_dir=folder)
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    streamed = data.load("tiny", batch_size=4, data_dir=folder)
    assert len(streamed.train) == len(held.train) == 9
    assert streamed.train.element_spec == held.train.element_spec
    assert (streamed.info.mean, streamed.info.std) == (held.info.mean, held.info.std)
    for split in ("train", "validation", "test"):
        assert contents(getattr(streamed, split)) == contents(getattr(held, split))
    np.testing.assert_array_equal(values(streamed.test), np.arange(7))


@pytest.mark.slow
def test_real_cifar100(real_data, capsys):
    first, second = (data.load("cifar100", 64, data_dir=real_data / "tfds") for _ in range(2))
    assert capsys.readouterr().out == ""
    assert first.info.counts == {"train": 18_000, "validation": 2_000, "test": 10_000}
    assert first.info.num_classes == 100
    assert first.info.mean == (0.5071, 0.4867, 0.4408)
    assert first.info.fingerprint == second.info.fingerprint
    orders = [[labels for _, labels in splits.train] for splits in (first, second)]
    np.testing.assert_array_equal(*orders)
    train = {image for image, _ in contents(first.train)}
    held_out = {image for image, _ in contents(first.validation)}
    assert len(train) > 17_900
    assert len(train & held_out) < 20  # CIFAR-100 holds some images twice
