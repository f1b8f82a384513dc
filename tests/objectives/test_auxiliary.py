"""AuxiliaryLabels, AuxiliaryTransfer, Mutual: golden values, replicas, weights, diagnostics."""

import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases
from replicas import on_replicas

from keras_ssd.batch import Batch
from keras_ssd.collectives import all_sum
from keras_ssd.objectives import (
    AuxiliaryLabels,
    AuxiliaryTransfer,
    HardLabels,
    Mutual,
    SelectiveSoftLabels,
    SimilarityTransfer,
    SoftLabels,
)
from objectives.batches import EXACT, changed, loss_and_gradients, mean_of, random_batch

PRECISIONS = [("float64", EXACT), ("float32", {"rtol": 2e-5, "atol": 2e-6})]
IDS = ["float64", "float32"]


def outputs(logits, heads, dtype, prefix=""):
    """Named outputs of a network of the golden file."""
    named = {f"auxiliary_{head}": rows for head, rows in enumerate(heads, start=1)}
    return {
        prefix + name: tf.constant(rows, dtype)
        for name, rows in {"logits": logits, **named}.items()
    }


def batch_of(case, dtype, student=None, teacher=None):
    labels = tf.constant(case["inputs"]["labels"])
    return Batch(None, labels, None, teacher or {}, student, num_views=4)


def random_heads(images=5, classes=3, heads=2, seed=0, **changes):
    """A batch whose networks have auxiliary classifiers."""
    generator = np.random.default_rng(seed)

    def network():
        rows = generator.normal(0, 2, (heads, 4 * images, 4 * classes))
        return outputs(generator.normal(size=(4 * images, classes)), rows, "float64")

    labels = tf.constant(generator.integers(0, classes, images))
    return changed(Batch(None, labels, None, network(), network(), num_views=4), **changes)


def assert_heads_close(gradients, expected, tolerance, prefix=""):
    for head, rows in enumerate(expected, start=1):
        np.testing.assert_allclose(gradients[f"{prefix}auxiliary_{head}"], rows, **tolerance)


# Golden values


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=IDS)
@pytest.mark.parametrize("case", golden_cases("hsakd", "joint_ce"))
def test_golden_joint_cross_entropy(case, dtype, tolerance):
    student = outputs(np.zeros([12, 4]), [case["inputs"]["head_logits"]], dtype)
    loss, gradients = loss_and_gradients([AuxiliaryLabels()], batch_of(case, dtype, student))
    np.testing.assert_allclose(loss, case["expected"]["loss"], **tolerance)
    assert_heads_close(gradients, [case["gradients"]["head_logits"]], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=IDS)
@pytest.mark.parametrize("case", golden_cases("hsakd", "ce_untransformed"))
def test_golden_cross_entropy_of_plain_rows(case, dtype, tolerance):
    student = outputs(case["inputs"]["logits"], [], dtype)
    loss, gradients = loss_and_gradients([HardLabels()], batch_of(case, dtype, student))
    np.testing.assert_allclose(loss, case["expected"]["loss"], **tolerance)
    np.testing.assert_allclose(gradients["logits"], case["gradients"]["logits"], **tolerance)
    turned = np.arange(len(gradients["logits"])) % 4 > 0
    assert not np.any(gradients["logits"][turned])


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=IDS)
@pytest.mark.parametrize("case", golden_cases("hsakd", "kd_kl"))
def test_golden_divergence_on_all_rows(case, dtype, tolerance):
    inputs = case["inputs"]
    teacher, student = (outputs(inputs[f"{n}_logits"], [], dtype) for n in ("teacher", "student"))
    batch = Batch(None, None, None, teacher, student, num_views=4)
    objective = SoftLabels(case["params"]["temperature"], views="all")
    loss, gradients = loss_and_gradients([objective], batch)
    np.testing.assert_allclose(loss, case["expected"]["loss"], **tolerance)
    expected = case["gradients"]["student_logits"]
    np.testing.assert_allclose(gradients["logits"], expected, **tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=IDS)
