import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from distiller.tiny import IMAGES, everything, sgd
from replicas import on_replicas

import keras_ssd as ssd
from keras_ssd.batch import Batch
from keras_ssd.objectives.contrastive_representation import ContrastiveRepresentation
from keras_ssd.objectives.negatives import ImagesByClass

CLASSES = np.array([2, 0, 1, 1, 0, 2, 0, 5, 1, 0, 2, 2])
WIDTH = 4


def crd(labels=CLASSES, **options):
    return ContrastiveRepresentation(labels, **{"negatives": 5, "width": WIDTH, **options})


def embeddings(images, seed=0, dtype="float64"):
    vectors = np.random.default_rng(seed).normal(size=(2, images, WIDTH))
    return tf.unstack(tf.constant(vectors, dtype))


def batch_of(index, *, seed=0, weights=None, training=True, dtype="float64", vectors=None):
    teacher, student = embeddings(len(index), seed, dtype) if vectors is None else vectors
    weights = None if weights is None else tf.constant(weights, tf.float32)
    return Batch(
        images=None,
        labels=None,
        sample_weight=weights,
        teacher={"node": teacher},
        student={"node": student},
        num_views=1,
        index=tf.constant(index),
        training=training,
    )


def banks(objective):
    memory = objective.state
    return memory.student_bank.numpy(), memory.teacher_bank.numpy()


def remembered(objective):
    return [variable.numpy() for variable in objective.state.variables]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def terms_and_gradients(objective, batch):
    outputs = [batch.teacher["node"], batch.student["node"]]
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        given = {"teacher": {"node": outputs[0]}, "student": {"node": outputs[1]}}
        total, count = objective(dataclasses.replace(batch, **given))
    return (total, count), tape.gradient(total, outputs)


def drawn(objective, index, step):
    return objective.images.draw(tf.constant(index), tf.constant([objective.seed, step], tf.int64))


# --- Draws ------------------------------------------------------------------------------------


def test_negatives_are_different_images_of_other_classes():
    images = ImagesByClass(CLASSES, 8, same_class=False)  # there are exactly 8 for classes 0 and 2
    for step in range(20):
        rows = images.draw(tf.range(12), tf.constant([3, step], tf.int64)).numpy()
        assert rows.dtype == "int32"
        np.testing.assert_array_equal(rows[:, 0], np.arange(12))
        for image, row in enumerate(rows):
            assert len(set(row[1:])) == 8
            assert (CLASSES[row[1:]] != CLASSES[image]).all()
        assert set(rows[0, 1:]) == set(np.flatnonzero(CLASSES[0] != CLASSES))


def test_negatives_are_of_all_classes():
    labels = np.repeat(np.arange(100), 500)
    images = ImagesByClass(labels, 256, same_class=False)
    drawn = images.draw(tf.range(0, 50_000, 250), tf.constant([0, 1], tf.int64))
    classes = labels[drawn[:, 1:].numpy()]
    assert min(len(set(row)) for row in classes.tolist()) > 75  # of 99; a poor stride has 18
    assert not (classes == labels[drawn[:, :1].numpy()]).any()


def test_negatives_are_uniform_over_the_images_of_other_classes():
    images = ImagesByClass(CLASSES, 3, same_class=False)
    index = np.tile(np.arange(12), 2000)
    rows = images.draw(tf.constant(index), tf.constant([0, 0], tf.int64)).numpy()
    for image in range(12):
        counts = np.bincount(rows[index == image, 1:].ravel(), minlength=12)
        others = np.flatnonzero(CLASSES[image] != CLASSES)
        expected = 6000 / len(others)
        assert counts.sum() == counts[others].sum() == 6000
        np.testing.assert_allclose(counts[others], expected, atol=5 * math.sqrt(expected))
    pairs = rows[index == 7, 1:3]  # two draws of an image go with each other in no fixed way
    assert len({tuple(pair) for pair in pairs}) == 11 * 10


