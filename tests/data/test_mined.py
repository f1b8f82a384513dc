"""Manifests of mined images as data sets."""

import hashlib
import importlib

import keras
import numpy as np
import pytest

from data.image_bytes import png
from data.manifests import photos, write_manifest
from data.photo_folders import write
from keras_ssd import data
from keras_ssd.data import mining, sources
from keras_ssd.data.mining.pools import array_pool, open_pool
from keras_ssd.data.order import epochs_of

load_module = importlib.import_module("keras_ssd.data.load")  # `data.load` is the function


@pytest.fixture(params=["in memory", "beyond memory"])
def limit(request, monkeypatch):
    if request.param == "beyond memory":
        monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    return request.param


def every_second(pool):
    return list(pool.read())[::2]


def values(dataset, epoch=0):
    """The value of each image in the order of an epoch."""
    epochs_of(dataset)[0].assign(epoch)
    return [int(image[0, 0, 0]) for images in dataset.as_numpy_iterator() for image in images]


KINDS = ["folder", "set", "set without labels", "both"]


@pytest.fixture(params=KINDS)
def kept(request, tmp_path, prepare):
    """Every second image of 20 files, of 40 rows in two shards of a set, or of both."""
    records = []
    if request.param != "set":
        records += every_second(photos(tmp_path)) if request.param != "set without labels" else []
    if request.param != "folder":
        drop = ("label",) if request.param == "set without labels" else ()
        folder = prepare({"train": 40}, shards=2, drop=drop, image_shape=(4, 4, 3))
        records += every_second(open_pool("tiny", data_dir=folder))
    return records


# --- What is loaded ----------------------------------------------------------------------------


def test_images_alone_each_once_an_epoch(tmp_path, kept, limit):
    manifest = write_manifest(tmp_path / "mined.jsonl", kept[::-1])
    mined = data.load(manifest, 2, data_dir=tmp_path)
    expected = sorted(int(record.image[0, 0, 0]) for record in kept)
    orders = [values(mined.train, epoch) for epoch in (0, 1, 0)]
    assert [sorted(order) for order in orders] == [expected] * 3
    assert orders[0] == orders[2] != orders[1]
    assert mined.train.element_spec.shape == (2, 4, 4, 3)
    assert mined.train.element_spec.dtype == np.uint8
    assert len(mined.train) == len(kept) // 2
    assert (mined.validation, mined.test) == (None, None)
    other = data.load(str(manifest), 2, seed=1, data_dir=str(tmp_path))
    assert values(other.train) != orders[0]


def test_info(tmp_path, kept, limit, capsys):
    manifest = write_manifest(tmp_path / "mined.jsonl", kept, names=["ant", "bee", "cat"])
    info = data.load(manifest, 2, data_dir=tmp_path).info
    assert info.name == "mined.jsonl"
    assert info.class_names == ("ant", "bee", "cat")
    assert info.input_shape == (4, 4, 3)
    assert info.counts == {"train": len(kept), "validation": 0, "test": 0}
    assert info.fingerprint == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert info.changes == ()
    pixels = np.stack([record.image for record in kept]) / 255
    np.testing.assert_allclose(info.mean, pixels.mean((0, 1, 2)), atol=5.1e-5)
    np.testing.assert_allclose(info.std, pixels.std((0, 1, 2)), atol=5.1e-5)
    printed = capsys.readouterr().out
    assert f"mined.jsonl: mean {info.mean} and std" in printed
    assert f"{len(kept)} training images" in printed


def test_classes_without_names_are_numbers(tmp_path):
    records = list(photos(tmp_path).read())
    manifest = write_manifest(tmp_path / "mined.jsonl", records, names=None)
    assert data.load(manifest, 2).info.class_names == ("0", "1")


@pytest.mark.parametrize("kept", ["both"], indirect=True)
def test_mean_of_a_part_is_of_all_pools(tmp_path, kept, limit, monkeypatch):
    monkeypatch.setattr(load_module, "STATISTICS_IMAGES", 12)
    manifest = write_manifest(tmp_path / "mined.jsonl", kept)
    mean = data.load(manifest, 2, data_dir=tmp_path).info.mean[0] * 255
    assert 19 < mean < 100  # rows are below 40, files from 100 on
    if limit == "beyond memory":
        assert abs(mean - (8 * 7 + 4 * 109) / 12) < 15  # 8 of the 20 rows and 4 of the 10 files


