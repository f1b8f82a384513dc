"""What holds for every objective."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd.objectives import (
    ContrastivePretext,
    HardLabels,
    Objective,
    SelectiveSoftLabels,
    SimilarityTransfer,
    SoftLabels,
)
from objectives.batches import (
    EXACT,
    OBJECTIVES,
    changed,
    images_of,
    loss_and_gradients,
    loss_of,
    random_batch,
    rows_of,
    with_student,
    with_teacher,
)

each_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


# Rows that take part, and rows that do not


@each_objective
def test_an_image_of_weight_0_vanishes(objective):
    kept = [0, 2, 3, 5]
    whole = random_batch(sample_weight=[1.0, 0, 1, 2, 0, 0.5])
    part = images_of(whole, kept)
    np.testing.assert_allclose(objective(whole), objective(part), **EXACT)
    _, gradients = loss_and_gradients([objective], whole)
    _, expected = loss_and_gradients([objective], part)
    for name, gradient in gradients.items():
        assert not np.any(tf.gather(gradient, rows_of([1, 4])))
        np.testing.assert_allclose(tf.gather(gradient, rows_of(kept)), expected[name], **EXACT)


@each_objective
def test_equal_weights_are_no_weights(objective):
    total, count = objective(random_batch())
    doubled = objective(random_batch(sample_weight=[2.0] * 6))
    np.testing.assert_allclose(doubled, [2 * total, 2 * count], **EXACT)


@pytest.mark.parametrize("name", ["hard", "soft", "soft, all rows"])
def test_a_weight_of_2_is_an_image_given_twice(name):
    objective = OBJECTIVES[name]
    weighted = random_batch(3, sample_weight=[1.0, 2, 1])
    twice = images_of(random_batch(3), [0, 1, 1, 2])
    np.testing.assert_allclose(objective(weighted), objective(twice), **EXACT)


LABELS = {
    "integers": [2, 0, -1, 1, 3, -1],
    "one-hot": np.eye(6)[[2, 0, 5, 1, 3, 5]][:, :5],
    "integer one-hot": np.eye(6, dtype=int)[[2, 0, 5, 1, 3, 5]][:, :5],
}


@each_objective
@pytest.mark.parametrize("form", LABELS)
def test_forms_of_labels(objective, form):
    batch = random_batch(labels=LABELS[form])
    if not objective.needs_labels:
        assert_same_terms = objective(changed(batch, labels=None))
    else:  # the images without a label do not count
        labeled = [0, 1, 3, 4]
        assert_same_terms = objective(images_of(random_batch(labels=LABELS["integers"]), labeled))
    np.testing.assert_allclose(objective(batch), assert_same_terms, **EXACT)


@pytest.mark.parametrize("name", ["hard", "selective"])
def test_missing_labels_are_an_error(name):
    with pytest.raises(ValueError, match="This batch has no labels"):
        OBJECTIVES[name](changed(random_batch(), labels=None))


def assert_nothing(terms, loss, gradients):
    assert float(terms[0]) == float(terms[1]) == float(loss) == 0
    for gradient in gradients.values():
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@each_objective
def test_no_weight_gives_0_and_a_gradient_of_0(objective, dtype):
    batch = random_batch(dtype=dtype, sample_weight=[0.0] * 6)
    assert_nothing(objective(batch), *loss_and_gradients([objective], batch))


@pytest.mark.parametrize("labels", [[-1] * 6, np.zeros([6, 5])], ids=["integers", "one-hot"])
@pytest.mark.parametrize("name", ["hard", "selective"])
def test_no_label_gives_0_and_a_gradient_of_0(name, labels):
    batch = random_batch(labels=labels, dtype="float32")
    assert_nothing(OBJECTIVES[name](batch), *loss_and_gradients([OBJECTIVES[name]], batch))


@pytest.mark.parametrize("name", ["selective", "similarity"])
def test_nothing_kept_gives_0_and_a_gradient_of_0(name):
    batch = random_batch(dtype="float32")
    objective = type(OBJECTIVES[name])(keep_wrong=0.0)
    wrong = -tf.one_hot(tf.repeat(batch.labels, 4), 5)
    vectors = batch.teacher["projection"]
    moved = tf.reshape(vectors, [6, 4, 8])
    moved = tf.concat([moved[:, :1], -1.0 * tf.repeat(moved[:, :1], 3, axis=1)], 1)
    batch = with_teacher(batch, logits=wrong, projection=tf.reshape(moved, [24, 8]))
    assert_nothing(objective(batch), *loss_and_gradients([objective], batch))


@each_objective
def test_a_batch_of_one_image(objective):
    total, count = objective(random_batch(1, dtype="float32"))
    assert math.isfinite(total)
    if objective.compares_images:
        assert float(total) == 0
        assert float(count) == 3
        _, gradients = loss_and_gradients([objective], random_batch(1, dtype="float32"))
        np.testing.assert_array_equal(gradients["projection"], np.zeros([4, 8]))


# What is read


@each_objective
def test_no_gradient_reaches_the_teacher(objective):
    batch = random_batch()
    with tf.GradientTape() as tape:
        tape.watch(batch.teacher)
        loss = loss_of([objective], batch)
    assert not any(np.any(g) for g in tape.gradient(loss, batch.teacher).values() if g is not None)


@each_objective
def test_which_rows_are_read(objective):
    batch = random_batch()
    _, gradients = loss_and_gradients([objective], batch)
    moves = {name: np.any(gradient, axis=1) for name, gradient in gradients.items()}
    plain = np.arange(24) % 4 == 0
    reads = {
        "hard": plain,
        "soft": plain,
        "soft, all rows": np.ones(24, bool),
        "symmetric": plain,
        "Jensen-Shannon": ~plain,
        "soft cross-entropy": np.ones(24, bool),
        "selective": ~plain,
    }
    name = next(name for name, known in OBJECTIVES.items() if known is objective)
    if name in reads:
        assert not moves["projection"].any()
        assert not moves["logits"][~reads[name]].any()
        assert moves["logits"][reads[name]].sum() >= reads[name].sum() / 2
        outside = tf.constant(100.0 * ~reads[name][:, None] * np.arange(5.0))
        others = with_student(batch, logits=batch.student["logits"] + outside)
        others = with_teacher(others, logits=batch.teacher["logits"] - outside)
        np.testing.assert_array_equal(objective(others), objective(batch))
    elif name.startswith("auxiliary"):
        assert not moves["logits"].any()
        assert not moves["projection"].any()
        assert moves["auxiliary_1"].all()
        assert moves["auxiliary_2"].all()
    else:
        assert not moves["logits"].any()
        assert moves["projection"][plain].all()
        assert moves["projection"][~plain].sum() >= 9


# Precision and compilation


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
@each_objective
def test_halves_are_computed_in_float32(objective, dtype):
    halves = random_batch(dtype=dtype)
    floats = changed(
        halves,
        teacher={name: tf.cast(tensor, tf.float32) for name, tensor in halves.teacher.items()},
        student={name: tf.cast(tensor, tf.float32) for name, tensor in halves.student.items()},
    )
    total, count = objective(halves)
    assert total.dtype == count.dtype == tf.float32
    np.testing.assert_array_equal((total, count), objective(floats))
    _, gradients = loss_and_gradients([objective], halves)
    assert all(gradient.dtype == dtype for gradient in gradients.values())


@each_objective
def test_huge_outputs_stay_finite(objective):
    batch = random_batch(dtype="float32")
    huge = changed(
        batch,
        teacher={name: 1e3 * tensor for name, tensor in batch.teacher.items()},
        student={name: 1e3 * tensor for name, tensor in batch.student.items()},
    )
    loss, gradients = loss_and_gradients([objective], huge)
    assert math.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("known", "labels"),
    [(True, [2, 0, -1, 1]), (False, np.eye(5)[[2, 0, 4, 1]])],
    ids=["static, integers", "any batch, one-hot"],
)
@each_objective
def test_compiled_equals_eager(objective, known, labels):
    batch = random_batch(4, labels=labels, sample_weight=[1.0, 2, 1, 0])
    given = (batch.labels, batch.sample_weight, batch.teacher, batch.student)
    signature = tf.nest.map_structure(
        lambda tensor: tf.TensorSpec(
            [tensor.shape[0] if known else None, *tensor.shape[1:]], tensor.dtype
        ),
        given,
    )

    @tf.function(jit_compile=True, input_signature=signature)
    def compiled(labels, sample_weight, teacher, student):
        mine = changed(
            batch, labels=labels, sample_weight=sample_weight, teacher=teacher, student=student
        )
        total, count = objective(mine)
        assert total.shape == count.shape == ()
        return (total, count), loss_and_gradients([objective], mine)

    terms, (loss, gradients) = compiled(*given)
    np.testing.assert_allclose(terms, objective(batch), **EXACT)
    expected_loss, expected = loss_and_gradients([objective], batch)
    np.testing.assert_allclose(loss, expected_loss, **EXACT)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, expected[name], **EXACT)

    nothing = compiled(given[0], tf.zeros([4]), *given[2:])
    assert_nothing(nothing[0], *nothing[1])


# Construction


@each_objective
def test_serialisation(objective):
    read = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
    again = type(objective)(**objective.get_config())
    for other in (read, again):
        assert type(other) is type(objective)
        assert other.get_config() == objective.get_config()
        assert vars(other) == vars(objective)
        np.testing.assert_array_equal(other(random_batch()), objective(random_batch()))


def test_the_names_of_outputs_are_read_and_saved():
    batch = random_batch()
    renamed = changed(
        batch,
        teacher={f"t_{name}": tensor for name, tensor in batch.teacher.items()},
        student={f"s_{name}": tensor for name, tensor in batch.student.items()},
    )
    named = [each for key, each in OBJECTIVES.items() if not key.startswith("auxiliary")]
    for objective in named:  # auxiliary classifiers are read by their numbers
        names = {}
        if objective.teacher_outputs:
            names["teacher_output"] = f"t_{objective.teacher_outputs[0]}"
        names["student_output"] = f"s_{objective.student_outputs[0]}"
        other = type(objective)(**{**objective.get_config(), **names})
        assert names.items() <= other.get_config().items()
        np.testing.assert_array_equal(other(renamed), objective(batch))


def test_default_names_and_weights():
    names = {
        HardLabels: "hard_labels",
        SoftLabels: "soft_labels",
        SelectiveSoftLabels: "selective_soft_labels",
        SimilarityTransfer: "similarity_transfer",
        ContrastivePretext: "contrastive_pretext",
    }
    for kind, name in names.items():
        assert (kind().name, kind().weight) == (name, 1.0)
        assert kind(name="mine").name == "mine"


@pytest.mark.parametrize("kind", dict.fromkeys(map(type, OBJECTIVES.values())))
@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, True, "1", None], ids=repr)
def test_a_weight_must_be_a_finite_number(kind, weight):
    with pytest.raises(ValueError, match=r"`weight` must be a finite number >= 0, got"):
        kind(weight=weight)


@pytest.mark.parametrize(
    "kind", [SoftLabels, SelectiveSoftLabels, SimilarityTransfer, ContrastivePretext]
)
@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, True, "4", None], ids=repr)
def test_a_temperature_must_be_positive_and_finite(kind, temperature):
    with pytest.raises(ValueError, match="`temperature` must be a finite number > 0, got"):
        kind(temperature)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (HardLabels, "label_smoothing"),
        (SelectiveSoftLabels, "keep_wrong"),
        (SimilarityTransfer, "keep_wrong"),
    ],
)
@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, True, "half", None], ids=repr)
def test_a_share_must_lie_in_0_to_1(kind, name, share):
    with pytest.raises(ValueError, match=rf"`{name}` must be a number in 0..1, got"):
        kind(**{name: share})


def test_numbers_of_numpy_are_numbers():
    objective = SelectiveSoftLabels(np.float32(2), keep_wrong=np.float64(0.5), weight=np.int64(3))
    numbers = [objective.temperature, objective.keep_wrong, objective.weight]
    assert numbers == [2.0, 0.5, 3.0]
    assert {type(number) for number in numbers} == {float}


def test_an_objective_must_say_how_it_is_computed():
    with pytest.raises(TypeError, match="abstract"):
        Objective()
