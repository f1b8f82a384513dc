import io
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from data.image_bytes import png
from data.photo_folders import write
from keras_ssd.data.mining import pools, prepared_pool
from keras_ssd.data.mining.pools import array_pool, check_image, open_pool


def first_pixels(records):
    return [None if record.image is None else int(record.image[0, 0, 0]) for record in records]


def ids(records):
    return [record.id for record in records]


# --- Sets of TFDS --------------------------------------------------------------------------------


def rows_of(numbers, split="train"):
    return [f"tiny[{split}]/{number:08d}" for number in numbers]


def test_rows_of_a_set_in_the_order_of_its_files(prepare):
    pool = open_pool("tiny", data_dir=prepare({"train": 20, "test": 7}, shards=3))
    assert (pool.name, pool.size) == ("tiny", 20)
    records = list(pool.read())
    assert ids(records) == rows_of(range(20))
    assert first_pixels(records) == list(range(20))
    assert all(record.source == record.id and record.problem is None for record in records)
    assert all(record.image.shape == (4, 4, 3) for record in records)
    assert all(record.image.dtype == np.uint8 for record in records)


def test_another_split(prepare):
    pool = open_pool("tiny", split="test", data_dir=prepare({"train": 20, "test": 7}))
    assert ids(pool.read()) == rows_of(range(7), "test")


def test_labels_are_not_needed(prepare):
    pool = open_pool("tiny", data_dir=prepare({"train": 5}, drop=["label"]))
    assert first_pixels(pool.read()) == list(range(5))


@pytest.mark.parametrize("sizes", [(4, 4, 3), (None, None, 3)])
def test_more_images_than_are_decoded_at_once(prepare, monkeypatch, sizes):
    monkeypatch.setattr(prepared_pool, "_MOST_DECODED", 4)
    monkeypatch.setattr(prepared_pool, "_DECODED_OF_ANY_SIZE", 4)
    records = list(open_pool("tiny", data_dir=prepare({"train": 21}, image_shape=sizes)).read())
    assert first_pixels(records) == list(range(21))
    assert ids(records) == rows_of(range(21))


def test_images_keep_their_sizes(prepare):
    folder = prepare({"train": 5}, image_shape=(None, None, 3))
    records = list(open_pool("tiny", data_dir=folder).read())
    assert [record.image.shape for record in records] == [
        (5 + i % 2, 5 + i % 2, 3) for i in range(5)
    ]
    assert all((record.image == i).all() for i, record in enumerate(records))


@pytest.mark.parametrize("start", [0, 1, 9, 12, 19, 20, 25])
@pytest.mark.parametrize("shard", [(0, 1), (1, 3), (4, 5)])
def test_shards_and_starts(prepare, start, shard):
    pool = open_pool("tiny", data_dir=prepare({"train": 20}, shards=3))
    rows = list(range(20))[shard[0] :: shard[1]]
    part = pool.shard(*shard)
    assert (part.name, part.size) == ("tiny", len(rows))
    records = list(part.read(start))
    assert ids(records) == rows_of(rows[start:])
    assert first_pixels(records) == rows[start:]
    assert pool.size == 20


def test_what_is_not_read_is_not_decoded(prepare, monkeypatch):
    seen = []

    def noted(image):
        seen.append(int(image[0, 0, 0]))
        return image

    def decoded(encoded):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return tf.ensure_shape(tf.numpy_function(noted, [image], tf.uint8), (None, None, 3))

    monkeypatch.setattr(prepared_pool, "decoded", decoded)
    pool = open_pool("tiny", data_dir=prepare({"train": 20}, shards=3))
    list(pool.shard(1, 3).read(2))
    assert sorted(seen) == [7, 10, 13, 16, 19]


def with_broken_images(folder, broken, count=20, shards=2):
    import tensorflow_datasets as tfds

    def encoded(i):
        return b"no image" if i in broken else png(i)

    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(4, 4, 3))}),
        split_datasets={"train": [(i, {"image": io.BytesIO(encoded(i))}) for i in range(count)]},
        data_dir=folder,
        disable_shuffling=True,
        download_config=tfds.download.DownloadConfig(num_shards=shards),
    )
    return folder