def test_one_size_as_scored_or_as_asked_for(tmp_path, limit):
    pools = [
        photos(tmp_path, range(5), "small"),
        photos(tmp_path, range(9, 14), "large", (6, 8, 3)),
    ]
    records = [record for pool in pools for record in pool.read()]
    scored = write_manifest(tmp_path / "scored.jsonl", records, resize=[5, 3])
    assert data.load(scored, 2).train.element_spec.shape == (2, 5, 3, 3)
    mined = data.load(scored, 2, image_size=(2, 2))
    assert mined.info.input_shape == (2, 2, 3)
    assert sorted(values(mined.train)) == [0, 1, 2, 3, 4, 9, 10, 11, 12, 13]
    path = write_manifest(tmp_path / "mined.jsonl", records)
    message = r"must have one size, got 4x4 and 6x8: give `image_size=\(height, width\)`"
    with pytest.raises(ValueError, match=message):
        data.load(path, 2)


def test_another_size_after_the_sample(tmp_path, monkeypatch):
    records = list(photos(tmp_path, range(16, 80)).read())
    odd = photos(tmp_path, [99], "photos", (6, 8, 3))
    records[33] = next(record for record in odd.read() if record.id.endswith("99.png"))
    path = write_manifest(tmp_path / "mined.jsonl", records)
    with pytest.raises(ValueError, match="must have one size, got 4x4 and 6x8"):
        data.load(path, 2)


def test_grey_images_have_three_channels(tmp_path, prepare, limit):
    folder = prepare({"train": 8}, image_shape=(4, 4, 1))
    records = list(open_pool("tiny", data_dir=folder).read())
    mined = data.load(write_manifest(tmp_path / "mined.jsonl", records), 2, data_dir=folder)
    assert mined.train.element_spec.shape == (2, 4, 4, 3)
    assert sorted(values(mined.train)) == list(range(8))


# --- Where it is looked for --------------------------------------------------------------------


@pytest.mark.parametrize("place", ["data_dir", "beside", "current"])
def test_folders_are_looked_for_in_three_places(tmp_path, monkeypatch, place):
    folders = {name: tmp_path / name for name in ("data_dir", "beside", "current")}
    for folder in folders.values():
        folder.mkdir()
    monkeypatch.chdir(folders["current"])
    records = list(photos(tmp_path / "origin").read())
    manifest = write_manifest(folders["beside"] / "mined.jsonl", records)
    order = list(folders)
    for other in order[order.index(place) :]:
        photos(folders[other])
    for other in order[order.index(place) + 1 :]:  # would be refused
        write(folders[other] / "photos", {f"{i % 3}/{i}.png": png(0) for i in range(100, 120)})
    mined = data.load(manifest, 2, data_dir=folders["data_dir"])
    assert sorted(values(mined.train)) == list(range(100, 120))
    monkeypatch.chdir(folders["beside"])
    assert len(data.load("mined.jsonl", 2, data_dir=folders[place]).train) == 10


@pytest.mark.parametrize("inner", ["", "tfds", "pool"])
def test_sets_are_looked_for_in_three_places(tmp_path, prepare, inner):
    prepared = prepare({"train": 12}, drop=("label",), image_shape=(4, 4, 3)) / "tfds"
    records = list(open_pool("tiny", data_dir=prepared).read())
    folder = tmp_path / "there"
    (folder / inner).mkdir(parents=True)
    (prepared / "tiny").rename(folder / inner / "tiny")
    mined = data.load(write_manifest(tmp_path / "mined.jsonl", records), 2, data_dir=folder)
    assert sorted(values(mined.train)) == list(range(12))


def test_missing_files_are_counted_and_named(tmp_path):
    records = list(photos(tmp_path).read())
    manifest = write_manifest(tmp_path / "mined.jsonl", records)
    for i in range(100, 107):
        (tmp_path / "photos" / str(i % 3) / f"{i}.png").unlink()
    with pytest.raises(
        ValueError, match=r"must be there, but 7 of 20 are not, .*`data_dir`"
    ) as error:
        data.load(manifest, 2, data_dir=tmp_path / "elsewhere")
    message = str(error.value)
    assert "(photos/0/102.png, photos/0/105.png, photos/1/100.png" in message
    assert "and 2 more)" in message
    assert f"looked for in '{tmp_path / 'elsewhere'}', '{tmp_path}', '" in message


def test_missing_folder(tmp_path):
    records = list(photos(tmp_path).read())
    manifest = write_manifest(tmp_path / "mined.jsonl", records)
    (tmp_path / "photos").rename(tmp_path / "renamed")
    with pytest.raises(ValueError, match="20 of 20 are not, looked for in"):
        data.load(manifest, 2)


