import dataclasses
import hashlib

import numpy as np
import pytest
import tensorflow as tf

from data.mining.networks import images, layer_output, network
from keras_ssd import data
from keras_ssd.data.mining.duplicates import Match, sha256_of
from keras_ssd.data.mining.evaluation import Evaluation
from keras_ssd.data.mining.scorer import Scorer

BOTH = ("dhash", "embedding")


def evaluation(target, detectors=BOTH, hamming_distance=4, similarity=0.95):
    return Evaluation(target, detectors, hamming_distance, similarity)


def dataset(images, *others, batch_size=4):
    return tf.data.Dataset.from_tensor_slices((images, *others) if others else images).batch(
        batch_size
    )


def scorer(embeds=True, rows=3):
    options = {"temperature": 1.0, "classes_per_image": 1, "batch_size": rows}
    return Scorer(network(), None, lambda: (4, 4), embedding=embeds, **options)


def digest_of(images):
    return hashlib.sha256(b"".join(bytes.fromhex(sha256_of(image)) for image in images)).hexdigest()


@pytest.fixture
def splits(prepare):
    """Images of one value each: 10 to train, 2 to validate and 5 to test."""
    folder = prepare({"train": 12, "test": 5}, image_shape=(4, 4, 3))
    return data.load("tiny", batch_size=2, validation=2, data_dir=folder)


def flat(*values):
    return [np.full((4, 4, 3), value, np.uint8) for value in values]


# --- What the target set is ----------------------------------------------------------------------


def test_test_and_validation_images_of_splits(splits):
    found = evaluation(splits, detectors=())
    held_out = np.concatenate([batch for batch, _ in splits.validation])[:, 0, 0, 0].tolist()
    assert (found.name, len(held_out)) == ("tiny", 2)
    index = found.index(scorer())
    matches = index.match(flat(4, *held_out, 200), None)
    assert matches[0].best_match == "tiny[test]/00000004"
    wanted = [f"tiny[{'test' if v < 5 else 'validation'}]/" for v in held_out]
    assert all(m.best_match.startswith(w) for m, w in zip(matches[1:3], wanted, strict=True))
    assert [m.detector for m in matches] == ["exact", "exact", "exact", None]


def test_splits_without_validation(prepare):
    folder = prepare({"train": 12, "test": 5}, image_shape=(4, 4, 3))
    splits = data.load("tiny", batch_size=2, validation=0, data_dir=folder)
    assert evaluation(splits).digest() == digest_of(flat(*range(5)))


def test_digest_of_two_parts(splits):
    test, validation = (
        digest_of(np.concatenate([images for images, _ in part]))
        for part in (splits.test, splits.validation)
    )
    expected = hashlib.sha256((test + validation).encode()).hexdigest()
    assert evaluation(splits).digest() == expected


@pytest.mark.parametrize("labels", [(), (np.arange(9),), (np.arange(9), np.ones(9))])
def test_data_sets(labels):
    found = evaluation(dataset(images(9), *labels), detectors=())
    assert found.name == "evaluation"
    assert found.digest() == digest_of(images(9))
    assert found.index(scorer()).match([images(9)[7]], None) == [
        Match("exact", "evaluation/00000007", None)
    ]


def test_digest_is_of_the_images_in_their_order():
    found = {
        evaluation(dataset(some, batch_size=size)).digest()
        for some, size in ((images(9), 4), (images(9), 9), (images(9)[::-1], 4), (images(8), 4))
    }
    assert len(found) == 3


def test_grey_becomes_three_channels():
    grey = images(3, shape=(4, 4, 1))
    assert evaluation(dataset(grey)).digest() == digest_of(np.repeat(grey, 3, axis=3))


def test_no_target():
    found = evaluation(None)
    assert (found.name, found.digest(), found.compares_embeddings) == (None, None, False)
    assert found.detectors == {"exact": None, "dhash": None, "embedding": None}
    assert found.index(scorer()).match(list(images(2)), None) == [Match(None, None, None)] * 2