def test_too_few_others_are_drawn_more_than_once():
    images = ImagesByClass(CLASSES, 9, same_class=False)  # class 0 and 2 have 8 others
    rows = images.draw(tf.range(12), tf.constant([3, 1], tf.int64)).numpy()
    for image, row in enumerate(rows):
        assert (CLASSES[row[1:]] != CLASSES[image]).all()
        others = (CLASSES[image] != CLASSES).sum()
        assert len(set(row[1:])) == 9 if others >= 9 else len(set(row[1:])) <= 8
    index = np.zeros(4000, "int32")
    many = images.draw(tf.constant(index), tf.constant([3, 1], tf.int64)).numpy()[:, 1:]
    counts = np.bincount(many.ravel(), minlength=12)[CLASSES[0] != CLASSES]
    np.testing.assert_allclose(counts, 4500, atol=5 * math.sqrt(4500))


def test_positives_of_the_class():
    images = ImagesByClass(CLASSES, 5, same_class=True)
    index = np.tile(np.arange(12), 1000)
    rows = images.draw(tf.constant(index), tf.constant([0, 0], tf.int64)).numpy()
    for image in range(12):
        counts = np.bincount(rows[index == image, 0], minlength=12)
        mates = np.flatnonzero(CLASSES[image] == CLASSES)
        expected = 1000 / len(mates)
        assert counts[mates].sum() == 1000
        np.testing.assert_allclose(counts[mates], expected, atol=5 * math.sqrt(expected))


def test_draws_are_replayed_and_change_with_step_seed_and_place():
    images = ImagesByClass(CLASSES, 5, same_class=True)
    index = tf.constant([1, 1, 4])

    def draw(*seed):
        return images.draw(index, tf.constant(seed, tf.int64)).numpy()

    np.testing.assert_array_equal(draw(0, 3), draw(0, 3))
    assert (draw(0, 3) != draw(0, 4)).any()
    assert (draw(0, 3) != draw(1, 3)).any()
    assert (draw(0, 3)[0] != draw(0, 3)[1]).any()


def test_draws_are_the_same_compiled():
    for negatives in (5, 9):
        images = ImagesByClass(CLASSES, negatives, same_class=True)
        seed = tf.constant([0, 3], tf.int64)
        compiled = tf.function(
            images.draw,
            jit_compile=True,
            input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int64)],
        )
        index = tf.constant([4, 7, 0, 4])
        np.testing.assert_array_equal(compiled(index, seed), images.draw(index, seed))


# --- Value ------------------------------------------------------------------------------------


def by_hand(objective, batch, constants=None):
    """Values of the images, and Z, image by image, with the banks and draws of this step."""
    rows = drawn(objective, batch.index, int(objective.state.step.numpy())).numpy()
    n, count = len(objective.images.labels), rows.shape[1] - 1
    student_bank, teacher_bank = banks(objective)
    kept = np.ones(len(rows)) if batch.sample_weight is None else batch.sample_weight.numpy() > 0
    total, found = 0.0, []
    for place, (vectors, bank) in enumerate(
        [(batch.student["node"], teacher_bank), (batch.teacher["node"], student_bank)]
    ):
        scores = np.array(
            [
                np.exp(bank[row] @ (v / np.linalg.norm(v)) / objective.temperature)
                for row, v in zip(rows, vectors.numpy(), strict=True)
            ]
        )
        z = n * scores[kept > 0].mean() if constants is None else constants[place]
        found.append(z)
        p, c = scores / z, count / n
        total -= np.log(p[:, 0] / (p[:, 0] + c + 1e-7))
        total -= np.log(c / (p[:, 1:] + c + 1e-7)).sum(axis=1)
    return total, found


