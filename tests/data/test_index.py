"""`Splits.with_index`: each training image with its place."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import keras_ssd as ssd
from keras_ssd import data


def digits(**options):
    return data.load("digits", batch_size=50, **{"validation": 0.2, **options})


def by_place(dataset):
    """From a place to the bytes of the image and its label."""
    found = {}
    for x, labels in dataset:
        for image, place, label in zip(x["image"], x["index"], labels, strict=True):
            assert int(place) not in found, "a place twice in an epoch"
            found[int(place)] = (image.numpy().tobytes(), int(label))
    return found


def test_the_order_is_that_without_and_a_place_is_an_images_own():
    splits = digits()
    indexed = splits.with_index()
    plain = [(images.numpy(), labels.numpy()) for images, labels in splits.train]
    with_places = [(x["image"].numpy(), labels.numpy()) for x, labels in indexed.train]
    for (images, labels), (same_images, same_labels) in zip(plain, with_places, strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(labels, same_labels)
    first = by_place(indexed.train)
    ssd.callbacks.FollowEpoch(indexed.train).on_epoch_begin(3)
    second = by_place(indexed.train)
    assert list(first) != list(second)
    common = first.keys() & second.keys()
    assert len(common) > 900
    assert all(first[place] == second[place] for place in common)


def test_labels_are_in_the_order_of_places():
    indexed = digits().with_index()
    assert len(indexed.labels) == indexed.info.counts["train"]
    assert all(
        indexed.labels[place] == label for place, (_, label) in by_place(indexed.train).items()
    )


def test_places_are_those_of_the_images_that_train():
    few = data.load("digits", batch_size=1, validation=0.2).few_shot(0.1).with_index()
    assert set(by_place(few.train)) == set(range(len(few.labels)))


def test_changes_of_labels_and_fewer_images_keep_places():
    whole = digits()
    noisy = whole.label_noise(0.5, seed=1)
    places = by_place(whole.with_index().train)
    for changed in (noisy.with_index(), whole.with_index().label_noise(0.5, seed=1)):
        found = by_place(changed.train)
        assert {place: image for place, (image, _) in found.items()} == {
            place: image for place, (image, _) in places.items()
        }
        assert sum(found[place][1] != places[place][1] for place in found) > 300
        assert all(noisy.labels[place] == label for place, (_, label) in found.items())


def test_unlabeled_images_have_no_place():
    few = digits().few_shot(0.5)
    mixed = few.with_unlabeled(digits(), share=0.4).with_index()
    x, labels = next(iter(mixed.train))
    np.testing.assert_array_equal(x["index"].numpy() == -1, labels.numpy() == -1)
    assert (labels.numpy() == -1).sum() == 20


def test_fit_takes_it_and_the_change_is_noted():
    indexed = digits().with_index()
    assert indexed.info.changes == ("with_index()",)
    student = ssd.models.build("resnet8", indexed.info)
    distiller = ssd.Distiller(student=student, **ssd.presets.labels_only())
    distiller.compile(ssd.optimizers.SGD(0.01), run_eagerly=True)
    distiller.fit(indexed.train.take(1), verbose=0)
    assert isinstance(indexed.train.element_spec[0]["index"], tf.TensorSpec)


def test_images_without_labels_are_refused():
    splits = digits()
    training = dataclasses.replace(splits._training, labeled=False)
    splits = dataclasses.replace(splits, _training=training)
    with pytest.raises(ValueError, match="`with_index` needs labels"):
        splits.with_index()