@pytest.mark.parametrize("case", golden_cases("hsakd", "teacher_loss"))
def test_golden_teacher(case, dtype, tolerance):
    inputs, expected = case["inputs"], case["expected"]
    student = outputs(inputs["logits"], inputs["head_logits"], dtype)
    batch = batch_of(case, dtype, student)
    loss, gradients = loss_and_gradients([HardLabels(), AuxiliaryLabels()], batch)
    np.testing.assert_allclose(loss, expected["total"], **tolerance)
    np.testing.assert_allclose(mean_of(HardLabels(), batch), expected["ce_class"], **tolerance)
    heads = mean_of(AuxiliaryLabels(), batch)
    np.testing.assert_allclose(heads, sum(expected["ce_heads"]), **tolerance)
    assert_heads_close(gradients, case["gradients"]["head_logits"], tolerance)
    if not case["params"]["frozen_backbone"]:
        np.testing.assert_allclose(gradients["logits"], case["gradients"]["logits"], **tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=IDS)
@pytest.mark.parametrize("case", golden_cases("hsakd", "student_loss"))
def test_golden_student(case, dtype, tolerance):
    inputs, expected = case["inputs"], case["expected"]
    teacher, student = (
        outputs(inputs[f"{network}_logits"], inputs[f"{network}_head_logits"], dtype)
        for network in ("teacher", "student")
    )
    batch = batch_of(case, dtype, student, teacher)
    temperature = case["params"]["temperature"]
    terms = {
        "ce_class": HardLabels(),
        "kl_class": SoftLabels(temperature, views="all"),
        "kl_heads": AuxiliaryTransfer(temperature),
    }
    for name, objective in terms.items():
        total = np.sum(expected[name])
        np.testing.assert_allclose(mean_of(objective, batch), total, **tolerance)
    loss, gradients = loss_and_gradients(terms.values(), batch)
    np.testing.assert_allclose(loss, expected["total"], **tolerance)
    expected = case["gradients"]
    np.testing.assert_allclose(gradients["logits"], expected["student_logits"], **tolerance)
    assert_heads_close(gradients, expected["student_head_logits"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=IDS)
@pytest.mark.parametrize("case", golden_cases("hsakd", "online_loss"))
def test_golden_online(case, dtype, tolerance):
    inputs, expected = case["inputs"], case["expected"]
    student = {}
    for network, prefix in enumerate(("", "peer_")):
        rows = inputs["logits"][network], inputs["head_logits"][network]
        student |= outputs(*rows, dtype, prefix)
    batch = batch_of(case, dtype, student)
    temperature = case["params"]["temperature"]
    terms = {
        "ce_class": Mutual(HardLabels()),
        "ce_heads": Mutual(AuxiliaryLabels()),
        "kl_class": Mutual(SoftLabels(temperature, views="all")),
        "kl_heads": Mutual(AuxiliaryTransfer(temperature)),
    }
    for name, objective in terms.items():
        total = np.sum(expected[name])
        np.testing.assert_allclose(mean_of(objective, batch), total, **tolerance)
    loss, gradients = loss_and_gradients(terms.values(), batch)
    np.testing.assert_allclose(loss, expected["total"], **tolerance)
    for network, prefix in enumerate(("", "peer_")):
        np.testing.assert_allclose(
            gradients[f"{prefix}logits"], case["gradients"]["logits"][network], **tolerance
        )
        assert_heads_close(gradients, case["gradients"]["head_logits"][network], tolerance, prefix)


# Closed forms


@pytest.mark.parametrize(("classes", "heads"), [(100, 3), (100, 4), (1000, 4)])
def test_equal_logits(classes, heads):
    zeros = [np.zeros([8, 4 * classes])] * heads
    network = outputs(np.zeros([8, classes]), zeros, "float64")
    batch = Batch(None, tf.constant([0, 1]), None, network, network, num_views=4)
    np.testing.assert_allclose(mean_of(HardLabels(), batch), math.log(classes), rtol=1e-12)
    expected = heads * math.log(4 * classes)
    np.testing.assert_allclose(mean_of(AuxiliaryLabels(), batch), expected, rtol=1e-12)
    assert mean_of(AuxiliaryTransfer(), batch) == 0


def test_equal_heads_have_no_gradient_and_constants_change_nothing():
    batch = random_heads()
    same = changed(batch, student=batch.teacher)
    loss, gradients = loss_and_gradients([AuxiliaryTransfer()], same)
    assert abs(loss) < 1e-12
    assert max(np.abs(gradient).max() for gradient in gradients.values()) < 1e-12
    shifted = {name: rows + 5 for name, rows in batch.student.items()}
    for objective in (AuxiliaryLabels(), AuxiliaryTransfer()):
        value = mean_of(objective, changed(batch, student=shifted))
        np.testing.assert_allclose(value, mean_of(objective, batch), rtol=1e-12)


def test_the_temperature_divides_and_multiplies_squared():
    batch = random_heads()
    cold = {name: rows / 3 for name, rows in batch.student.items()}
    teacher = {name: rows / 3 for name, rows in batch.teacher.items()}
    expected = 9 * mean_of(AuxiliaryTransfer(1.0), changed(batch, student=cold, teacher=teacher))
    np.testing.assert_allclose(mean_of(AuxiliaryTransfer(3.0), batch), expected, rtol=1e-12)


# Rows that count


@pytest.mark.parametrize("objective", [AuxiliaryLabels(), AuxiliaryTransfer()])
def test_images_of_weight_zero_take_no_part(objective):
    batch = random_heads(5, sample_weight=tf.constant([1.0, 0, 2, 1, 0]))
    kept = [0, 2, 3]
    rows = (np.array(kept)[:, None] * 4 + np.arange(4)).ravel()
    fewer = changed(
        batch,
        labels=tf.gather(batch.labels, kept),
        sample_weight=tf.constant([1.0, 2, 1]),
        teacher={name: tf.gather(rows_, rows) for name, rows_ in batch.teacher.items()},
        student={name: tf.gather(rows_, rows) for name, rows_ in batch.student.items()},
    )
    np.testing.assert_allclose(mean_of(objective, batch), mean_of(objective, fewer), rtol=1e-12)
    assert float(objective(batch)[1]) == 16


def test_unlabeled_images_reach_the_transfer_alone():
    batch = random_heads(3)
    unlabeled = changed(batch, labels=tf.constant([-1, -1, -1]))
    assert mean_of(AuxiliaryTransfer(), unlabeled) == mean_of(AuxiliaryTransfer(), batch)
    total, count = AuxiliaryLabels()(unlabeled)
    assert (float(total), float(count)) == (0, 0)
    one = changed(batch, labels=tf.constant([-1, 2, -1]))
    assert float(AuxiliaryLabels()(one)[1]) == 4


def test_one_hot_labels_equal_integers_and_soft_ones_mix():
    batch = random_heads(2, classes=3, labels=tf.constant([2, 0]))
    one_hot = changed(batch, labels=tf.one_hot([2, 0], 3, dtype=tf.float64))
    expected = mean_of(AuxiliaryLabels(), batch)
    np.testing.assert_allclose(mean_of(AuxiliaryLabels(), one_hot), expected, rtol=1e-12)
    other = mean_of(AuxiliaryLabels(), changed(batch, labels=tf.constant([1, 0])))
    soft = changed(batch, labels=tf.constant([[0, 0.25, 0.75], [1, 0, 0]], tf.float64))
    mixed = 0.75 * expected + 0.25 * other
    np.testing.assert_allclose(mean_of(AuxiliaryLabels(), soft), mixed, rtol=1e-12)


@pytest.mark.parametrize("first", [1, 2])
def test_replicas_share_the_mean(two_replicas, first):
    objectives = [AuxiliaryLabels(), AuxiliaryTransfer()]
    batch = random_heads(3)
    expected = [mean_of(objective, batch) for objective in objectives]

    def shard(begin, end):
        rows = {
            part: {name: t[4 * begin : 4 * end] for name, t in getattr(batch, part).items()}
            for part in ("teacher", "student")
        }
        return batch.labels[begin:end], rows["teacher"], rows["student"]

    def replica(labels, teacher, student):
        mine = changed(batch, labels=labels, teacher=teacher, student=student)
        terms = [objective(mine) for objective in objectives]
        return [all_sum(total) / all_sum(count) for total, count in terms]

    parts = [list(part) for part in zip(shard(0, first), shard(first, 3), strict=True)]
    for means in on_replicas(two_replicas, replica, *parts):
        np.testing.assert_allclose(means, expected, rtol=1e-12)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    "objective",
    [HardLabels(), AuxiliaryLabels(), SoftLabels(3.0, views="all"), AuxiliaryTransfer()],
    ids=lambda objective: objective.name,
)
def test_half_precision_logits_up_to_60_are_compared_in_float32(objective, half):
    batch = random_heads()
    halves, doubles = {}, {}
    for part in ("teacher", "student"):
        rows = {name: 60 * tf.tanh(rows) for name, rows in getattr(batch, part).items()}
        halves[part] = {name: tf.cast(values, half) for name, values in rows.items()}
        doubles[part] = {name: tf.cast(values, "float64") for name, values in halves[part].items()}
    assert max(np.abs(rows).max() for rows in doubles["teacher"].values()) > 59
    total, _ = objective(changed(batch, **halves))
    assert total.dtype == tf.float32
    loss, gradients = loss_and_gradients([objective], changed(batch, **halves))
    expected, expected_gradients = loss_and_gradients([objective], changed(batch, **doubles))
    assert expected > 10
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name, values in expected_gradients.items():
        gradient = tf.cast(gradients[name], "float64")
        np.testing.assert_allclose(gradient, values, rtol=1e-2, atol=1e-6, err_msg=name)