@pytest.mark.parametrize("positives", ["self", "class"])
def test_value_by_hand(float64, positives):
    objective = crd(positives=positives, temperature=0.5)
    batch = batch_of([3, 0, 7, 11], weights=[1.0, 2, 0.5, 0])
    values, constants = by_hand(objective, batch)
    total, count = objective(batch)
    np.testing.assert_allclose(total, values[:3] @ [1, 2, 0.5], rtol=1e-12)
    assert float(count) == 3.5
    np.testing.assert_allclose(objective.state.constants.numpy(), constants, rtol=1e-12)
    later = batch_of([5, 3, 1, 0], seed=1)
    values, _ = by_hand(objective, later, constants)
    np.testing.assert_allclose(objective(later)[0], values.sum(), rtol=1e-12)
    np.testing.assert_allclose(objective.state.constants.numpy(), constants, rtol=1e-12)


def test_gradients_reach_both_networks_and_no_bank(float64):
    objective, step = crd(temperature=0.5), 1e-6
    objective.state.constants.assign([20.0, 30.0])
    before, batch = remembered(objective), batch_of([3, 0, 7], training=False)
    _, gradients = terms_and_gradients(objective, batch)
    for network, gradient in zip(("teacher", "student"), gradients, strict=True):
        nudge = np.zeros((3, WIDTH))
        nudge[1, 2] = step
        values = []
        for sign in (1, -1):
            moved = {network: {"node": getattr(batch, network)["node"] + sign * nudge}}
            values.append(float(objective(dataclasses.replace(batch, **moved))[0]))
        np.testing.assert_allclose(gradient[1, 2], (values[0] - values[1]) / 2 / step, rtol=1e-7)
    assert objective.trains_teacher_head
    assert not objective.state.trainable_variables
    assert_equal(remembered(objective), before)


