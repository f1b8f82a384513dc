"""HSAKD, the combination and two peers inside the Distiller: how they run, what they show."""

import functools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from keras_ssd.layers import BatchNormalization
from keras_ssd.objectives import AuxiliaryLabels, AuxiliaryTransfer, HardLabels, Mutual

from . import one_and_two
from .one_and_two import on_one_and_two
from .tiny import (
    IMAGES,
    LABELS,
    Counter,
    assert_close,
    assert_equal,
    differs,
    evaluate,
    everything,
    fit,
    sgd,
    step,
    trained,
)

METHODS = ["hsakd_teacher", "hsakd", "combined_teacher", "combined", "hsakd_online"]
TAUGHT = {"hsakd", "combined"}
DIAGNOSTICS = [
    "joint_accuracy",
    "class_accuracy",
    "class_accuracy_marginal",
    "class_accuracy_known_rotation",
    "rotation_accuracy",
]
each = pytest.mark.parametrize("method", METHODS)
SLOW = pytest.mark.slow


def some(*fast):
    """Parametrizes by method; all but `fast` are slow, as those cover their objectives."""
    methods = [m if m in fast else pytest.param(m, marks=SLOW) for m in METHODS]
    return pytest.mark.parametrize("method", methods)


def network(
    width=4, *, seed=1, heads=2, classes=3, views=4, batch_norm=None, dropout=0.0, first=None
):
    """8x8 images to logits, a projection and auxiliary classifiers, with weights that tell apart.

    `batch_norm` is None, "own" (each replica by itself) or "synchronized".
    """

    def convolution(x, strides=1):
        x = layers.Conv2D(width, 3, strides, "same", use_bias=batch_norm is None)(x)
        if batch_norm is not None:
            x = BatchNormalization(momentum=0.9, synchronized=batch_norm == "synchronized")(x)
        return layers.ReLU()(x)

    images = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 127.5, -1)(images)
    x = x if first is None else first(x)
    taps = []
    for _ in range(heads):
        taps.append(x := convolution(x, strides=2))
    pool = layers.GlobalAveragePooling2D()
    vector = layers.Dropout(dropout)(pool(x)) if dropout else pool(x)
    outputs = {"logits": layers.Dense(classes, name="logits")(vector)}
    for head, tap in enumerate(taps, start=1):
        rows = layers.Dense(classes * views, name=f"head_{head}")(layers.Flatten()(tap))
        outputs[f"auxiliary_{head}"] = rows
    outputs["projection"] = layers.Dense(4, name="projection")(vector)
    model = keras.Model(images, outputs, name="net")
    model.dtype_policy = keras.config.dtype_policy()
    random = np.random.RandomState(seed)
    for weight in model.weights:
        spread = 0.1 if len(weight.shape) == 1 else 1.5 / np.sqrt(np.prod(weight.shape[:-1]))
        start = 1.0 if weight.name in ("gamma", "moving_variance") else 0.0
        weight.assign(start + spread * np.clip(random.standard_normal(weight.shape), -2, 2))
    return model


def student_of(method, **options):
    student = network(**options)
    if method != "hsakd_online":
        return student
    return ssd.with_peer(student, network(**{**options, "width": 5, "seed": 2}))


def teacher_of(method):
    return network(8, seed=0) if method in TAUGHT else None


def preset_of(method, **options):
    return getattr(ssd.presets, method)(**{"padding": 1, **options})


STILL = {"crop": None, "flip": False}  # views without chance


def distiller(method, *, preset=None, student=None, teacher=None, graph=False, **compiled):
    """A compiled Distiller of the networks above; eager, which is faster for a few steps."""
    model = ssd.Distiller(
        teacher or teacher_of(method),
        student or student_of(method),
        **(preset or preset_of(method)),
    )
    model.compile(**{"optimizer": sgd(0.02), "run_eagerly": not graph, **compiled})
    return model


def heads_of(method):
    names = ["auxiliary_1", "auxiliary_2"]
    return names + [f"peer_{name}" for name in names] * (method == "hsakd_online")


def diagnostics_of(method):
    return {f"{head}_{name}" for head in heads_of(method) for name in DIAGNOSTICS}