# Diagnostics


def test_diagnostics_are_accuracies_of_the_labeled_rows():
    batch = random_heads(4, classes=3, labels=tf.constant([2, 0, -1, 1]))
    batch = changed(batch, sample_weight=tf.constant([1.0, 0, 1, 3]))
    objective = AuxiliaryLabels()
    shown = objective.diagnostics(batch)
    assert list(shown) == objective.diagnostic_names(batch.student)
    assert len(shown) == 10
    counted, labels = [0, 3], [2, 1]
    for head in (1, 2):
        rows = np.reshape(batch.student[f"auxiliary_{head}"], [4, 4, 3, 4])[counted]
        exp = np.exp(rows) / np.exp(rows).sum(axis=(2, 3), keepdims=True)
        right = {name: 0 for name in ("joint", "sum", "marginal", "known", "rotation")}
        for image, label in enumerate(labels):
            for view in range(4):
                row, p = rows[image, view], exp[image, view]
                right["joint"] += np.argmax(row) == 4 * label + view
                right["sum"] += np.argmax(row.sum(axis=1)) == label
                right["marginal"] += np.argmax(p.sum(axis=1)) == label
                right["known"] += np.argmax(row[:, view]) == label
                right["rotation"] += np.argmax(p.sum(axis=0)) == view
        names = (
            "joint_accuracy",
            "class_accuracy",
            "class_accuracy_marginal",
            "class_accuracy_known_rotation",
            "rotation_accuracy",
        )
        for name, hits in zip(names, right.values(), strict=True):
            total, count = shown[f"auxiliary_{head}_{name}"]
            assert (float(total), float(count)) == (hits, 8)