@pytest.mark.parametrize("what", ["rows", "split", "set"])
def test_missing_rows_are_counted_and_named(tmp_path, prepare, what):
    records = list(photos(tmp_path, range(9)).read())
    folder = prepare({"train": 12, "test": 9}, image_shape=(4, 4, 3))
    rows = list(open_pool("tiny", data_dir=folder).read())
    name = {"rows": "tiny[test]", "split": "tiny[other]", "set": "unknown[train]"}[what]
    moved = [r._replace(source=r.source.replace("tiny[train]", name)) for r in rows]
    manifest = write_manifest(tmp_path / "mined.jsonl", [*records, *moved])
    missing = 3 if what == "rows" else 12
    with pytest.raises(ValueError, match=f"{missing} of 21 are not, looked for in ") as error:
        data.load(manifest, 2, data_dir=folder)
    message = str(error.value)
    assert all(f"'{folder / inner}'" in message for inner in ("tfds", "pool"))
    assert f"{name}/{12 - missing:08d}" in message
    assert "photos" not in message


def test_set_of_tfds_that_is_not_there(tmp_path):
    records = [
        record._replace(source=f"mnist[train]/{row:08d}")
        for row, record in enumerate(photos(tmp_path).read())
    ]
    manifest = write_manifest(tmp_path / "mined.jsonl", records)
    with pytest.raises(ValueError, match=r"'mnist' is not prepared in .*`download=True`"):
        data.load(manifest, 2, data_dir=tmp_path, download=False)
    manifest = write_manifest(
        tmp_path / "others.jsonl",
        [record._replace(source=f"unknown[train]/{row:08d}") for row, record in enumerate(records)],
    )
    with pytest.raises(ValueError, match="looked for in the folder of TensorFlow Datasets"):
        data.load(manifest, 2)


# --- Images that are others than those mined ---------------------------------------------------


def test_one_changed_file_is_found(tmp_path):
    records = list(photos(tmp_path, range(40)).read())
    manifest = write_manifest(tmp_path / "mined.jsonl", records)
    changed = tmp_path / records[-2].source
    changed.write_bytes(png(77, (4, 4, 3)))
    message = f"those that were mined, but '{records[-2].source}' shows something else now: give"
    with pytest.raises(ValueError, match=message):
        data.load(manifest, 2)
    changed.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=f"'{records[-2].source}' cannot be decoded now"):
        data.load(manifest, 2)


@pytest.mark.parametrize("kept", ["folder", "set"], indirect=True)
def test_other_files_or_another_set(tmp_path, kept, limit):
    shifted = [
        record._replace(image=other.image)
        for record, other in zip(kept, [*kept[1:], kept[0]], strict=True)
    ]
    manifest = write_manifest(tmp_path / "mined.jsonl", shifted)
    with pytest.raises(
        ValueError, match=r"must be those that were mined, but '.*' shows something"
    ):
        data.load(manifest, 2, data_dir=tmp_path)


def test_a_sample_of_files_is_spread_over_all(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    records = list(photos(tmp_path, range(50)).read())
    for place in (0, 49):
        wrong = [*records]
        wrong[place] = records[place]._replace(image=records[25].image)
        with pytest.raises(ValueError, match=f"'{records[place].source}' shows something else"):
            data.load(write_manifest(tmp_path / "mined.jsonl", wrong), 2)


# --- What is refused ---------------------------------------------------------------------------


@pytest.fixture
def mined(tmp_path):
    return write_manifest(tmp_path / "mined.jsonl", list(photos(tmp_path).read()))


@pytest.mark.parametrize("validation", [0, 0.1, 5, "half"])
def test_no_validation(mined, validation):
    with pytest.raises(ValueError, match="`validation` must be left out for a manifest, got "):
        data.load(mined, 2, validation)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 21}, "at most the 20 training images of 'mined.jsonl', got 21"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1"),
        ({"image_size": 4}, "`image_size` must be None or a pair"),
        ({"seed": -1}, "`seed` must be an integer"),
    ],
)
def test_arguments_of_load(mined, arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(mined, **({"batch_size": 2} | arguments))


def test_no_such_manifest(tmp_path):
    with pytest.raises(ValueError, match=r"There is no manifest '.*mined.jsonl'"):
        data.load(tmp_path / "mined.jsonl", 2)


def test_a_manifest_that_was_cut_off(mined):
    mined.write_bytes(mined.read_bytes()[:-40])
    with pytest.raises(ValueError, match="was cut off"):
        data.load(mined, 2)


def test_images_given_as_arrays(tmp_path):
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 4, 3), np.uint8)
    arrays = list(array_pool("mine", ["a", "b", "c", "d"], images).read())
    records = [*photos(tmp_path).read(), *arrays]
    manifest = write_manifest(tmp_path / "mined.jsonl", records)
    message = r"where 4 of the 24 images .* were given as arrays \(a, b, c, d\): mine a folder or"
    with pytest.raises(ValueError, match=message):
        data.load(manifest, 2)