@pytest.mark.parametrize("broken", [[0], [19], [3, 4, 5, 6, 7], [0, 1, 10, 18, 19], range(20)])
@pytest.mark.parametrize("start", [0, 4])
def test_images_that_cannot_be_decoded(tmp_path, monkeypatch, broken, start):
    monkeypatch.setattr(prepared_pool, "_MOST_DECODED", 4)
    pool = open_pool("tiny", data_dir=with_broken_images(tmp_path, broken))
    records = list(pool.read(start))
    assert ids(records) == rows_of(range(start, 20))
    assert first_pixels(records) == [None if i in broken else i for i in range(start, 20)]
    for i, record in enumerate(records, start):
        assert record.problem == ("cannot be decoded" if i in broken else None)


def test_a_file_that_was_cut_off(tmp_path):
    with_broken_images(tmp_path, [], shards=1)
    (path,) = tmp_path.rglob("*.tfrecord*")
    path.write_bytes(path.read_bytes()[:-5])
    pool = open_pool("tiny", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"'tiny' must be whole, .*'train' cannot be read \(Data"):
        list(pool.read())


def test_no_such_set_or_split(prepare, tmp_path):
    folder = prepare({"train": 3, "test": 2})
    with pytest.raises(ValueError, match=r"There is no data set 'tiiny'"):
        open_pool("tiiny", data_dir=folder)
    with pytest.raises(ValueError, match=r"'tiny' must hold images in its split 'all', got \{"):
        open_pool("tiny", split="all", data_dir=folder)
    with pytest.raises(ValueError, match="'mnist' is not prepared"):
        open_pool("mnist", data_dir=tmp_path, download=False)
    with pytest.raises(TypeError, match="must be the name of a data set or the path"):
        open_pool(3)


def test_a_set_without_8_bit_images(prepare):
    import tensorflow_datasets as tfds

    deep = tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16)
    folder = prepare({"train": 3}, image=deep)
    with pytest.raises(ValueError, match="'tiny' needs a feature `image` of 8-bit images"):
        open_pool("tiny", data_dir=folder)


def test_a_split_without_images(prepare, monkeypatch):
    import tensorflow_datasets as tfds

    folder = prepare({"train": 3})
    monkeypatch.setattr(tfds.core.SplitInfo, "num_examples", 0)
    with pytest.raises(ValueError, match=r"must hold images in its split 'train', got \{"):
        open_pool("tiny", data_dir=folder)


@pytest.mark.parametrize("inner", ["tfds", "pool"])
def test_where_a_set_would_be(tmp_path, inner):
    """In `tfds` where there is such a folder, never in `pool`."""
    (tmp_path / inner).mkdir()
    place = tmp_path / "tfds" if inner == "tfds" else tmp_path
    with pytest.raises(ValueError, match=f"'mnist' is not prepared in '{place}/mnist"):
        open_pool("mnist", data_dir=tmp_path, download=False)


@pytest.mark.parametrize("inner", ["", "tfds", "pool"])
def test_where_a_set_is_looked_for(prepare, inner):
    folder = prepare({"train": 3})
    if inner != "tfds":
        for path in list((folder / "tfds").iterdir()):
            (folder / inner).mkdir(exist_ok=True)
            path.rename(folder / inner / path.name)
    assert open_pool("tiny", data_dir=str(folder)).size == 3
    assert open_pool("tiny", data_dir=folder / inner).size == 3


def test_the_set_that_is_prepared_goes_first(prepare, tmp_path):
    """TFDS knows `mnist`, so it could be downloaded to the first place, too."""
    prepare({"train": 3})
    (tmp_path / "pool").mkdir()
    renamed = tmp_path / "pool" / "mnist"
    (tmp_path / "tfds" / "tiny").rename(renamed)
    (renamed / "1.0.0").rename(renamed / "3.0.1")
    for path in (renamed / "3.0.1").iterdir():
        path.write_bytes(
            path.read_bytes().replace(b'"tiny"', b'"mnist"').replace(b"1.0.0", b"3.0.1")
        )
        path.rename(path.with_name(path.name.replace("tiny", "mnist")))
    assert open_pool("mnist", data_dir=tmp_path, download=False).size == 3


# --- Folders -------------------------------------------------------------------------------------