# --- Detectors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("detectors", [(), ["dhash"], {"embedding"}, BOTH])
def test_detectors_in_the_header(detectors):
    found = evaluation(dataset(images(2)), detectors, hamming_distance=3, similarity=0.5)
    assert found.detectors == {
        "exact": True,
        "dhash": {"hamming_distance": 3} if "dhash" in detectors else None,
        "embedding": {"similarity": 0.5} if "embedding" in detectors else None,
    }
    assert found.compares_embeddings == ("embedding" in detectors)


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_embeddings_are_the_scorers(batch_size):
    some = images(9)
    index = evaluation(dataset(some, batch_size=batch_size), ["embedding"]).index(scorer())
    others = images(5, seed=1)
    embeddings = layer_output(network(), "pool", others)
    units, of_target = (
        x / np.linalg.norm(x, axis=1, keepdims=True)
        for x in (
            embeddings.astype("float64"),
            layer_output(network(), "pool", some).astype("float64"),
        )
    )
    cosines = units @ of_target.T
    matches = index.match(list(others), embeddings)
    assert [m.best_match for m in matches] == [
        f"evaluation/{row:08d}" for row in cosines.argmax(axis=1)
    ]
    np.testing.assert_allclose([m.best_similarity for m in matches], cosines.max(1), rtol=1e-5)


def test_thresholds_reach_the_index():
    some = images(4, shape=(16, 18, 3))
    near = some[:1].copy()
    near[:, :2, :2] = 255 - near[:, :2, :2]
    found = [
        evaluation(dataset(some), ["dhash"], hamming_distance=d)
        .index(scorer())
        .match(list(near), None)
        for d in (0, 4)
    ]
    assert [matches[0].detector for matches in found] == [None, "dhash"]


def test_images_of_another_size_are_resized_for_the_scorer():
    large = images(4, shape=(9, 7, 3))
    index = evaluation(dataset(large), ["embedding"]).index(scorer())
    found = scorer()
    embeddings = found(found.prepared(list(large[:2])), 2).embeddings
    matches = index.match(list(large[:2]), embeddings)
    assert [m.best_match for m in matches] == ["evaluation/00000000", "evaluation/00000001"]
    assert all(m.best_similarity > 1 - 1e-6 for m in matches)


def test_two_parts_are_one_set(splits):
    """Of `exact` in validation and a nearer embedding in test, the first and the second count."""
    index = evaluation(splits).index(scorer())
    validation = np.concatenate([batch for batch, _ in splits.validation])
    embeddings = layer_output(network(), "pool", np.stack(flat(3)))
    (match,) = index.match([validation[0]], embeddings)
    assert (match.detector, match.best_match) == ("exact", "tiny[test]/00000003")
    assert match.best_similarity > 1 - 1e-6
    (match,) = index.match(flat(3), layer_output(network(), "pool", validation[:1]))
    assert (match.detector, match.best_match) == ("exact", "tiny[validation]/00000000")


def test_no_images_to_match(splits):
    assert evaluation(splits).index(scorer()).match([], np.zeros((0, 5), np.float32)) == []


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("detectors", ["dhash", ["exact"], ["dhash", "sift"], [3]])
def test_unknown_detectors(detectors):
    with pytest.raises(
        ValueError, match=r"`detectors` must be some of .* \('exact' always is on\)"
    ):
        evaluation(dataset(images(2)), detectors)


@pytest.mark.parametrize(
    ("limits", "match"),
    [({"hamming_distance": 64}, "`hamming_distance` must be"), ({"similarity": 0}, "`similarity`")],
)
def test_limits_out_of_range(limits, match):
    with pytest.raises(ValueError, match=match):
        evaluation(dataset(images(2)), **limits).digest()


REFUSED = {  # name: (target, error, message)
    "an array": (
        images(3),
        TypeError,
        "must be what `data.load` gives, a tf.data.Dataset of images",
    ),
    "floats": (dataset(images(3) / 255), TypeError, "must give batches of uint8 images"),
    "a dict": (
        tf.data.Dataset.from_tensor_slices({"image": images(3)}).batch(2),
        TypeError,
        "must give batches of uint8 images",
    ),
    "single images": (dataset(images(3)).unbatch(), ValueError, r"needs `.batch\(64\)`"),
    "two channels": (dataset(images(3)[..., :2]), ValueError, "of 1 or 3 channels"),
    "endless": (dataset(images(3)).repeat(), ValueError, r"never end: leave `.repeat\(\)` out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_targets(case):
    target, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        evaluation(target)


def test_a_target_without_images():
    with pytest.raises(ValueError, match="The evaluation set 'evaluation' must have images"):
        evaluation(dataset(images(3)).take(0)).digest()


def test_splits_of_a_manifest_are_no_target(splits):
    unlabeled = dataclasses.replace(splits, test=None, validation=None)
    with pytest.raises(ValueError, match="`target` must have test images, got 'tiny' without"):
        evaluation(unlabeled)
