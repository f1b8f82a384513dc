"""Several sets of encoded images as one."""

import numpy as np
import pytest

from data.image_bytes import png
from data.photo_folders import write
from keras_ssd.data.encoded import Joined
from keras_ssd.data.images import ImageFiles, Streamed
from keras_ssd.data.order import epochs_of


def files(folder, values):
    """Image files of one value each; the label is the value."""
    write(folder, {f"{value}.png": png(value) for value in values})
    paths = [str(folder / f"{value}.png") for value in values]
    return ImageFiles(paths, np.array(values), (4, 4, 3), None)


@pytest.fixture
def joined(tmp_path):
    """Rows 0 to 39 with the values 100 to 139, rows 40 to 49 with 0 to 9."""
    return Joined([files(tmp_path / "a", range(100, 140)), files(tmp_path / "b", range(10))])


def pairs(dataset, epoch=0):
    for variable in epochs_of(dataset):
        variable.assign(epoch)
    return [
        (int(image[0, 0, 0]), int(label))
        for images, labels in dataset.as_numpy_iterator()
        for image, label in zip(images, labels, strict=True)
    ]


def test_rows_follow_one_another(joined):
    assert joined.size == 50
    np.testing.assert_array_equal(joined.labels, [*range(100, 140), *range(10)])
    rows = np.array([49, 3, 40, 39, 0])
    expected = [103, 139, 100, 9, 0]
    assert pairs(joined.batches(rows, 2)) == [(value, value) for value in expected]


def test_a_round_mixes_all_parts_anew(joined):
    rows = np.arange(50)
    dataset = joined.shuffled(rows, 2, seed=0)
    rounds = [pairs(dataset, epoch) for epoch in (0, 1, 0)]
    assert rounds[0] == rounds[2] != rounds[1]
    for seen in rounds:
        assert all(value == label for value, label in seen)
        assert sorted(value for value, _ in seen) == [*range(10), *range(100, 140)]
    for first in (0, 25):  # five in each half are expected
        assert 1 <= sum(value < 10 for value, _ in rounds[0][first : first + 25]) <= 9
    turns = [[value < 10 for value, _ in seen] for seen in rounds]
    assert turns[0] != turns[1]
    of_second = [[value for value, _ in seen if value < 10] for seen in rounds]
    assert of_second[0] != of_second[1]
    assert pairs(joined.shuffled(rows, 2, seed=1)) != rounds[0]


def test_some_rows_of_each_part_and_part_of_a_round(joined):
    rows = np.arange(30, 46)
    dataset = joined.shuffled(rows, 2, seed=0, per_epoch=8)
    seen = sorted(value for epoch in (0, 1) for value, _ in pairs(dataset, epoch))
    assert seen == [*range(6), *range(130, 140)]


def test_other_labels(joined):
    other = joined.relabeled(np.arange(50) % 7)
    assert pairs(other.batches(np.array([38, 39, 40, 41]), 2)) == [
        (138, 38 % 7),
        (139, 39 % 7),
        (0, 40 % 7),
        (1, 41 % 7),
    ]
    np.testing.assert_array_equal(joined.labels[:2], [100, 101])


def test_files_and_a_stream(tmp_path, prepare):
    import tensorflow_datasets as tfds

    folder = prepare({"train": 20}, shards=2, image_shape=(4, 4, 3))
    builder = tfds.builder("tiny", data_dir=folder / "tfds")
    joined = Joined([Streamed(builder, "train", None), files(tmp_path / "a", range(100, 110))])
    seen = pairs(joined.shuffled(np.arange(30), 3, seed=0))
    assert sorted(seen) == [
        *((value, value % 3) for value in range(20)),
        *((value, value) for value in range(100, 110)),
    ]