def test_diagnostics_switched_off_or_without_labels():
    batch = random_heads()
    off = AuxiliaryTransfer(diagnostics=False)
    assert off.diagnostics(batch) == {}
    assert list(off.diagnostic_names(batch.student)) == []
    assert AuxiliaryTransfer().diagnostics(changed(batch, labels=None)) == {}


# Names, widths, configs


def test_heads_are_paired_by_number():
    batch = random_heads(heads=11)
    heads = {name: rows for name, rows in reversed(batch.student.items())}
    value = mean_of(AuxiliaryTransfer(), changed(batch, student=heads))
    np.testing.assert_allclose(value, mean_of(AuxiliaryTransfer(), batch), rtol=1e-12)


def shapes(heads, classes=3, width=12):
    names = [f"auxiliary_{head}" for head in range(1, heads + 1)]
    return {"logits": tf.zeros([4, classes]), **{name: tf.zeros([4, width]) for name in names}}


def test_heads_that_do_not_fit():
    transfer = AuxiliaryTransfer()
    with pytest.raises(ValueError, match=r"teacher has 3 \(.*\) and the student 2 .*`taps=`"):
        transfer.check_outputs(shapes(3), shapes(2), 4)
    with pytest.raises(ValueError, match="12 columns in the teacher and 16 in the student"):
        transfer.check_outputs(shapes(2), shapes(2, 4, 16), 4)
    sentence = r"3 classes x 4 views = 12 columns, but 'auxiliary_1' of the student has 6.*=4\)"
    for objective in (transfer, AuxiliaryLabels()):
        with pytest.raises(ValueError, match=sentence):
            objective.check_outputs(None, shapes(2, width=6), 4)
    with pytest.raises(ValueError, match="of the teacher has 6"):
        transfer.check_outputs(shapes(2, width=6), None, 4)
    AuxiliaryLabels().check_outputs(shapes(1, width=6), shapes(2), 4)  # reads no teacher
    with pytest.raises(ValueError, match="`diagnostics` must be True or False, got 1"):
        AuxiliaryLabels(diagnostics=1)


