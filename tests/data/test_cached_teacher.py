"""`cached_teacher`: what is stored, and what comes back with the images."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from distiller.tiny import Counter

import keras_ssd as ssd
from keras_ssd.views import Plain, Rotations

from .stored_teacher import COUNT, cached, epoch, files, splits, teacher

MODULE = importlib.import_module("keras_ssd.data.cache.cached_teacher")
VIEWS = {
    "plain": Plain(),
    "one view": Plain(True, flip=True, padding=2),
    "four views": Rotations(padding=2),
    "turns alone": Rotations(None, flip=False),
}
each_views = pytest.mark.parametrize("views", VIEWS.values(), ids=VIEWS)


@pytest.fixture
def small_shards(monkeypatch):
    """Four files of an output, the last one with fewer images."""
    monkeypatch.setattr(MODULE, "SHARD", 7)


def augmentations(views, count=2):
    return {"views": views, "augmentations": count if views.num_draws else 1}


# What comes with the images


@each_views
def test_batches_are_those_of_the_data_in_its_order(tmp_path, views):
    data = splits()
    stored = cached(tmp_path, data=data, **augmentations(views))
    for number in (0, 3):
        batches = epoch(stored.train, number)
        for (x, labels), (images, same) in zip(batches, epoch(data.train, number), strict=True):
            np.testing.assert_array_equal(x["image"], images)
            np.testing.assert_array_equal(labels, same)
            np.testing.assert_array_equal(data.labels[x["index"]], labels)
    assert len(stored.train) == len(data.train)
    assert (stored.validation, stored.test) == (data.validation, data.test)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@each_views
def test_outputs_are_those_of_the_pixels_that_the_draws_make(tmp_path, views, dtype, small_shards):
    network = teacher()
    stored = cached(tmp_path, network, **augmentations(views), dtype=dtype, outputs=None)
    tolerance = {"float32": 1e-5, "float16": 2e-3}[dtype]
    for x, _ in epoch(stored.train, 1):
        rows = views.apply(x["image"], x["draws"][views.fingerprint] if views.num_draws else None)
        live = ssd.freeze(network)(rows)
        assert x["teacher"].keys() == live.keys() == {"logits", "projection", "maps"}
        for name, values in live.items():
            got = x["teacher"][name]
            lead = [5, views.num_views] if views.num_views > 1 else [5]
            assert (got.dtype, list(got.shape)) == ("float32", [*lead, *values.shape[1:]])
            np.testing.assert_allclose(got, np.reshape(values, got.shape), tolerance, tolerance)


def test_draws_are_those_of_one_augmentation_and_never_stored(tmp_path):
    views = Plain(True, flip=True, padding=2)
    stored = cached(tmp_path, views=views, augmentations=3, seed=4)
    tables = np.stack([views.draw(COUNT, (4, number)) for number in range(3)])
    for x, _ in epoch(stored.train):
        for place, draws in zip(x["index"], x["draws"][views.fingerprint], strict=True):
            assert sum(np.array_equal(draws, table[place]) for table in tables) == 1
    assert set(files(tmp_path)) == {
        *("header.json", "00000.json", "00000.logits.npy", "00000.projection.npy")
    }
    assert np.load(tmp_path / "00000.logits.npy").shape == (COUNT, 3, 3)


def seen(stored, epochs):
    """By epoch and place: the draws."""
    key = Plain(True).fingerprint
    found = {}
    for number in epochs:
        for x, _ in epoch(stored.train, number):
            for place, draws in zip(x["index"], x["draws"][key], strict=True):
                found[number, int(place)] = draws.tobytes()
    return found


def test_an_augmentation_is_a_function_of_seed_epoch_and_place(tmp_path):
    options = {"views": Plain(True), "augmentations": 3}
    stored = cached(tmp_path, **options)
    all_epochs = seen(stored, range(6))
    assert seen(stored, [4]).items() <= all_epochs.items()  # a resumed run
    others = seen(cached(tmp_path, data=splits(seed=1), **options), range(6))
    common = all_epochs.keys() & others.keys()
    assert len(common) > 80
    assert all(all_epochs[key] == others[key] for key in common)
    for place in range(COUNT):
        found = [all_epochs.get((number, place)) for number in range(3)]
        there = [draws for draws in found if draws]  # the last batch is dropped
        assert len(set(there)) == len(there)  # each once in 3 epochs
        for number in range(3):
            pair = {all_epochs.get((number, place)), all_epochs.get((number + 3, place))}
            assert len(pair - {None}) <= 1


def test_images_do_not_all_have_the_same_augmentation_at_once(tmp_path):
    views = Plain(True)
    stored = cached(tmp_path, views=views, augmentations=3)
    tables = np.stack([views.draw(COUNT, (0, number)) for number in range(3)])
    counts = np.zeros(3, int)
    for x, _ in epoch(stored.train):
        for place, draws in zip(x["index"], x["draws"][views.fingerprint], strict=True):
            counts += [np.array_equal(draws, table[place]) for table in tables]
    assert counts.min() >= 5  # of 20: 23 places are 7 or 8 of each


def test_images_without_labels(tmp_path):
    stored = cached(tmp_path, data=splits(labeled=False))
    (x, *_) = epoch(stored.train)
    assert set(x) == {"image", "index", "teacher", "draws"}


def test_labels_and_their_noise_decide_nothing(tmp_path):
    cached(tmp_path)
    noisy = cached(tmp_path, data=splits().label_noise(0.5))
    changed = [labels for _, labels in epoch(noisy.train)]
    assert (np.concatenate(changed) != np.concatenate([y for _, y in epoch(splits().train)])).any()
    assert noisy.info.changes[0].startswith("label_noise(")
    assert noisy.info.changes[1].startswith("cached_teacher('functional")


@pytest.mark.parametrize("method", ["few_shot", "label_noise", "with_index", "with_unlabeled"])
def test_images_are_changed_before(tmp_path, method):
    stored = cached(tmp_path)
    arguments = {"with_index": (), "with_unlabeled": (splits(), 0.4)}.get(method, (0.5,))
    with pytest.raises(ValueError, match=f"`{method}` comes before the teacher's outputs"):
        getattr(stored, method)(*arguments)


# Which teachers


def test_a_teacher_with_preprocessing_and_an_encoder(tmp_path):
    network = teacher()
    shrunk = ssd.freeze(network, preprocessing=keras.layers.Rescaling(0.5))
    half = cached(tmp_path / "half", shrunk, outputs=["logits"])
    x, _ = epoch(half.train)[0]
    live = network(x["image"] * np.float32(0.5))["logits"]
    np.testing.assert_allclose(x["teacher"]["logits"], live, 1e-4, 1e-4)
    with pytest.raises(ValueError, match="of another teacher"):
        cached(tmp_path / "half", network, outputs=["logits"])
    encoder = ssd.frozen_encoder(keras.Model(network.input, network.output["maps"]), pooling="mean")
    vectors = cached(tmp_path / "encoder", encoder, outputs=None)
    x, _ = epoch(vectors.train)[0]
    np.testing.assert_allclose(x["teacher"]["embedding"], encoder(x["image"])["embedding"], 1e-5)


def test_the_name_of_a_teacher_decides_nothing(tmp_path):
    network = teacher()
    cached(tmp_path, network)
    again = keras.models.clone_model(network)
    again.set_weights(network.get_weights())
    again.name = "another"
    before = files(tmp_path)
    cached(tmp_path, again)
    assert files(tmp_path) == before


# What is on the disk


def test_the_same_call_runs_the_teacher_on_one_batch_alone(tmp_path, capsys):
    counter = Counter()
    network = teacher(first=counter)
    first = cached(tmp_path, network, batch_size=8, verbose=1)
    assert counter.calls.numpy() == 3 + 2  # two runs are compared
    size = COUNT * (3 + 4) * 4
    assert capsys.readouterr().out.startswith(
        f"cached_teacher: {COUNT} images x 1 augmentations x 1 views, logits, projection: "
        f"{size / 1e6:.1f} MB in {tmp_path}"
    )
    before = files(tmp_path)
    again = cached(tmp_path, network, batch_size=8, verbose=1)
    assert counter.calls.numpy() == 3 + 2 + 1
    assert (files(tmp_path), capsys.readouterr().out) == (before, "")
    for (x, _), (same, _) in zip(epoch(first.train, 1), epoch(again.train, 1), strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, x, same)


@each_views
def test_neither_the_batch_size_nor_an_interruption_changes_a_byte(
    tmp_path, views, small_shards, monkeypatch
):
    options = augmentations(views)
    cached(tmp_path / "whole", batch_size=64, **options)
    expected = files(tmp_path / "whole")
    assert len(expected) == 1 + 4 * 3
    written, write = [], MODULE.Store.write

    def interrupted(store, number, parts):
        if len(written) == 2:
            next(iter(parts))
            raise KeyboardInterrupt
        written.append(number)
        write(store, number, parts)

    monkeypatch.setattr(MODULE.Store, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "cut", batch_size=2, **options)
    assert len(files(tmp_path / "cut")) == 1 + 2 * 3
    monkeypatch.setattr(MODULE.Store, "write", write)
    cached(tmp_path / "cut", batch_size=3, **options)
    assert files(tmp_path / "cut") == expected


@pytest.mark.parametrize("name", ["00001.logits.npy", "00000.projection.npy", "00002.json"])
@pytest.mark.parametrize("how", ["first", "last", "cut"])
def test_a_changed_byte_is_found_and_named(tmp_path, small_shards, name, how):
    cached(tmp_path)
    before = files(tmp_path)
    content = bytearray(before[name])
    if how == "cut":
        del content[-20:]
    else:
        content[0 if how == "first" else -6] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=r"0000\d\.\w+.*is not as it was written.*delete it"
    ) as told:
        cached(tmp_path)
    number = name.partition(".")[0]
    assert number in str(told.value)
    (tmp_path / name).unlink()
    cached(tmp_path)
    assert files(tmp_path) == before


def test_a_changed_header(tmp_path):
    cached(tmp_path)
    path = tmp_path / "header.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match=r"header.json was cut off or changed: give another"):
        cached(tmp_path, seed=1)
    path.unlink()
    with pytest.raises(ValueError, match=r"holds arrays and no header.json"):
        cached(tmp_path)


OTHERS = {
    "teacher": ({"network": teacher(seed=2)}, "another teacher"),
    "data": ({"data": splits(fingerprint="other")}, "other data"),
    "fewer images": ({"data": splits().few_shot(0.8)}, "other data"),
    "views": ({"views": Rotations()}, "other views"),
    "arguments of views": ({"views": Plain(True, padding=3)}, "other views"),
    "seed": ({"seed": 1}, "another `seed`"),
    "augmentations": ({"augmentations": 3}, "another `augmentations`"),
    "outputs": ({"outputs": ["logits"]}, "other outputs"),
    "dtype": ({"dtype": "float16"}, "another `dtype`"),
    "top_k": ({"top_k": 2}, "another `top_k`"),
}


@pytest.mark.parametrize(("other", "what"), OTHERS.values(), ids=OTHERS)
def test_another_call_is_refused(tmp_path, other, what):
    options = {"network": teacher(), "data": splits(), "views": Plain(True), "augmentations": 2}
    cached(tmp_path, **options)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f"holds the outputs of ({what}) .* there and .* now"):
        cached(tmp_path, **{**options, **other})
    assert files(tmp_path) == before


# Logits of many classes


def test_the_largest_logits_keep_their_probabilities(tmp_path):
    network = teacher(classes=9)
    whole = epoch(cached(tmp_path / "whole", network).train)
    few = epoch(cached(tmp_path / "few", network, top_k=3).train)
    assert np.load(tmp_path / "few" / "00000.logits+classes.npy").dtype == "uint16"
    for (x, _), (other, _) in zip(whole, few, strict=True):
        np.testing.assert_array_equal(x["teacher"]["projection"], other["teacher"]["projection"])
        logits, restored = x["teacher"]["logits"], other["teacher"]["logits"]
        exact, got = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (logits, restored))
        for row in range(5):
            kept = np.argsort(-logits[row])[:3]
            np.testing.assert_array_equal(logits[row, kept], restored[row, kept])
            np.testing.assert_allclose(got[row, kept], exact[row, kept], 1e-5)
            others = np.setdiff1d(range(9), kept)
            np.testing.assert_allclose(got[row, others], exact[row, others].sum() / 6, 1e-5)


def test_largest_logits_of_each_view_in_half_precision(tmp_path):
    options = {"views": Rotations(), "augmentations": 2}
    network = teacher(classes=5)
    whole = epoch(cached(tmp_path / "a", network, **options).train, 1)
    few = epoch(cached(tmp_path / "b", network, **options, top_k=4, dtype="float16").train, 1)
    for (x, _), (other, _) in zip(whole, few, strict=True):  # the rest is one class: all is kept
        np.testing.assert_allclose(
            x["teacher"]["logits"], other["teacher"]["logits"], 2e-3, atol=2e-3
        )
