"""What holds for every objective, and for the four terms of SSKD together."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import golden_cases
from replicas import on_replicas

from keras_ssd.collectives import all_sum
from keras_ssd.objectives import (
    ContrastivePretext,
    HardLabels,
    Objective,
    SelectiveSoftLabels,
    SimilarityTransfer,
    SoftLabels,
)
from objectives.batches import (
    OBJECTIVES,
    changed,
    golden_batch,
    golden_objectives,
    images_of,
    loss_and_gradients,
    loss_of,
    mean_of,
    random_batch,
    rows_of,
    with_student,
    with_teacher,
)

EXACT = {"rtol": 1e-10, "atol": 1e-13}
PRECISIONS = [("float64", EXACT), ("float32", {"rtol": 2e-5, "atol": 2e-6})]
SSKD = golden_cases("sskd", "sskd_losses") + golden_cases("sskd", "sskd_losses_masked")

each_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


# Golden values


@pytest.mark.parametrize("case", SSKD)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["float64", "float32"])
def test_golden(case, dtype, tolerance):
    batch, objectives = golden_batch(case, dtype), golden_objectives(case["params"])
    for name, objective in objectives.items():
        total, count = objective(batch)
        assert total.dtype == count.dtype == dtype
        mean = tf.math.divide_no_nan(total, count)
        np.testing.assert_allclose(mean, case["expected"][name], **tolerance)
    for name in ("tf", "ss"):
        _, count = objectives[f"loss_{name}"](batch)
        assert float(count) == case["expected"][f"n_kept_{name}"]

    loss, gradients = loss_and_gradients(objectives.values(), batch)
    np.testing.assert_allclose(loss, case["expected"]["total"], **tolerance)
    logits = case["gradients"]["student_logits"]
    np.testing.assert_allclose(gradients["logits"], logits, **tolerance)
    projections = np.array(case["gradients"]["student_proj"])
    rows = np.any(batch.student["projection"], axis=1)  # at a zero vector nothing is defined
    assert len(rows) - sum(rows) == ("one_zero" in case["name"])
    np.testing.assert_allclose(gradients["projection"][rows], projections[rows], **tolerance)
    assert np.isfinite(gradients["projection"]).all()


@pytest.mark.parametrize("case", golden_cases("sskd", "replica_shares"))
def test_golden_total_of_the_undivided_batch(case):
    batch, objectives = golden_batch(case), golden_objectives(case["params"])
    loss = loss_of(objectives.values(), batch)
    np.testing.assert_allclose(loss, case["expected"]["total"], **EXACT)
    for name in ("tf", "ss"):
        _, count = objectives[f"loss_{name}"](batch)
        assert float(count) == case["expected"][f"n_kept_{name}"]


# Replicas


def terms_on_replicas(strategy, objectives, batch, first):
    """Terms of each replica, and its gradients of the global loss; `first` images on the first."""
    shards = [images_of(batch, range(first)), images_of(batch, range(first, len(batch.labels)))]
    tensors = ("labels", "sample_weight", "teacher", "student")

    def replica(*parts):
        student = dict(parts[3])
        with tf.GradientTape() as tape:
            tape.watch(student)
            mine = changed(batch, **dict(zip(tensors, [*parts[:3], student], strict=True)))
            terms = [objective(mine) for objective in objectives]
            share = sum(
                objective.weight * tf.math.divide_no_nan(total, all_sum(count))
                for objective, (total, count) in zip(objectives, terms, strict=True)
            )
        none = tf.UnconnectedGradients.ZERO
        return terms, share, tape.gradient(share, student, unconnected_gradients=none)

    parts = [[getattr(shard, name) for shard in shards] for name in tensors]
    return on_replicas(strategy, replica, *parts)


@pytest.mark.parametrize("case", golden_cases("sskd", "replica_shares")[:1])
def test_golden_shares_of_two_replicas(two_replicas, case):
    assert case["params"]["replicas"] == 2
    objectives = golden_objectives(case["params"])
    batch = changed(golden_batch(case), sample_weight=tf.ones([6]))
    results = terms_on_replicas(two_replicas, list(objectives.values()), batch, 3)
    factors = [1, *(case["params"][f"{name}_T"] ** 2 for name in ("kd", "tf", "ss"))]
    for expected, (terms, share, _) in zip(case["expected"]["replicas"], results, strict=True):
        for name, factor, (total, count) in zip(
            ("ce", "kd", "tf", "ss"), factors, terms, strict=True
        ):
            np.testing.assert_allclose(total, factor * expected[f"{name}_sum"], **EXACT)
            assert float(count) == expected.get(f"{name}_kept", 3)
        np.testing.assert_allclose(share, expected["share_of_total"], **EXACT)


@pytest.mark.parametrize("first", [4, 0], ids=["4 and 3", "0 and 7"])
def test_two_replicas_are_one(two_replicas, first):
    weights = [1.0, 0, 2, 1, 0.5, 1, 0]
    batch = random_batch(7, labels=[0, 1, -1, 3, 4, 2, 2], sample_weight=weights)
    objectives = list(OBJECTIVES.values())
    results = terms_on_replicas(two_replicas, objectives, batch, first)
    loss, gradients = loss_and_gradients(objectives, batch)
    np.testing.assert_allclose(sum(share for _, share, _ in results), loss, **EXACT)
    for name, gradient in gradients.items():
        parts = [replica[2][name] for replica in results]
        np.testing.assert_allclose(tf.concat(parts, 0), gradient, **EXACT)


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


# Invariances


def sskd(ratio):
    return [
        HardLabels(0.1),
        SoftLabels(weight=0.9),
        SelectiveSoftLabels(keep_wrong=ratio, weight=2.7),
        SimilarityTransfer(keep_wrong=ratio, weight=10.0),
        ContrastivePretext(),
    ]


def test_a_student_that_is_the_teacher_has_nothing_to_learn_but_labels():
    batch = random_batch()
    batch = changed(batch, student=batch.teacher)
    for objective in sskd(0.75)[1:4]:
        assert abs(mean_of(objective, batch)) < 1e-14
        _, gradients = loss_and_gradients([objective], batch)
        for gradient in gradients.values():
            np.testing.assert_allclose(gradient, 0, atol=1e-14)
    labels = 0.1 * mean_of(HardLabels(), batch)
    np.testing.assert_allclose(loss_of(sskd(0.75)[:4], batch), labels, **EXACT)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_permuting_images_permutes_gradients(ratio):
    batch, order = random_batch(), [3, 0, 5, 1, 4, 2]
    permuted = images_of(batch, order)
    for objective in sskd(ratio):
        loss, gradients = loss_and_gradients([objective], batch)
        other_loss, other_gradients = loss_and_gradients([objective], permuted)
        np.testing.assert_allclose(other_loss, loss, **EXACT)
        for name, gradient in gradients.items():
            moved = tf.gather(gradient, rows_of(order))
            np.testing.assert_allclose(other_gradients[name], moved, **EXACT)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_permuting_transformed_views_changes_nothing(ratio):
    batch = random_batch()
    rows = np.concatenate([[4 * i, 4 * i + 3, 4 * i + 1, 4 * i + 2] for i in range(6)])
    permuted = changed(
        batch,
        teacher={name: tf.gather(tensor, rows) for name, tensor in batch.teacher.items()},
        student={name: tf.gather(tensor, rows) for name, tensor in batch.student.items()},
    )
    for objective in sskd(ratio):
        np.testing.assert_allclose(objective(permuted), objective(batch), **EXACT)


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
    else:
        assert not moves["logits"].any()
        assert moves["projection"][plain].all()
        assert moves["projection"][~plain].sum() >= 9


def test_each_row_of_logits_may_be_shifted():
    batch, shift = random_batch(), tf.constant(np.arange(24.0)[:, None])
    shifted = with_student(batch, logits=batch.student["logits"] + shift)
    shifted = with_teacher(shifted, logits=batch.teacher["logits"] - 2 * shift)
    for objective in sskd(0.75)[:3]:
        np.testing.assert_allclose(objective(shifted), objective(batch), rtol=1e-12)
        _, gradients = loss_and_gradients([objective], batch)
        np.testing.assert_allclose(tf.reduce_sum(gradients["logits"], 1), 0, atol=1e-15)


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
    for objective in OBJECTIVES.values():
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


@pytest.mark.parametrize("kind", {type(objective) for objective in OBJECTIVES.values()})
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
