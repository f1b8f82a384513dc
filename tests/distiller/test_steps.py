import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_ssd as ssd
from keras_ssd.objectives import ContrastivePretext, HardLabels, SoftLabels
from keras_ssd.views import Rotations

from .tiny import (
    IMAGES,
    KD,
    LABELS,
    LABELS_ONLY,
    ONE_HOT,
    SSKD,
    Counter,
    assert_close,
    assert_equal,
    differs,
    distiller,
    evaluate,
    everything,
    fit,
    network,
    sgd,
    step,
    teacher_network,
    trained,
)

UNLABELED = np.where(np.arange(12) % 4 == 1, -1, LABELS)
WEIGHTS = np.random.default_rng(1).uniform(0.2, 2, 12).astype("float32")
STILL = ssd.presets.sskd(
    keep_wrong_labels=0.0, keep_wrong_similarity=1.0, crop=None, flip=False
)  # views without chance, and a choice of rows that is two words of NumPy
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class PenalisesInput(layers.Layer):
    def call(self, x):
        self.add_loss(0.5 * ops.mean(ops.square(x)))
        return x


# --- How often the networks run ---------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 8])
def test_one_forward_of_each_network_a_step(number):
    objectives = {1: [SoftLabels()], 8: [*SSKD["objectives"], *_renamed(SSKD["objectives"])]}
    preset = {"objectives": objectives[number], "views": SSKD["views"]}
    of_student, of_teacher = Counter(), Counter()
    model = distiller(
        preset,
        student=network(first=of_student),
        teacher=teacher_network(first=of_teacher),
        graph=True,
        loss=CROSS_ENTROPY,
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)],
    )
    fit(model)
    assert (of_student.calls.numpy(), of_teacher.calls.numpy()) == (3, 3)
    evaluate(model)
    assert (of_student.calls.numpy(), of_teacher.calls.numpy()) == (6, 3)
    model.predict(IMAGES, batch_size=5, verbose=0)
    assert (of_student.calls.numpy(), of_teacher.calls.numpy()) == (9, 3)


def _renamed(objectives):
    return [type(o).from_config({**o.get_config(), "name": f"{o.name}_2"}) for o in objectives]


# --- The loss of a training step --------------------------------------------------------------


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(teacher, student, temperature):
    teacher, student = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return temperature**2 * (np.exp(teacher) * (teacher - student)).sum(-1)


def cosines(outputs):
    """From every turned view to every upright image, `[B, 3, B]`."""
    unit = outputs / np.linalg.norm(outputs, axis=-1, keepdims=True)
    return unit[:, 1:] @ unit[:, 0].T


def mean(values, weights):
    weights = np.broadcast_to(weights, values.shape)
    return (values * weights).sum() / weights.sum()


def numpy_terms(student, teacher, labels, weights):
    """The four terms of SSKD, of outputs `[B, 4, ...]` in float64."""
    (logits, projection), (their_logits, their_projection) = student, teacher
    weights = weights.astype("float64")
    labeled = weights * (labels >= 0)
    right = their_logits[:, 1:].argmax(-1) == labels[:, None]
    used = weights > 0
    similar = divergence(cosines(their_projection[used]), cosines(projection[used]), 0.5)
    return {
        "hard_labels": mean(-log_softmax(logits[:, 0])[np.arange(12), labels], labeled),
        "soft_labels": mean(divergence(their_logits[:, 0], logits[:, 0], 4.0), weights),
        "selective_soft_labels": mean(
            divergence(their_logits[:, 1:], logits[:, 1:], 4.0), right * labeled[:, None]
        ),
        "similarity_transfer": mean(similar, weights[used][:, None]),
    }


def rows_of(images):
    return np.stack([np.rot90(images, view, axes=(1, 2)) for view in range(4)], axis=1)


def outputs_on_rows(model):
    rows = rows_of(IMAGES).reshape(-1, 8, 8, 3)
    outputs = model(rows, training=False)
    names = ("logits", "projection")
    return [outputs[name].numpy().astype("float64").reshape(12, 4, -1) for name in names]