FILES = {
    "b/1.png": png(1),
    "b/deep/er/2.jpg": png(2),  # in disguise
    "0.PNG": png(0, (2, 6, 1)),
    "notes.txt": b"",
    ".hidden.png": png(9),
    ".git/x.png": png(9),
    "c/3.webp": b"",
    "c/4.png": b"no image",
    "é 5.png": png(5),
}
FOUND = ["0.PNG", "b/1.png", "b/deep/er/2.jpg", "c/3.webp", "c/4.png", "é 5.png"]


@pytest.fixture
def photos(tmp_path):
    return write(tmp_path / "photos", FILES)


def test_folder(photos):
    pool = open_pool(photos)
    assert (pool.name, pool.size) == ("photos", 6)
    records = list(pool.read())
    assert ids(records) == [f"photos/{file}" for file in FOUND]
    assert [record.source for record in records] == ids(records)
    assert first_pixels(records) == [0, 1, 2, None, None, 5]
    assert records[0].image.shape == (2, 6, 3)
    assert records[3].problem == "no JPEG, PNG, BMP or GIF file"
    assert "Unknown image file format" in records[4].problem
    assert [record.problem is None for record in records] == [True, True, True, False, False, True]


def test_a_file_that_vanished(photos):
    pool = open_pool(photos)
    (photos / "b/1.png").unlink()
    records = list(pool.read())
    assert (records[1].id, records[1].image) == ("photos/b/1.png", None)
    assert records[1].problem == "No such file or directory"


@pytest.mark.parametrize("start", [0, 1, 5, 6, 9])
@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_shards_of_a_folder(photos, monkeypatch, start, at_once):
    read = []

    def pictures(paths, image_size):
        read.extend(os.path.relpath(path, photos) for path in paths)
        return original(paths, image_size)

    original = pools.pictures
    monkeypatch.setattr(pools, "pictures", pictures)
    monkeypatch.setattr(pools, "_FILES_AT_ONCE", at_once)
    part = open_pool(photos).shard(1, 2)
    assert part.size == 3
    records = list(part.read(start))
    wanted = FOUND[1::2][start:]
    assert ids(records) == [f"photos/{file}" for file in wanted]
    assert first_pixels(records) == [1, None, 5][start:]
    assert read == [file for file in wanted if not file.endswith("webp")]


@pytest.mark.parametrize("given", [str, pathlib.Path])
def test_name_of_a_folder(photos, monkeypatch, given):
    monkeypatch.chdir(photos)
    assert open_pool(given(".")).name == "photos"
    assert next(open_pool(given("b/")).read()).id == "b/1.png"
    assert next(open_pool(given("../photos/b")).read()).source == "b/1.png"


def test_the_digits_are_no_set_of_tfds():
    with pytest.raises(ValueError, match="'digits' comes with scikit-learn: give its images to"):
        open_pool("digits")


def test_refused_folders(photos, tmp_path):
    with pytest.raises(ValueError, match=r"must be a folder, got nothing at .*: check the path"):
        open_pool(tmp_path / "none")
    with pytest.raises(ValueError, match="must be a folder, got no folder at"):
        open_pool(photos / "notes.txt")
    with pytest.raises(ValueError, match="got none and 1 images of other kinds"):
        open_pool(write(tmp_path / "other", {"x.webp": b"", "y.txt": b""}))
    with pytest.raises(ValueError, match=r"A folder of images has no splits, .* got 'test'"):
        open_pool(photos, split="test")
    with pytest.raises(ValueError, match=r"`data_dir` .* must be None with the path of a folder"):
        open_pool(photos, data_dir=tmp_path)


def test_a_file_whose_name_is_no_text(photos):
    pathlib.Path(os.fsdecode(os.fsencode(photos) + b"/\xff.png")).write_bytes(png(1))
    with pytest.raises(ValueError, match=r"must be text that UTF-8 can write, got '\\udcff.png'"):
        open_pool(photos)


# --- Arrays --------------------------------------------------------------------------------------

IMAGES = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((7, 2, 3, 3), np.uint8)
NAMES = list("abcdefg")


@pytest.mark.parametrize("images", [IMAGES, list(IMAGES), tuple(IMAGES)])
def test_arrays(images):
    pool = array_pool("some", NAMES, images)
    assert (pool.name, pool.size) == ("some", 7)
    records = list(pool.shard(1, 2).read(1))
    assert [tuple(record)[:2] for record in records] == [("d", ""), ("f", "")]
    assert first_pixels(records) == [3, 5]
    assert all(record.problem is None for record in records)