def test_the_constants_have_no_gradient(float64):
    batch = batch_of([3, 0, 7], training=False)
    unset, fixed = crd(temperature=0.5), crd(temperature=0.5)
    _, constants = by_hand(unset, batch)
    fixed.state.constants.assign(constants)
    (value, _), gradients = terms_and_gradients(unset, batch)
    (expected, _), wanted = terms_and_gradients(fixed, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for gradient, each in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(gradient, each, rtol=1e-10)


def test_first_banks():
    first, second = banks(crd(np.arange(2000) % 7, width=12))
    for bank in (first, second):
        assert bank.shape == (2000, 12)
        assert 0.49 < bank.max() <= 0.5
        assert -0.5 <= bank.min() < -0.49
        np.testing.assert_allclose(bank.mean(), 0, atol=0.01)
        np.testing.assert_allclose((bank**2).sum(axis=1).mean(), 1, atol=0.02)
    assert (first != second).all()
    assert_equal(banks(crd()), banks(crd()))
    assert (banks(crd())[0] != banks(crd(seed=1))[0]).all()
    assert (banks(crd())[1] != banks(crd(seed=1))[0]).all()


# --- Memory -----------------------------------------------------------------------------------


def test_rows_of_the_batch_move_and_others_stay():
    objective = crd(momentum=0.25)
    before, batch = banks(objective), batch_of([3, 0, 7], dtype="float32")
    objective(batch)
    vectors = batch.student["node"].numpy(), batch.teacher["node"].numpy()
    for old, new, rows in zip(before, banks(objective), vectors, strict=True):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        moved = 0.25 * old[[3, 0, 7]] + 0.75 * rows
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        np.testing.assert_allclose(new[[3, 0, 7]], moved, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(new[[3, 0, 7]], axis=1), 1, rtol=1e-6)
        others = [i for i in range(12) if i not in (3, 0, 7)]
        np.testing.assert_array_equal(new[others], old[others])
    assert int(objective.state.step.numpy()) == 1


def test_the_last_of_equal_images_is_remembered():
    objective, last = crd(), crd()
    batch = batch_of([3, 0, 3, 3, 0], weights=[1, 1, 1, 0, 1], dtype="float32")
    objective(batch)
    rows = [tf.gather(outputs["node"], [4, 2]) for outputs in (batch.teacher, batch.student)]
    last(batch_of([0, 3], vectors=rows))
    assert_equal(banks(objective), banks(last))


def test_images_of_weight_0_are_not_remembered():
    objective, some = crd(), crd()
    batch = batch_of([3, 0, 7, 500, -1], weights=[0, 1, 0, 0, 0], dtype="float32")
    before = banks(objective)
    total, count = objective(batch)
    assert math.isfinite(total)
    assert float(count) == 1
    for old, new in zip(before, banks(objective), strict=True):
        assert (new[0] != old[0]).any()
        np.testing.assert_array_equal(new[1:], old[1:])
    some(batch_of([0], vectors=[x["node"][1:2] for x in (batch.teacher, batch.student)]))
    assert_equal(banks(objective), banks(some))


@pytest.mark.parametrize("side", [0, 1])
def test_nan_is_shown_and_not_remembered(side):
    objective = crd()
    objective(batch_of([3, 1, 4]))
    before = banks(objective)
    vectors = [each.numpy() for each in embeddings(3, 1)]
    vectors[side][1] = math.nan
    total, _ = objective(batch_of([3, 1, 4], vectors=[*map(tf.constant, vectors)]))
    assert math.isnan(total)
    after = banks(objective)
    broken = 1 - side  # the first vectors are the teacher's, the first bank is the student's
    np.testing.assert_array_equal(after[broken][1], before[broken][1])
    assert np.isfinite(after).all()
    for old, new in zip(before, after, strict=True):
        assert np.any(old[[3, 4]] != new[[3, 4]])


def test_an_evaluation_changes_nothing():
    objective = crd()
    before = remembered(objective)
    first = float(objective(batch_of([3, 0, 7], training=False, dtype="float32"))[0])
    assert math.isfinite(first)
    assert_equal(remembered(objective), before)
    assert float(objective(batch_of([3, 0, 7], dtype="float32"))[0]) == first


def test_a_batch_without_weight_is_nothing_and_sets_no_constant():
    objective = crd()
    batch = batch_of([3, 0, 7], weights=[0.0, 0, 0], dtype="float32")
    before = banks(objective)
    terms, gradients = terms_and_gradients(objective, batch)
    np.testing.assert_array_equal(terms, [0, 0])
    assert not any(np.any(gradient) for gradient in gradients)
    np.testing.assert_array_equal(objective.state.constants.numpy(), [0, 0])
    assert_equal(banks(objective), before)
    objective(batch_of([3, 0, 7], dtype="float32"))
    assert (objective.state.constants.numpy() > 0).all()


DEGENERATE = {
    "zeros": np.zeros((3, WIDTH)),
    "tiny": np.full((3, WIDTH), 1e-25),
    "huge": np.full((3, WIDTH), 1e15),
    "equal rows": np.ones((3, WIDTH)),
}


@pytest.mark.parametrize("temperature", [0.03, 0.07])
@pytest.mark.parametrize("name", DEGENERATE)
def test_values_gradients_and_banks_are_finite(name, temperature):
    objective = crd(temperature=temperature)
    rows = tf.constant(DEGENERATE[name], tf.float32)
    for _ in range(3):
        results = terms_and_gradients(objective, batch_of([3, 0, 7], vectors=(rows, -rows)))
        for result in tf.nest.flatten(results):
            assert np.isfinite(result).all()
    for bank in banks(objective):
        np.testing.assert_allclose(np.linalg.norm(bank[[3, 0, 7]], axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_halves_are_computed_in_float32(dtype):
    halves, floats = crd(), crd()
    vectors = [tf.cast(each, dtype) for each in embeddings(3)]
    terms, gradients = terms_and_gradients(halves, batch_of([3, 0, 7], vectors=vectors))
    rows = [tf.cast(each, tf.float32) for each in vectors]
    np.testing.assert_array_equal(terms, floats(batch_of([3, 0, 7], vectors=rows)))
    assert terms[0].dtype == tf.float32
    assert [gradient.dtype for gradient in gradients] == [dtype] * 2
    assert_equal(remembered(halves), remembered(floats))


@pytest.mark.parametrize(("teachers", "students"), [("float32", "float64"), ("float64", "float32")])
def test_networks_of_two_precisions(teachers, students):
    vectors = embeddings(3, dtype="float32")
    both = [tf.cast(rows, dtype) for rows, dtype in zip(vectors, (teachers, students), strict=True)]
    found, expected = (crd()(batch_of([0, 1, 2], vectors=given)) for given in (both, vectors))
    assert found[0].dtype.name == students
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)


def test_compiled_equals_eager(float64):
    plain, xla = crd(positives="class"), crd(positives="class")
    batch = batch_of([3, 0, 3, 7], weights=[1.0, 2, 1, 0])
    given = (batch.index, batch.sample_weight, batch.teacher["node"], batch.student["node"])
    specs = [tf.TensorSpec([None, *each.shape[1:]], each.dtype) for each in given]

    @tf.function(jit_compile=True, input_signature=specs)
    def compiled(index, weights, teacher, student):
        mine = dataclasses.replace(
            batch,
            index=index,
            sample_weight=weights,
            teacher={"node": teacher},
            student={"node": student},
        )
        return terms_and_gradients(xla, mine)

    for _ in range(3):
        found, expected = compiled(*given), terms_and_gradients(plain, batch)
        for one, other in zip(*map(tf.nest.flatten, (found, expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)
    for one, other in zip(remembered(xla), remembered(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


# --- Replicas ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [3, 5, 6, 1], ids=["halves", "uneven", "empty", "one"])
def test_replicas_equal_one_device(two_replicas, float64, split):
    options = {"positives": "class", "negatives": 9}  # some classes have fewer others
    one = crd(**options)
    with two_replicas.scope():
        two = crd(**options)
    index, weights = np.array([3, 0, 7, 3, 5, 0]), np.array([0.5, 1, 1, 2, 0, 1], "float32")
    for seed in range(3):
        batch = batch_of(index, seed=seed, weights=weights)
        (total, count), expected = terms_and_gradients(one, batch)

        def run(index, weights, teacher, student):
            vectors = (teacher, student)
            mine = dataclasses.replace(batch_of([0], vectors=vectors), index=index)
            return terms_and_gradients(two, dataclasses.replace(mine, sample_weight=weights))

        tensors = (batch.index, batch.sample_weight, batch.teacher["node"], batch.student["node"])
        shards = [[each[:split], each[split:]] for each in tensors]
        found = on_replicas(two_replicas, run, *shards)
        np.testing.assert_allclose(sum(f[0][0] for f in found), total, rtol=1e-10)
        np.testing.assert_allclose(sum(f[0][1] for f in found), count, rtol=1e-12)
        for place in (0, 1):
            gradient = tf.concat([f[1][place] for f in found], 0)
            np.testing.assert_allclose(gradient, expected[place], rtol=1e-10, atol=1e-13)
    for mine, reference in zip(two.state.variables, one.state.variables, strict=True):
        first, second = two_replicas.experimental_local_results(mine.value)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, reference.numpy(), rtol=1e-10, atol=1e-13)


# --- In a Distiller ---------------------------------------------------------------------------


def student_network():
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 128, -1, dtype="float32")(images)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(5, 3, activation="relu")(x))
    logits, node = keras.layers.Dense(3)(x), keras.layers.Dense(WIDTH, name="node")(x)
    return keras.Model(images, {"logits": logits, "node": node})


def tiny_distiller(graph=True):
    keras.utils.set_random_seed(1)
    objectives = [ssd.objectives.HardLabels(), crd(labels=CLASSES)]
    model = ssd.Distiller(student=student_network(), objectives=objectives)
    model.compile(sgd(0.05, momentum=0.9), run_eagerly=not graph)
    return model


def training_data(size=5):
    stored = {"node": np.random.default_rng(5).normal(size=(12, WIDTH)).astype("float32")}
    x = {"image": IMAGES, "index": np.arange(12), "teacher": stored}
    return tf.data.Dataset.from_tensor_slices((x, CLASSES % 3)).batch(size)


def trained(model, epochs, start=0):
    model.fit(training_data(), epochs=start + epochs, initial_epoch=start, verbose=0)
    return model


@pytest.mark.parametrize("form", ["model.keras", "model.weights.h5"])
def test_a_resumed_run_is_the_uninterrupted_one(form, tmp_path):
    model = trained(tiny_distiller(), 1)
    (model.save if form == "model.keras" else model.save_weights)(tmp_path / form)
    constants = model.objectives[1].state.constants.numpy()
    assert (constants > 0).all()
    if form == "model.keras":
        resumed = keras.models.load_model(tmp_path / form)
    else:
        resumed = tiny_distiller()
        resumed.load_weights(tmp_path / form)
    assert_equal(remembered(resumed.objectives[1]), remembered(model.objectives[1]))
    assert_equal(everything(trained(resumed, 1, 1)), everything(trained(model, 1, 1)))
    np.testing.assert_array_equal(resumed.objectives[1].state.constants.numpy(), constants)
    assert int(resumed.objectives[1].state.step.numpy()) == 6


def test_check_and_evaluation_leave_the_memory_alone(capsys):
    model = tiny_distiller(graph=False)
    before = everything(model)
    model.check(training_data())
    model.evaluate(training_data(), verbose=0)
    assert_equal(everything(model), before)


# --- What is refused --------------------------------------------------------------------------


def test_an_image_without_a_place_takes_no_part():
    """The same as an image of weight 0."""
    one, other = crd(), crd()
    without = dataclasses.replace(batch_of([3, -1, 0]), sample_weight=tf.ones([3]))
    weighted = batch_of([3, 5, 0], weights=np.array([1, 0, 1], "float32"))
    for _ in range(2):
        found, expected = one(without), other(weighted)
        np.testing.assert_array_equal(found, expected)
    assert_equal(remembered(one), remembered(other))


def test_an_index_is_needed():
    batch = dataclasses.replace(batch_of([3, 0]), index=None)
    with pytest.raises(ValueError, match=r'`contrastive_representation` needs.*give `x` as {"ima'):
        crd()(batch)


@pytest.mark.parametrize("index", [[[3], [0]], [3.0, 0.0]], ids=["rank", "floats"])
def test_an_index_is_one_integer_an_image(index):
    with pytest.raises(ValueError, match="needs an `index` of one integer an image, got"):
        crd()(dataclasses.replace(batch_of([3, 0]), index=tf.constant(index)))


@pytest.mark.parametrize("wrong", [12, -2, 2**40 + 1], ids=["large", "negative", "wraps"])
def test_an_unknown_image_stops_the_run_before_the_memory_changes(wrong):
    objective = crd()
    batch = batch_of([3, wrong, 0], dtype="float32")
    before = remembered(objective)[:3]
    words = f"has the labels of images 0..11, got an `index` from {min(wrong, 0)} to"
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        objective(batch)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"has the labels of images 0\.\.11"):
        tf.function(lambda: objective(batch))()
    assert_equal(remembered(objective)[:3], before)


def test_under_xla_an_unknown_image_makes_the_loss_nan():
    objective = crd()
    batch = batch_of([3, 12, 0], dtype="float32")
    compiled = tf.function(lambda: terms_and_gradients(objective, batch), jit_compile=True)
    (total, _), gradients = compiled()
    assert math.isnan(total)
    assert not any(np.any(gradient) for gradient in gradients)
    assert all(np.isfinite(bank).all() for bank in banks(objective))


LABELS = {
    "floats": (np.array([0.0, 1.0]), TypeError, "as integers, got float64"),
    "unlabeled": ([0, 1, -1], ValueError, "`labels` must be at least 0, got -1: an unlabeled"),
    "one-hot": (np.eye(3, dtype=int), ValueError, r"`labels` must be \[images\]"),
    "none": (np.zeros(0, int), ValueError, r"`labels` must be \[images\]"),
    "one class": ([3, 3, 3], ValueError, "at least two classes, got one"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_classes_of_all_images(name):
    labels, error, words = LABELS[name]
    with pytest.raises(error, match=words):
        crd(labels)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"negatives": 0}, "`negatives` must be an integer >= 1, got 0"),
        ({"negatives": 2.0}, "`negatives` must be an integer >= 1, got 2.0"),
        ({"width": True}, "`width` must be an integer >= 1, got True"),
        ({"seed": -1}, "`seed` must be an integer >= 0, got -1"),
        ({"temperature": 0.0}, "`temperature` must be a finite number > 0"),
        ({"temperature": 0.01}, r"`temperature` must be at least 0.03, got 0.01"),
        ({"momentum": 1.5}, "`momentum` must be a number in 0..1, got 1.5"),
        ({"positives": "all"}, "`positives` must be one of .* got 'all'"),
        ({"weight": -1}, "`weight` must be a finite number"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        crd(**options)


@pytest.mark.parametrize("owner", ["teacher", "student"])
@pytest.mark.parametrize("shape", [(None, 7), (None, 2, WIDTH)])
def test_embeddings_must_be_as_wide_as_the_memory(owner, shape):
    outputs = {"teacher": None, "student": None, owner: {"node": keras.Input(shape[1:])}}
    with pytest.raises(ValueError, match=rf"width 4, but 'node' of the {owner} has shape"):
        crd().check_outputs(**outputs, num_views=1)
    outputs[owner] = {"node": keras.Input((WIDTH,))}
    crd().check_outputs(**outputs, num_views=1)


def test_config_round_trip():
    labels = np.random.default_rng(0).integers(0, 1000, 5000)
    objective = crd(
        labels,
        negatives=7,
        temperature=0.1,
        momentum=0.3,
        positives="class",
        seed=4,
        weight=0.5,
        teacher_output="t",
        student_output="s",
        name="mine",
    )
    config = json.loads(json.dumps(objective.get_config()))
    assert len(config["labels"]) < 3 * len(labels)
    serialised = keras.saving.serialize_keras_object(objective)
    for again in (
        ContrastiveRepresentation.from_config(config),
        keras.saving.deserialize_keras_object(serialised),
    ):
        assert again.get_config() == objective.get_config()
        np.testing.assert_array_equal(again.images.labels, labels)
        assert_equal(remembered(again), remembered(objective))
        batch = batch_of([3, 0], dtype="float32", training=False)
        renamed = dataclasses.replace(
            batch, teacher={"t": batch.teacher["node"]}, student={"s": batch.student["node"]}
        )
        np.testing.assert_array_equal(again(renamed), objective(renamed))


def test_defaults():
    objective = ContrastiveRepresentation(CLASSES)
    config = objective.get_config()
    del config["labels"]
    assert config == {
        "weight": 0.8,
        "name": "contrastive_representation",
        "negatives": 16384,
        "temperature": 0.07,
        "momentum": 0.5,
        "positives": "self",
        "width": 128,
        "seed": 0,
        "teacher_output": "node",
        "student_output": "node",
    }
    memory = objective.state
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(memory))
    assert_equal([v.numpy() for v in again.variables], remembered(objective))


def test_only_the_plain_rows_are_read():
    teacher, student = embeddings(6, dtype="float32")
    views = dataclasses.replace(batch_of([3, 0], vectors=(teacher, student)), num_views=3)
    plain = batch_of([3, 0], vectors=(teacher[::3], student[::3]))
    np.testing.assert_array_equal(crd()(views), crd()(plain))