def test_no_image(tmp_path):
    with pytest.raises(ValueError, match=r"lists no image, .*: select with a larger `k`"):
        data.load(write_manifest(tmp_path / "mined.jsonl", []), 2)


def test_one_image_twice(tmp_path):
    records = list(photos(tmp_path).read())
    manifest = write_manifest(tmp_path / "m.jsonl", [*records, records[0]._replace(id="again")])
    with pytest.raises(ValueError, match=r"'m.jsonl' must list each image once"):
        data.load(manifest, 2)


def test_what_needs_labels(mined):
    splits = data.load(mined, 2)
    with pytest.raises(
        ValueError, match=r"`few_shot` needs labels, and the images of 'mined.jsonl'"
    ):
        splits.few_shot(0.5)
    with pytest.raises(ValueError, match=r"`label_noise` needs labels, .*: leave it out"):
        splits.label_noise(0.5)
    with pytest.raises(ValueError, match=r"`with_unlabeled` needs labels, .*: call it on labelled"):
        splits.with_unlabeled(splits)


# --- Between labelled images -------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["both"], indirect=True)
def test_between_labelled_images(tmp_path, kept, limit):
    manifest = write_manifest(tmp_path / "mined.jsonl", kept)
    mined = data.load(manifest, 2, data_dir=tmp_path)
    labelled = data.load("tiny", 4, 0, data_dir=tmp_path)
    mixed = labelled.with_unlabeled(mined, share=0.5)
    assert mixed.info.counts == labelled.info.counts | {"unlabeled": 30}
    assert mixed.info.changes == ("with_unlabeled('mined.jsonl', share=0.5)",)
    seen = []
    for epoch in (0, 1):
        for variable in epochs_of(mixed.train):
            variable.assign(epoch)
        for images, labels in mixed.train.as_numpy_iterator():
            shown = images[:, 0, 0, 0].astype(int)
            assert (labels >= 0).tolist() == [True, False, True, False]
            assert labels[labels >= 0].tolist() == (shown[labels >= 0] % 3).tolist()
            seen += shown[labels == -1].tolist()
    expected = sorted(int(record.image[0, 0, 0]) for record in kept)
    assert sorted(seen[:30]) == expected
    assert sorted([*seen, *seen[:4]][30:60]) != seen[30:60]


# --- After mining ------------------------------------------------------------------------------


def test_what_mining_wrote_is_read_back(tmp_path):
    pool = photos(tmp_path, range(60, 200, 7), shape=(6, 6, 3))
    images = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(images))
    scorer = keras.Model(images, keras.layers.Dense(2)(pooled))
    scores = mining.score(scorer, pool, tmp_path / "scores", target=None, verbose=0)
    assert scores.header["pool_name"] == "photos"
    kept = mining.select(tmp_path / "scores", tmp_path / "mined.jsonl", k=6).rows
    mined = data.load(tmp_path / "mined.jsonl", 2)
    assert mined.info.input_shape == (8, 8, 3)  # those of the scorer
    expected = sorted(int(row.source.split("/")[-1].removesuffix(".png")) for row in kept)
    assert sorted(values(mined.train)) == expected


@pytest.mark.slow
def test_real_pools(tmp_path, real_data):
    pools = [open_pool(name, data_dir=real_data) for name in ("tiny_imagenet32", "cifar10")]
    records = [record for pool in pools for record in list(pool.read())[::2]]
    manifest = write_manifest(tmp_path / "mined.jsonl", records)
    mined = data.load(manifest, 64, data_dir=real_data)
    labelled = data.load("cifar100", 64, 0, data_dir=real_data)
    mixed = labelled.with_unlabeled(mined, share=0.25)
    assert mined.info.counts["train"] == mixed.info.counts["unlabeled"] == 2_500 + 2_250
    assert len(mixed.train) == 20_000 // 48
    expected = {record.image.tobytes() for record in records}
    assert {image.tobytes() for images in mined.train for image in images.numpy()} <= expected