CASES = {
    "plain": (LABELS, None),
    "weighted": (LABELS, WEIGHTS),
    "some weights 0": (LABELS, WEIGHTS * (np.arange(12) % 5 > 0)),
    "unlabeled": (UNLABELED, WEIGHTS),
}


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_loss_of_a_step(case, one_hot):
    labels, weights = CASES[case]
    student = network(
        batch_norm=False, first=PenalisesInput(), kernel_regularizer=keras.regularizers.L2(0.01)
    )
    teacher = teacher_network()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True) if one_hot else CROSS_ENTROPY
    model = distiller(STILL, student=student, teacher=teacher, loss=loss)

    ones = np.ones(12) if weights is None else weights
    expected = numpy_terms(outputs_on_rows(student), outputs_on_rows(teacher), labels, ones)
    total = 0.1 * expected["hard_labels"] + 0.9 * expected["soft_labels"]
    total += 2.7 * expected["selective_soft_labels"] + 10 * expected["similarity_transfer"]
    total += expected["hard_labels"] * (ones * (labels >= 0)).sum() / 12  # compile(loss=)
    total += 0.01 * np.square(student.layers[-2].kernel.numpy()).sum()
    total += 0.5 * np.square(IMAGES / 128 - 1.0).mean()

    rows = np.where(labels[:, None] >= 0, ONE_HOT, 0) if one_hot else labels
    got = step(model, labels=rows, weights=weights)
    assert got.keys() == {"loss", "teacher_agreement", *expected}
    for name, value in {**expected, "loss": total}.items():
        assert got[name] == pytest.approx(value, rel=2e-5), name


def test_epoch_means_over_uneven_batches():
    model = distiller(KD, student=network(batch_norm=False), optimizer=sgd(0.0))
    got = fit(model, sample_weight=WEIGHTS)
    batches = [slice(0, 5), slice(5, 10), slice(10, 12)]
    student = model.student(IMAGES)["logits"].numpy()
    teacher = model.teacher(IMAGES)["logits"].numpy()
    values = {
        "hard_labels": -log_softmax(student)[np.arange(12), LABELS],
        "soft_labels": divergence(teacher, student, 2.0),
    }
    for name in values:
        assert got[name][0] == pytest.approx(mean(values[name], WEIGHTS), rel=1e-5)
    loss = 0.5 * values["hard_labels"] + values["soft_labels"]
    loss = sum(mean(loss[b], WEIGHTS[b]) * len(WEIGHTS[b]) for b in batches) / 12
    assert got["loss"][0] == pytest.approx(loss, rel=1e-5)
    agreement = (student.argmax(-1) == teacher.argmax(-1)).mean()
    assert got["teacher_agreement"][0] == pytest.approx(agreement)


# --- What moves and what does not -------------------------------------------------------------


def test_weights_of_zero_move_batch_norm_statistics_alone():
    model = distiller(optimizer=sgd(momentum=0.9), loss=CROSS_ENTROPY)
    before, statistics = trained(model), model.student.non_trainable_variables
    earlier = [v.numpy() for v in statistics]
    assert step(model, weights=np.zeros(12))["loss"] == 0
    assert_equal(trained(model), before)
    assert differs([v.numpy() for v in statistics], earlier)


def test_images_of_weight_zero_vanish():
    weights = np.append(WEIGHTS[:8], np.zeros(4))
    models = [distiller(STILL, student=network(batch_norm=False)) for _ in range(2)]
    step(models[0], weights=weights)
    step(models[1], IMAGES[:8], LABELS[:8], WEIGHTS[:8])
    assert_close(trained(models[0]), trained(models[1]), 1e-6)


@pytest.mark.parametrize("optimizer", [sgd(weight_decay=0.1), keras.optimizers.AdamW(0.1)])
def test_head_that_no_objective_reads_is_not_moved(optimizer):
    model = distiller(KD, optimizer=optimizer)
    head = model.student.get_layer("head")
    before = head.get_weights()
    fit(model)
    assert_equal(head.get_weights(), before)


def test_regulariser_alone_moves_its_kernel():
    student = network(kernel_regularizer=keras.regularizers.L2(0.25))
    model = distiller(KD, student=student, optimizer=sgd(0.1))
    kernel = student.layers[-2].kernel
    expected = kernel.numpy() * (1 - 0.1 * 2 * 0.25)
    step(model, weights=np.zeros(12))
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_nothing_to_train():
    student = network()
    student.trainable = False
    with pytest.raises(ValueError, match="No objective reaches a trainable variable"):
        step(distiller(LABELS_ONLY, student=student))