def test_mutual_asks_its_objective():
    peers = {**shapes(2), **{f"peer_{name}": rows for name, rows in shapes(3).items()}}
    with pytest.raises(ValueError, match="teacher has 3"):
        Mutual(AuxiliaryTransfer()).check_outputs(None, peers, 4)
    other = {"logits": tf.zeros([4, 3]), "peer_logits": tf.zeros([4, 5])}
    with pytest.raises(ValueError, match="5 classes and the student 3"):
        Mutual(SoftLabels()).check_outputs(None, other, 1)
    with pytest.raises(TypeError, match=r"must be an Objective without state .*, got 3"):
        Mutual(3)
    with pytest.raises(TypeError, match="no `Mutual` itself"):
        Mutual(Mutual(HardLabels()))
    assert Mutual(SimilarityTransfer()).compares_images
    assert Mutual(HardLabels()).needs_labels
    assert Mutual(SoftLabels(weight=3)).weight == 3


def test_mutual_is_the_objective_in_both_directions():
    batch = random_batch(seed=4)
    peers = {
        **batch.student,
        **{f"peer_{name}": rows for name, rows in batch.teacher.items()},
    }
    turned = changed(batch, student=batch.teacher, teacher=batch.student)
    counts = [SelectiveSoftLabels(keep_wrong=0.5)(b)[1] for b in (batch, turned)]
    assert counts[0] != counts[1]
    for objective in (SelectiveSoftLabels(keep_wrong=0.5), SimilarityTransfer()):
        expected = mean_of(objective, batch) + mean_of(objective, turned)
        value = mean_of(Mutual(objective), changed(batch, student=peers, teacher={}))
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def directions(own_right, peer_right, seed=6):
    """Peers of given logits, and the batch of each direction; right rows are told by image."""
    images = len(own_right)
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, images)
    networks = []
    for right in (own_right, peer_right):
        logits = generator.normal(size=(4 * images, 5))
        rows = np.arange(4 * images)
        logits[rows, labels.repeat(4)] = np.where(np.repeat(right, 4), 5, -5)
        networks.append({"logits": tf.constant(logits)})
    own, peer = networks
    batch = Batch(None, tf.constant(labels), None, peer, own, num_views=4)
    peers = {"logits": own["logits"], "peer_logits": peer["logits"]}
    turned = changed(batch, student=peer, teacher=own)
    return changed(batch, teacher={}, student=peers), batch, turned


ONLY_RIGHT = SelectiveSoftLabels(keep_wrong=0)
KEPT = {  # name: images that the network and its peer classify correctly
    "none of the first's": ((1, 1, 1), (0, 0, 0)),
    "none of the peer's": ((0, 0, 0), (1, 1, 1)),
    "none at all": ((0, 0, 0), (0, 0, 0)),
    "unequal": ((1, 1, 0), (0, 0, 1)),
}


@pytest.mark.parametrize("case", KEPT)
def test_mutual_adds_the_means_of_the_rows_that_each_direction_keeps(case):
    peers, batch, turned = directions(*KEPT[case])
    counts = [float(ONLY_RIGHT(one)[1]) for one in (batch, turned)]
    assert counts == [3 * sum(right) for right in reversed(KEPT[case])]
    both = [mean_of(ONLY_RIGHT, one) for one in (batch, turned)]
    assert [value > 0.1 for value in both] == [count > 0 for count in counts]
    np.testing.assert_allclose(mean_of(Mutual(ONLY_RIGHT), peers), sum(both), rtol=1e-12)
    _, gradients = loss_and_gradients([Mutual(ONLY_RIGHT)], peers)
    for name, one in (("logits", batch), ("peer_logits", turned)):
        expected = loss_and_gradients([ONLY_RIGHT], one)[1]["logits"]
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("case", "first"), [("none of the first's", 1), ("none of the peer's", 2), ("unequal", 1)]
)
def test_mutual_adds_these_means_on_replicas_too(two_replicas, case, first):
    """Of the three images one replica gets `first`."""
    peers, batch, turned = directions(*KEPT[case])
    expected = sum(mean_of(ONLY_RIGHT, one) for one in (batch, turned))

    def replica(labels, own, peer):
        student = {"logits": own, "peer_logits": peer}
        total, count = Mutual(ONLY_RIGHT)(changed(peers, labels=labels, student=student))
        return tf.math.divide_no_nan(all_sum(total), all_sum(count))

    rows = [peers.student["logits"], peers.student["peer_logits"]]
    shards = [peers.labels[:first], peers.labels[first:]]
    logits = [[tensor[: 4 * first], tensor[4 * first :]] for tensor in rows]
    for value in on_replicas(two_replicas, replica, shards, *logits):
        np.testing.assert_allclose(value, expected, rtol=1e-12)