# --- A frozen backbone ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phase_two():
    """Three steps of heads on a frozen resnet8: the model, the Distiller, values, the history."""
    model = ssd.models.build(
        "resnet8", num_classes=3, input_shape=(8, 8, 3), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    model(IMAGES, training=True)  # statistics that are not the first ones
    student = ssd.with_projection(ssd.with_auxiliary_classifiers(model, backbone="frozen"))
    optimizer = sgd(0.05, momentum=0.9, nesterov=True, weight_decay=0.1)
    preset = preset_of("combined_teacher", **STILL)
    distilled = distiller("", preset=preset, student=student, optimizer=optimizer)
    before = {id(v): v.numpy() for v in [*model.variables, *student.variables]}
    logits = model(IMAGES).numpy()
    history = fit(distilled, IMAGES[:6], LABELS[:6], batch_size=6, epochs=3)
    return model, distilled, before, logits, history


def test_a_frozen_backbone_is_bit_equal_after_some_steps(phase_two):
    model, distilled, before, logits, history = phase_two
    backbone = distilled.student.get_layer("backbone")
    assert len(backbone.weights) == len(model.weights) > 20
    for variable in [*backbone.weights, *model.variables]:
        np.testing.assert_array_equal(variable, before[id(variable)])
    np.testing.assert_array_equal(distilled.student(IMAGES)["logits"], logits)
    assert len(set(history["hard_labels"])) == 1  # the term is there, and a constant
    assert history["loss"][0] == pytest.approx(
        sum(history[o.name][0] for o in distilled.objectives), rel=1e-5
    )


def test_all_weights_and_statistics_of_its_heads_move(phase_two):
    _, distilled, before, *_ = phase_two
    frozen = {id(v) for v in distilled.student.get_layer("backbone").weights}
    heads = [v for v in distilled.student.weights if id(v) not in frozen]
    assert sum("moving" in v.path for v in heads) == 2 * (6 + 3 + 2)
    for variable in heads:
        assert np.any(variable.numpy() != before[id(variable)]), variable.path


def test_the_optimizer_holds_nothing_of_a_frozen_backbone(phase_two):
    _, distilled, *_ = phase_two
    slots = [v for v in distilled.optimizer.variables if "velocity" in v.path]
    student = distilled.student
    assert [v.shape for v in slots] == [v.shape for v in student.trainable_variables]
    head = [f"proj_head.{i}" for i in (0, 2)]
    trainable = {v.path.split("/")[0] for v in student.trainable_variables}
    assert all(name in head or name.startswith("auxiliary_classifier.") for name in trainable)


# --- How it runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["combined", "hsakd_online"])
def test_one_forward_of_each_network_a_step(method):
    counters = [Counter(), Counter()]
    student, other = network(first=counters[0]), network(5, seed=2, first=counters[1])
    if method == "hsakd_online":
        model = distiller(method, student=ssd.with_peer(student, other))
    else:
        model = distiller(method, student=student, teacher=other)
    fit(model)
    assert [counter.calls.numpy() for counter in counters] == [3, 3]
    evaluate(model)
    assert counters[0].calls.numpy() == 6
    assert counters[1].calls.numpy() == (3 if method == "combined" else 6)


@functools.cache
def _after_three_steps(method, **compiled):
    options = {"graph": True, "optimizer": sgd(0.02, momentum=0.9), **compiled}
    model = distiller(method, student=student_of(method, batch_norm="own"), **options)
    history = fit(model, batch_size=4)
    return history, [v.numpy() for v in model.student.variables]


@some("hsakd_online")
@pytest.mark.parametrize("option", [{"run_eagerly": True}, {"jit_compile": True}], ids=str)
def test_ways_to_run_are_equal(method, option):
    history, weights = _after_three_steps(method, **option)
    expected_history, expected = _after_three_steps(method)
    assert history.keys() == expected_history.keys() > diagnostics_of(method)
    for name in history.keys() - diagnostics_of(method) - {"teacher_agreement"}:
        np.testing.assert_allclose(history[name], expected_history[name], rtol=1e-5, err_msg=name)
    assert_close(weights, expected, 1e-5)


@some("combined", "hsakd_online")
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(method, policy):
    keras.config.set_dtype_policy(policy)
    student = student_of(method, batch_norm="own")
    keras.config.set_dtype_policy("float32")
    model = distiller(method, student=student, optimizer=sgd(0.02, momentum=0.9))
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")
    batch, _ = model.rehearse((tf.constant(IMAGES), tf.constant(LABELS)))
    assert {batch.student[name].dtype.name for name in heads_of(method)} == {policy[6:]}
    for objective in model.objectives:
        assert objective(batch)[0].dtype == tf.float32, objective.name
    before = trained(model)
    history = fit(model, batch_size=6)
    assert np.isfinite([*history.values()]).all()
    reads_projection = "combined" in method
    for variable, value in zip(student.trainable_variables, before, strict=True):
        moves = reads_projection or "projection" not in variable.path
        assert np.any(variable.numpy() != value) == moves, variable.path
        assert np.isfinite(variable.numpy()).all()


@some("combined", "hsakd_online")
def test_a_resumed_run_is_the_uninterrupted_one(method, tmp_path):
    student = student_of(method, batch_norm="own", dropout=0.5)
    model = distiller(method, student=student, optimizer=sgd(0.02, momentum=0.9))
    fit(model, batch_size=7)
    model.save(tmp_path / "model.keras")
    history = fit(model, batch_size=7)
    keras.utils.set_random_seed(99)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.set_teacher(teacher_of(method))
    assert [o.get_config() for o in loaded.objectives] == [o.get_config() for o in model.objectives]
    assert loaded.views.get_config() == model.views.get_config()
    assert fit(loaded, batch_size=7) == history
    assert_equal(everything(loaded), everything(model))


@each
def test_check(method, capsys):
    model = distiller(method)
    before = everything(model)
    report = model.check(IMAGES, LABELS)
    assert capsys.readouterr().out == f"{report}\n"
    assert_equal(everything(model), before)
    assert not [w for w in report.warnings if "gradient" in w or "reached" in w or "NaN" in w] or (
        "projection" in str(report.warnings) and "combined" not in method
    )
    shown = step(model)
    assert [term.name for term in report.terms] == [o.name for o in model.objectives]
    for term in report.terms:
        assert term.value == pytest.approx(shown[term.name], rel=1e-5)
        assert term.gradient > 0
    assert report.loss == pytest.approx(shown["loss"], rel=1e-5)


# --- Two replicas -----------------------------------------------------------------------------


def uneven_examples():
    """23 images; some have no label, some no weight."""
    images, labels = one_and_two.examples(23)
    random = np.random.RandomState(5)
    labels = np.where(random.rand(23) < 0.2, -1, labels)
    weights = random.uniform(0.5, 2, 23) * (random.rand(23) > 0.2)
    return images, labels, weights


ON_REPLICAS = [("hsakd_teacher", "synchronized"), ("hsakd", None)]
ON_REPLICAS += [("combined", "synchronized"), ("hsakd_online", None)]
MORE = [(method, norm) for method in METHODS for norm in (None, "synchronized")]


@pytest.mark.parametrize(
    ("method", "batch_norm", "graph"),
    [(*case, False) for case in ON_REPLICAS]
    + [pytest.param(*case, True, marks=SLOW) for case in MORE],
)
def test_two_replicas_equal_one(method, batch_norm, graph, two_replicas, float64):
    """Of 9 images one replica gets 5, the other 4; of the last 5 they get 3 and 2."""

    def make():
        student = student_of(method, batch_norm=batch_norm)
        return distiller(method, student=student, optimizer=one_and_two.sgd(), graph=graph)

    one, two = on_one_and_two(two_replicas, make)
    one.run_eagerly = True  # which is faster
    data = one_and_two.batches(*uneven_examples(), size=9)
    expected, shown = (model.fit(data, verbose=0).history for model in (one, two))
    assert_equal_numbers(shown, expected)
    assert shown.keys() > diagnostics_of(method)
    one_and_two.assert_close(two.student.weights, one.student.weights, 1e-10)
    assert two.optimizer.iterations.numpy() == 3


def test_two_replicas_show_what_one_shows(two_replicas, float64):
    def make():
        return distiller("hsakd", graph=True, evaluate_views=True)

    one, two = on_one_and_two(two_replicas, make)
    one.run_eagerly = True
    data = one_and_two.batches(*uneven_examples(), size=9)
    expected, shown = (m.evaluate(data, verbose=0, return_dict=True) for m in (one, two))
    assert_equal_numbers(shown, expected)
    assert shown.keys() > diagnostics_of("hsakd")


def assert_equal_numbers(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-10, err_msg=name)


# --- Images without label, or of weight 0 -----------------------------------------------------


@each
def test_images_of_weight_zero_vanish(method):
    weights = np.append(np.linspace(0.5, 2, 8), np.zeros(4))
    models = [distiller(method, preset=preset_of(method, **STILL)) for _ in range(2)]
    shown = step(models[0], IMAGES, LABELS, weights)
    expected = step(models[1], IMAGES[:8], LABELS[:8], weights[:8])
    del shown["loss"], expected["loss"]  # their means over steps count all images of a step
    assert shown == pytest.approx(expected, rel=1e-5)
    assert_close(trained(models[0]), trained(models[1]), 1e-6)


@pytest.mark.parametrize("one_hot", [False, True])
def test_unlabeled_images_reach_no_auxiliary_label(one_hot):
    labels = np.where(np.arange(12) < 8, LABELS, -1)
    preset = preset_of("hsakd_teacher", **STILL)
    models = [distiller("hsakd_teacher", preset=preset) for _ in range(2)]
    rows = np.where(labels[:, None] >= 0, np.eye(3)[labels], 0) if one_hot else labels
    shown = step(models[0], IMAGES, rows)
    expected = step(models[1], IMAGES[:8], LABELS[:8])
    assert shown == pytest.approx(expected, rel=1e-5)
    assert_close(trained(models[0]), trained(models[1]), 1e-6)


def test_unlabeled_images_learn_from_the_teacher():
    labels = np.where(np.arange(12) < 8, LABELS, -1)
    preset = preset_of("hsakd", **STILL)
    shown, all_labeled, fewer = (
        step(distiller("hsakd", preset=preset), *data)
        for data in [(IMAGES, labels), (IMAGES, LABELS), (IMAGES[:8], LABELS[:8])]
    )
    for name in ("soft_labels", "auxiliary_transfer", "teacher_agreement"):
        assert shown[name] == all_labeled[name]
    assert shown["soft_labels"] != pytest.approx(fewer["soft_labels"], rel=1e-3)
    for name in {"hard_labels"} | diagnostics_of("hsakd"):
        assert shown[name] == pytest.approx(fewer[name], rel=1e-5)


# --- Values at the start ----------------------------------------------------------------------


@each
def test_equal_logits(method):
    student, teacher = student_of(method), teacher_of(method)
    for one in (student, teacher):
        for layer in [] if one is None else one._flatten_layers():
            if isinstance(layer, layers.Dense) and layer.name != "projection":
                layer.set_weights([np.zeros(weight.shape) for weight in layer.get_weights()])
    shown = step(distiller(method, student=student, teacher=teacher))
    times = 2 if method == "hsakd_online" else 1
    expected = {
        "hard_labels": times * math.log(3),
        "auxiliary_labels": times * 2 * math.log(12),
        "soft_labels": 0,
        "auxiliary_transfer": 0,
    }
    for name in expected.keys() & shown.keys():
        assert shown[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


RANGES = {  # of the classes and of the auxiliary classifiers, for 100 classes: hsakd.md, 12.3
    "resnet20": ((4.4, 4.8), (5.9, 6.8)),
    "resnet8x4": ((4.4, 4.8), (5.9, 6.8)),
    "wrn_16_2": ((4.4, 4.8), (5.9, 6.2)),
}


@pytest.mark.parametrize(
    "name", [*("resnet20", "wrn_16_2"), pytest.param("resnet8x4", marks=pytest.mark.slow)]
)
def test_losses_of_first_weights(name):
    """32 rows of Gaussian noise in training mode."""
    model = ssd.models.build(name, num_classes=100, input_shape=(32, 32, 3))
    student = ssd.with_auxiliary_classifiers(model)
    images = np.random.default_rng(0).standard_normal((8, 32, 32, 3)).astype("float32")
    views = ssd.views.Rotations(crop=None, flip=False)
    labels = tf.range(8) * 12
    outputs = student(views(images), training=True)
    batch = ssd.Batch(None, labels, None, {}, outputs, num_views=4)

    def value(objective):
        total, count = objective(batch)
        return float(total / count)

    of_classes, of_heads = RANGES[name]
    assert of_classes[0] < value(HardLabels()) < of_classes[1]
    for head in range(1, 4):
        alone = {"logits": outputs["logits"], "auxiliary_1": outputs[f"auxiliary_{head}"]}
        batch = ssd.Batch(None, labels, None, {}, alone, num_views=4)
        assert of_heads[0] < value(AuxiliaryLabels()) < of_heads[1], head


@pytest.mark.slow
def test_sixteen_images_are_learnt_by_heart():
    images, labels = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)), np.arange(16) % 4
    model = ssd.models.build(
        "resnet8", num_classes=4, input_shape=(8, 8, 3), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    model = distiller(
        "hsakd_teacher",
        preset=preset_of("hsakd_teacher", **STILL),
        student=ssd.with_auxiliary_classifiers(model),
        graph=True,
        optimizer=sgd(0.05, momentum=0.9, nesterov=True),
        metrics=["accuracy"],
    )
    images = images.astype("uint8")
    shown = {
        name: values[-1]
        for name, values in fit(model, images, labels, epochs=100, batch_size=16).items()
    }
    assert shown["loss"] < 0.5
    assert shown["accuracy"] == 1
    for head in range(1, 4):
        assert shown[f"auxiliary_{head}_joint_accuracy"] == 1


# --- Diagnostics ------------------------------------------------------------------------------


@each
def test_diagnostics_are_shown_where_the_terms_are(method):
    model = distiller(method, evaluate_views=False)
    expected = diagnostics_of(method)
    training = fit(model, validation_data=(IMAGES[:5], LABELS[:5]), batch_size=12)
    assert {name for name in training if "accuracy" in name} == expected
    assert "val_loss" in training
    model.compile(model.optimizer, run_eagerly=True, evaluate_views=True)
    evaluated = evaluate(model, IMAGES[:5], LABELS[:5])
    assert {name for name in evaluated if "accuracy" in name} == expected


@each
def test_diagnostics_switched_off(method):
    preset = preset_of(method, diagnostics=False)
    model = distiller(method, preset=preset, evaluate_views=True)
    terms = {objective.name for objective in model.objectives} | {"loss"}
    agreement = {"teacher_agreement"} if method in TAUGHT else set()
    shown = step(model).keys(), evaluate(model, IMAGES[:5], LABELS[:5]).keys()
    assert shown == (terms | agreement, terms | agreement)


def test_no_diagnostics_without_labels():
    preset = {"objectives": [AuxiliaryTransfer()], "views": ssd.views.Rotations(padding=1)}
    model = distiller("hsakd", preset=preset, evaluate_views=True)
    shown = {"loss", "auxiliary_transfer", "teacher_agreement"}
    assert step(model, labels=None).keys() == shown
    assert evaluate(model, IMAGES[:5], None).keys() == shown


def numpy_accuracies(rows, labels):
    """Right rows by diagnostic, of joint logits `[B, 4, 3, 4]` (image, view, class, view)."""
    rows = rows.astype("float64")
    probabilities = np.exp(rows) / np.exp(rows).sum(axis=(2, 3), keepdims=True)
    image, view = np.meshgrid(np.arange(len(rows)), np.arange(4), indexing="ij")
    own_view = rows[image, view, :, view]  # [B, 4, 3]
    classes = labels[:, None]
    return {
        "joint_accuracy": rows.reshape(-1, 4, 12).argmax(-1) == 4 * classes + view,
        "class_accuracy": rows.sum(-1).argmax(-1) == classes,
        "class_accuracy_marginal": probabilities.sum(-1).argmax(-1) == classes,
        "class_accuracy_known_rotation": own_view.argmax(-1) == classes,
        "rotation_accuracy": probabilities.sum(-2).argmax(-1) == view,
    }


@pytest.mark.parametrize("method", ["hsakd", "hsakd_online"])
def test_diagnostics_of_an_epoch_of_uneven_batches(method):
    """Labeled images of a weight above 0 count alike, in whichever batch they are."""
    images, labels, weights = uneven_examples()
    preset = preset_of(method, **STILL)
    model = distiller(method, preset=preset, optimizer=sgd(0.0), evaluate_views=True)
    shown = fit(model, images, labels, sample_weight=weights, batch_size=9)
    evaluated = model.evaluate(
        images, labels, sample_weight=weights, batch_size=10, verbose=0, return_dict=True
    )
    outputs = model.student(ssd.views.Rotations(crop=None, flip=False)(images, None))
    counted = (labels >= 0) & (weights > 0)
    assert 8 < counted.sum() < 20
    checked = set()
    for head in heads_of(method):
        right = numpy_accuracies(outputs[head].numpy().reshape(-1, 4, 3, 4), labels)
        for name, hits in right.items():
            expected = hits[counted].mean()
            checked.add(expected)
            assert shown[f"{head}_{name}"] == [pytest.approx(expected)], name
            assert evaluated[f"{head}_{name}"] == pytest.approx(expected), name
    assert len(checked) > 6  # most of them differ


@pytest.mark.parametrize(
    "monitor",
    ["auxiliary_2_joint_accuracy", "val_auxiliary_1_rotation_accuracy", "val_auxiliary_transfer"],
)
def test_callbacks_know_which_way_is_better(monitor):
    callback = keras.callbacks.EarlyStopping(monitor)
    model = distiller("hsakd", evaluate_views=True)
    fit(model, callbacks=[callback], validation_data=(IMAGES[:5], LABELS[:5]), batch_size=12)
    worse, better = (1.0, 0.5) if monitor == "val_auxiliary_transfer" else (0.5, 1.0)
    assert callback.monitor_op(better, worse)
    assert callback.best == model.history.history[monitor][0]


# --- Mistakes ---------------------------------------------------------------------------------


def peers(**options):
    return ssd.with_peer(network(), network(seed=2, **options))


def without(model, *heads):
    outputs = {name: rows for name, rows in model.output.items() if name not in heads}
    return keras.Model(model.input, outputs, name=model.name)


AUXILIARY = ["auxiliary_1", "auxiliary_2"]
ADVICE = r"attach the head \(.*`with_auxiliary_classifiers`\)"
NOT_MADE = {  # name: (method, student, teacher, what the sentence says)
    "teacher without heads": (
        "hsakd",
        network,
        lambda: without(network(8), *AUXILIARY),
        f"`auxiliary_transfer` reads the teacher's output 'auxiliary_1', which .* lacks.*{ADVICE}",
    ),
    "student without heads": (
        "hsakd",
        lambda: without(network(), *AUXILIARY),
        lambda: network(8),
        f"`auxiliary_transfer` reads the student's output 'auxiliary_1', which .* lacks.*{ADVICE}",
    ),
    "teacher to be, without heads": (
        "hsakd_teacher",
        lambda: without(network(), *AUXILIARY),
        lambda: None,
        "`auxiliary_labels` reads the student's output 'auxiliary_1', which the student lacks",
    ),
    "more heads in the teacher": (
        "hsakd",
        network,
        lambda: network(8, heads=3),
        r"the teacher has 3 \(auxiliary_1, .*auxiliary_3\) and the student 2 .* as many `taps=`",
    ),
    "more heads in the student": (
        "combined",
        lambda: network(heads=3),
        lambda: network(8),
        r"the teacher has 2 \(auxiliary_1, auxiliary_2\) and the student 3 .* as many `taps=`",
    ),
    "other views in the student": (
        "hsakd",
        lambda: network(views=2),
        lambda: network(8),
        "'auxiliary_1' has 12 columns in the teacher and 6 in the student",
    ),
    "other views in both": (
        "hsakd",
        lambda: network(views=2),
        lambda: network(8, views=2),
        r"heads of 3 classes x 4 views = 12 columns, but 'auxiliary_1' of the teacher has 6: .*=4",
    ),
    "other views in the teacher to be": (
        "hsakd_teacher",
        lambda: network(views=2),
        lambda: None,
        r"heads of 3 classes x 4 views = 12 columns, but 'auxiliary_1' of the student has 6: .*=4",
    ),
    "other classes": (
        "hsakd",
        network,
        lambda: network(8, classes=4),
        "the teacher has 4 classes and the student 3",
    ),
    "no projection": (
        "combined",
        network,
        lambda: without(network(8), "projection"),
        r"`similarity_transfer` reads the teacher's output 'projection', .*\(`with_projection`",
    ),
    "no peer": (
        "hsakd_online",
        network,
        lambda: None,
        r"`hard_labels` reads the student's output 'peer_logits', which .* \(`with_peer`\)",
    ),
    "peer without heads": (
        "hsakd_online",
        lambda: ssd.with_peer(network(), without(network(), *AUXILIARY)),
        lambda: None,
        f"`auxiliary_labels` reads the student's output 'peer_auxiliary_1', which .*{ADVICE}",
    ),
    "peer with more heads": (
        "hsakd_online",
        lambda: peers(heads=3),
        lambda: None,
        "`auxiliary_transfer` pairs the heads of both networks",
    ),
    "peer with other views": (
        "hsakd_online",
        lambda: peers(views=2),
        lambda: None,
        "heads of 3 classes x 4 views = 12 columns, but 'auxiliary_1' of the student has 6",
    ),
}


@pytest.mark.parametrize("case", NOT_MADE)
def test_refused_at_construction(case):
    method, student, teacher, message = NOT_MADE[case]
    with pytest.raises(ValueError, match=message):
        ssd.Distiller(teacher(), student(), **preset_of(method))


@each
def test_plain_views_are_refused(method):
    preset = {"objectives": preset_of(method)["objectives"], "views": ssd.views.Plain()}
    with pytest.raises(ValueError, match=r"reads transformed views.*: use `views=Rotations\(\)`"):
        distiller(method, preset=preset)


class Plainly(keras.Model):
    """A subclassed network: what it returns is known once it is called."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, images, training=None):
        return self.model(images, training=training)


@pytest.mark.filterwarnings("ignore:The teacher has fewer parameters")
@pytest.mark.parametrize("case", [name for name in NOT_MADE if NOT_MADE[name][0] != "hsakd_online"])
def test_refused_at_the_first_step_where_only_a_call_tells(case):
    method, student, teacher, message = NOT_MADE[case]
    networks = []
    for model in (teacher(), student()):
        networks.append(model and Plainly(model))
        if model:
            networks[-1](IMAGES)
    model = ssd.Distiller(*networks, **preset_of(method))
    model.compile(sgd(), run_eagerly=True)
    before = trained(model)
    with pytest.raises(ValueError, match=message):
        step(model)
    assert_equal(trained(model), before)


def test_a_subclassed_student_is_trained_but_shows_no_diagnostics():
    student = Plainly(network())
    student(IMAGES)
    model = distiller("hsakd_teacher", student=student)
    before = trained(model)
    assert fit(model).keys() == {"loss", "hard_labels", "auxiliary_labels"}
    assert differs(trained(model), before)


def test_a_metric_named_like_a_diagnostic():
    metric = keras.metrics.SparseCategoricalAccuracy(name="auxiliary_1_joint_accuracy")
    with pytest.raises(ValueError, match="Two metrics are named 'auxiliary_1_joint_accuracy'"):
        distiller("hsakd_teacher", metrics=[metric])


def test_mutual_survives_a_config():
    objective = Mutual(AuxiliaryTransfer(2.0, weight=0.5, diagnostics=False), name="both")
    read = Mutual.from_config(objective.get_config())
    assert (read.name, read.weight, read.objective.temperature) == ("both", 0.5, 2.0)
    assert read.get_config() == objective.get_config()