def test_images_of_several_sizes():
    images = [np.zeros((2, 3, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)]
    shapes = [record.image.shape for record in array_pool("some", ["a", "b"], images).read()]
    assert shapes == [(2, 3, 3), (5, 4, 3)]


def test_shards_of_shards_and_all_of_them():
    pool = array_pool("some", NAMES, IMAGES)
    assert ids(pool.shard(1, 2).shard(1, 2).read()) == ["d"]
    for count in (1, 2, 5, 7):
        shards = [pool.shard(index, count) for index in range(count)]
        assert sorted(id for shard in shards for id in ids(shard.read())) == NAMES


@pytest.mark.parametrize("shard", [(-1, 2), (2, 2), (0, 0), (0, -1), (0.0, 2), (True, 2), (0, 2.5)])
def test_refused_shards(shard):
    with pytest.raises(ValueError, match="A shard is `index` of `count`"):
        array_pool("some", NAMES, IMAGES).shard(*shard)


def test_a_shard_without_images():
    with pytest.raises(ValueError, match="Shard 7 of 9 holds none of the 7 images of 'some'"):
        array_pool("some", NAMES, IMAGES).shard(7, 9)


@pytest.mark.parametrize("start", [-1, 1.5, "0", True])
def test_refused_starts(start):
    with pytest.raises(ValueError, match="`start` must be an integer >= 0"):
        array_pool("some", NAMES, IMAGES).read(start)


REFUSED = {  # name: (ids, images, error, message)
    "none": ([], IMAGES[:0], ValueError, "The pool 'some' must hold images"),
    "fewer ids": (NAMES[1:], IMAGES, ValueError, "got 6 ids and 7 images"),
    "twice": ([*"abcdafb"], IMAGES, ValueError, "got more than once: a, b"),
    "numbers": ([*"abcdef", 3], IMAGES, TypeError, "`ids` must be strings, got 3"),
    "one string": ("abcdefg", IMAGES, TypeError, "`ids` several"),
    "no text": ([*"abcdef", "\udcff"], IMAGES, ValueError, "text that UTF-8 can write"),
    "floats": (NAMES, IMAGES / 2, TypeError, "uint8 arrays .* got float64 for 'a'"),
    "a float": (NAMES, [*IMAGES[1:], IMAGES[0] / 2], TypeError, "got float64 for 'g'"),
    "lists": (NAMES, IMAGES.tolist(), TypeError, "got list for 'a'"),
    "grey": (NAMES, IMAGES[..., :1], ValueError, r"got the shape \(2, 3, 1\) for 'a'"),
    "flat": (NAMES, IMAGES[..., 0], ValueError, r"got the shape \(2, 3\) for 'a'"),
    "empty": (NAMES, IMAGES[:, :0], ValueError, r"got the shape \(0, 3, 3\) for 'a'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_arrays(case):
    ids, images, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        array_pool("some", ids, images)


def test_refused_name():
    with pytest.raises(TypeError, match="`name` must be a string"):
        array_pool(pathlib.Path("x"), NAMES, IMAGES)


def test_check_image():
    check_image(IMAGES[0], "a")
    with pytest.raises(TypeError, match="got list for 'a'"):
        check_image([[[0, 0, 0]]], "a")


# --- Real images ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("tiny_imagenet32", 5_000), ("cifar10", 4_500)])
def test_real_pools(real_data, name, size):
    import tensorflow_datasets as tfds

    pool = open_pool(name, data_dir=real_data, download=False)
    records = list(pool.read())
    assert pool.size == len(records) == size
    assert ids(records) == [f"{name}[train]/{row:08d}" for row in range(size)]
    place = real_data / {"cifar10": "tfds"}.get(name, "pool")
    images = tfds.load(name, split="train", data_dir=place, download=False, shuffle_files=False)
    for record, example in zip(records, images.as_numpy_iterator(), strict=True):
        np.testing.assert_array_equal(record.image, example["image"])
    later = list(pool.shard(2, 3).read(1_000))
    assert ids(later) == ids(records)[2::3][1_000:]
    assert all(
        (a.image == b.image).all() for a, b in zip(later, records[2::3][1_000:], strict=True)
    )