def test_gradient_accumulation_is_one_large_batch():
    models = [
        distiller(KD, student=network(batch_norm=False), optimizer=sgd(**options))
        for options in ({"gradient_accumulation_steps": 3}, {})
    ]
    fit(models[0], batch_size=4)
    fit(models[1], batch_size=12)
    assert_close(trained(models[0]), trained(models[1]), 1e-6)


# --- Ways to run it ---------------------------------------------------------------------------


@functools.cache
def _after_two_epochs(preset, **compiled):
    preset = {"random": SSKD, "still": STILL}[preset]
    model = distiller(
        preset, graph=True, optimizer=sgd(momentum=0.9), metrics=["accuracy"], **compiled
    )
    history = fit(model, epochs=2, batch_size=4)
    return history, [v.numpy() for v in model.student.variables]


@pytest.mark.parametrize(
    ("preset", "option"),
    [
        ("random", {"run_eagerly": True}),
        ("random", {"steps_per_execution": 3}),
        ("random", {"jit_compile": True}),
    ],
)
def test_ways_to_run_are_equal(preset, option):
    history, weights = _after_two_epochs(preset, **option)
    expected_history, expected = _after_two_epochs(preset)
    assert history.keys() == expected_history.keys()
    for name in history:  # float32, six steps
        np.testing.assert_allclose(history[name], expected_history[name], rtol=1e-4)
    assert_close(weights, expected, 1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(policy):
    keras.config.set_dtype_policy(policy)
    student = network()
    keras.config.set_dtype_policy("float32")
    model = distiller(student=student, graph=True, optimizer=sgd(0.01, momentum=0.9))
    before = trained(model)
    history = fit(model, epochs=2)
    assert np.isfinite([*history.values()]).all()
    assert np.isfinite(np.concatenate([w.ravel() for w in trained(model)])).all()
    assert all((one != other).any() for one, other in zip(trained(model), before, strict=True))
    assert {v.dtype for v in student.weights} == {"float32"}
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")


def test_overflow_is_skipped():
    keras.config.set_dtype_policy("mixed_float16")
    model = distiller(student=network())
    before = trained(model)
    model.optimizer.dynamic_scale.assign(1e30)
    step(model)
    assert_equal(trained(model), before)
    assert model.optimizer.dynamic_scale.numpy() == pytest.approx(5e29)
    assert model.optimizer.iterations.numpy() == 0


def test_views_change_with_the_step_and_with_the_seed():
    def losses(seed):
        student = network(batch_norm=False)
        preset = {**KD, "views": ssd.views.Plain(True, padding=2), "seed": seed}
        model = distiller(preset, student=student, optimizer=sgd(0.0))
        return [fit(model, batch_size=12)["soft_labels"] for _ in range(2)]

    first = losses(0)
    assert losses(0) == first
    assert losses(1)[0] != first[0] != first[1]


# --- Evaluation -------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [False, True])
def test_evaluation_changes_nothing_and_repeats(views):
    model = distiller(
        student=network(dropout=0.5),
        graph=not views,
        optimizer=sgd(momentum=0.9),
        metrics=["accuracy"],
        evaluate_views=views,
    )
    fit(model)
    before = everything(model)
    first = evaluate(model)
    assert evaluate(model) == first
    assert_equal(everything(model), before)


@pytest.mark.parametrize("weights", [None, WEIGHTS[:5]])
@pytest.mark.parametrize("more", [False, True])
def test_loss_of_an_evaluation(more, weights):
    first = PenalisesInput() if more else None
    regularizer = keras.regularizers.L2(0.01) if more else None
    student = network(first=first, kernel_regularizer=regularizer)
    model = distiller(student=student, loss=CROSS_ENTROPY if more else None)
    step(model)
    got = evaluate(model, IMAGES[:5], LABELS[:5], sample_weight=weights)
    logits = student(IMAGES[:5], training=False)["logits"].numpy()
    values = -log_softmax(logits)[np.arange(5), LABELS[:5]]
    ones = np.ones(5) if weights is None else weights
    expected = mean(values, ones)
    if more:
        expected += (values * ones).mean()
        expected += 0.01 * np.square(student.layers[-2].kernel.numpy()).sum()
        expected += 0.5 * np.square(IMAGES[:5] / 128 - 1.0).mean()
    assert got == {"loss": pytest.approx(expected, rel=1e-5)}


def test_evaluation_with_views_shows_the_terms():
    model = distiller(evaluate_views=True, metrics=["accuracy"])
    step(model)
    got = evaluate(model, IMAGES[:5], LABELS[:5])
    rows = rows_of(IMAGES[:5]).reshape(-1, 8, 8, 3)
    batch = ssd.Batch(
        images=None,
        labels=tf.constant(LABELS[:5]),
        sample_weight=None,
        teacher=model.teacher(rows),
        student=model.student(rows, training=False),
        num_views=4,
    )
    terms = {o.name: np.divide(*(float(x) for x in o(batch))) for o in model.objectives}
    loss = sum(o.weight * terms[o.name] for o in model.objectives)
    assert got.keys() == {"loss", "teacher_agreement", "accuracy", *terms}
    for name, value in {**terms, "loss": loss}.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name


def test_pretext_needs_neither_teacher_nor_labels():
    preset = ssd.presets.sskd_pretext(padding=1)
    model = distiller(preset, evaluate_views=True, metrics=["accuracy"])
    history = fit(model, labels=None, validation_data=(IMAGES,))
    shown = {"loss", ContrastivePretext().name}
    assert history.keys() == shown | {f"val_{name}" for name in shown}
    assert history["val_loss"][0] > 0


def test_evaluation_without_labels():
    with pytest.raises(ValueError, match="measures nothing: give `y`, or compile"):
        distiller().evaluate(IMAGES, verbose=0)


def test_training_without_labels_shows_no_label_metric():
    model = distiller({"objectives": [SoftLabels()]}, metrics=["accuracy"])
    assert fit(model, labels=None).keys() == {"loss", "soft_labels", "teacher_agreement"}


def test_prediction_is_the_plain_logits():
    model = distiller(student=network(dropout=0.5))
    expected = model.student.predict(IMAGES, verbose=0)["logits"]
    np.testing.assert_array_equal(model.predict(IMAGES, verbose=0), expected)
    np.testing.assert_array_equal(model.predict({"image": IMAGES}, verbose=0), expected)


def test_one_hot_and_sparse_labels_train_alike():
    models = [distiller(SSKD, metrics=["accuracy"]) for _ in range(2)]
    rows = np.where(UNLABELED[:, None] >= 0, ONE_HOT, 0)
    shown = [step(model, labels=y) for model, y in zip(models, (UNLABELED, rows), strict=True)]
    assert shown[0] == pytest.approx(shown[1], rel=1e-5)
    assert_close(trained(models[0]), trained(models[1]), 1e-6)


@pytest.mark.parametrize("evaluate_views", [False, True])
def test_a_network_that_is_right_on_turned_images_alone_scores_nothing(evaluate_views):
    images = np.zeros((4, 8, 8, 3), "uint8")
    images[:, :4, :4] = 255  # a bright corner, which every turn takes away
    pixels = keras.Input((8, 8, 3))
    corner = keras.layers.Cropping2D(((0, 4), (0, 4)))(keras.layers.Rescaling(1 / 255)(pixels))
    scores = keras.layers.Dense(2)
    student = keras.Model(pixels, scores(keras.layers.GlobalAveragePooling2D()(corner)))
    scores.set_weights([np.array([[-4.0, 4.0]] * 3), np.array([6.0, -6.0])])  # bright: class 1
    preset = {"objectives": [HardLabels()], "views": Rotations(crop=None, flip=False)}
    model = distiller(
        preset,
        student=student,
        optimizer=sgd(0.0),
        metrics=["accuracy"],
        evaluate_views=evaluate_views,
    )
    turned = model.views(tf.constant(images)).numpy().reshape(4, 4, 8, 8, 3)[:, 1]
    labels = np.zeros(4, "int32")
    assert step(model, images, labels)["accuracy"] == 0
    assert evaluate(model, images, labels)["accuracy"] == 0
    assert evaluate(model, turned, labels)["accuracy"] == 1
