import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from keras_ssd.objectives import (
    ContrastivePretext,
    HardLabels,
    Mutual,
    SelectiveSoftLabels,
    SimilarityTransfer,
    SoftLabels,
)

from .tiny import (
    IMAGES,
    KD,
    LABELS,
    LABELS_ONLY,
    ONE_HOT,
    SSKD,
    assert_equal,
    distiller,
    evaluate,
    fit,
    network,
    sgd,
    step,
    teacher_network,
    trained,
)

ROTATIONS = ssd.views.Rotations(padding=1)
SIMILARITY = {"objectives": [ContrastivePretext()], "views": ROTATIONS}


class Plainly(keras.Model):
    """A subclassed network: what it returns is known once it is called."""

    def __init__(self, head):
        super().__init__()
        self.dense = layers.Dense(3)
        self.head = head

    def call(self, images):
        return self.head(self.dense(keras.ops.mean(keras.ops.cast(images, "float32"), (1, 2))))


def subclassed(head=lambda logits: logits):
    model = Plainly(head)
    model(IMAGES)
    return model


def ending(*last, shape=(8, 8, 3)):
    return keras.Sequential([keras.Input(shape), layers.Flatten(), *last])


def inside(model):
    images = keras.Input((8, 8, 3))
    return keras.Model(images, model(images))


def several(inputs=1, outputs=1):
    images = [keras.Input((8, 8, 3)) for _ in range(inputs)]
    x = layers.Flatten()(images[0] if inputs == 1 else layers.Add()(images))
    scores = [layers.Dense(3)(x) for _ in range(outputs)]
    return keras.Model(images, scores if outputs > 1 else scores[0])


def scores():
    student = network()
    return keras.Model(student.input, {"scores": student.output["logits"]})


def softmax_of(student):
    return keras.Model(student.input, keras.ops.softmax(student.output))


def made(preset=LABELS_ONLY, **options):
    return ssd.Distiller(**{"student": network(), **preset, **options})


# --- At construction --------------------------------------------------------------------------

NOT_MADE = {
    "no student": (dict(student=None), TypeError, "`student` must be a Keras model"),
    "a layer": (dict(student=layers.Dense(3)), TypeError, "`student` must be a Keras model"),
    "unbuilt student": (
        dict(student=keras.Sequential([layers.Dense(3)])),
        ValueError,
        "has no weights yet: call it once",
    ),
    "unbuilt teacher": (
        dict(preset=KD, teacher=Plainly(None)),
        ValueError,
        "has no weights yet: call it once",
    ),
    "two inputs": (dict(student=several(inputs=2)), ValueError, "student .* has 2 inputs"),
    "teacher of two inputs": (
        dict(preset=KD, teacher=several(inputs=2)),
        ValueError,
        "teacher .* has 2 inputs",
    ),
    "teacher of two inputs, resized": (
        dict(
            preset=KD,
            teacher=several(inputs=2),
            teacher_preprocessing=ssd.layers.ImagePreprocessing(8),
        ),
        ValueError,
        "teacher .* has 2 inputs",
    ),
    "a list of outputs": (dict(student=several(outputs=2)), TypeError, "got a list of 2"),
    "teacher's list": (
        dict(preset=KD, teacher=several(outputs=2)),
        TypeError,
        "got a list of 2: name them",
    ),
    "no objective": (dict(objectives=[]), ValueError, "`objectives` is empty"),
    "an objective alone": (
        dict(objectives=HardLabels()),
        TypeError,
        "must be a list of objectives",
    ),
    "no Objective": (
        dict(objectives=[keras.losses.KLDivergence()]),
        TypeError,
        r"must hold Objective instances, got .*compile\(loss=\)",
    ),
    "a name twice": (
        dict(objectives=[HardLabels(), HardLabels()]),
        ValueError,
        "Two terms are named 'hard_labels'",
    ),
    "a reserved name": (
        dict(objectives=[HardLabels(name="loss")]),
        ValueError,
        "Two terms are named 'loss'",
    ),
    "views by name": (dict(views="rotations"), TypeError, "`views` must be"),
    "views as a class": (dict(views=ssd.views.Rotations), TypeError, "`views` must be"),
    "views missing": (
        dict(preset=KD, objectives=[SelectiveSoftLabels()], teacher=teacher_network()),
        ValueError,
        r"`selective_soft_labels` reads transformed views.*views=Rotations\(\)",
    ),
    "student without the output": (
        dict(preset=SIMILARITY, student=several()),
        ValueError,
        r"the student's output 'projection', which the student lacks \(it has \['logits'\]\)",
    ),
    "teacher without the output": (
        dict(objectives=[SimilarityTransfer()], views=ROTATIONS, teacher=several()),
        ValueError,
        "the teacher's output 'projection', which the teacher lacks",
    ),
    "no peer": (
        dict(objectives=[Mutual(HardLabels())]),
        ValueError,
        r"the student's output 'peer_logits', which the student lacks .*the peer \(`with_peer`\)",
    ),
    "no logits": (
        dict(student=scores()),
        ValueError,
        r"The student must return `logits`, got the outputs \['scores'\]",
    ),
    "class counts": (
        dict(preset=KD, teacher=network(9, units=4)),
        ValueError,
        "the teacher has 4 classes and the student 3",
    ),
    "one logit": (dict(student=ending(layers.Dense(1))), ValueError, "at least 2 classes"),
    "a feature map": (
        dict(student=ending(layers.Reshape((8, 8, 3)))),
        ValueError,
        r"must be \[rows, classes\]",
    ),
}


@pytest.mark.parametrize("case", NOT_MADE)
def test_refused_at_construction(case):
    options, error, message = NOT_MADE[case]
    with pytest.raises(error, match=message):
        made(**options)


SOFTMAX = {
    "activation": lambda: network(activation="softmax"),
    "sigmoid": lambda: network(activation="sigmoid"),
    "layer": lambda: ending(layers.Dense(3), layers.Softmax()),
    "activation layer": lambda: ending(layers.Dense(3), layers.Activation("softmax")),
    "operation": lambda: softmax_of(several()),
    "Sequential": lambda: ending(layers.Dense(3, activation="softmax")),
    "nested": lambda: inside(ending(layers.Dense(3, activation="softmax"))),
    "nested twice": lambda: inside(inside(network(activation="softmax"))),
}


@pytest.mark.parametrize("part", ["student", "teacher"])
@pytest.mark.parametrize("kind", SOFTMAX)
def test_probabilities(kind, part):
    model = SOFTMAX[kind]()
    with pytest.raises(ValueError, match=f"The {part} ends in a softmax or sigmoid"):
        made(KD, **{"student": network(), "teacher": teacher_network(), part: model})


@pytest.mark.filterwarnings("ignore:The teacher has fewer parameters")
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("part", ["student", "teacher"])
def test_probabilities_of_a_subclassed_network(part, graph):
    networks = {"student": network(), "teacher": teacher_network()}
    networks[part] = subclassed(keras.ops.softmax)
    model = distiller(KD, **networks, graph=graph)
    before = trained(model)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"The {part} returns probabilities"):
        fit(model, batch_size=12)
    assert_equal(trained(model), before)


def test_one_row_of_logits_may_look_like_probabilities():
    model = distiller(LABELS_ONLY, student=subclassed(keras.ops.softmax))
    assert step(model, IMAGES[:1], LABELS[:1])["loss"] > 0


# --- At the first trace -----------------------------------------------------------------------

FOUR_CLASSES = np.eye(4)[LABELS]
NOT_TRACED = {
    "labels": (LABELS_ONLY, IMAGES, None, "`hard_labels` needs labels, and the data has none"),
    "one-hot width": (
        LABELS_ONLY,
        IMAGES,
        FOUR_CLASSES,
        "One-hot labels have 4 classes and the student 3",
    ),
    "rank": (LABELS_ONLY, IMAGES[..., 0], LABELS, r"must be \[batch, height, width, channels\]"),
    "no image": (LABELS_ONLY, {"picture": IMAGES}, LABELS, "must hold `image`"),
    "one image": (
        SIMILARITY,
        IMAGES[:1],
        LABELS[:1],
        "compares the images of a batch .* use a larger `batch_size`",
    ),
}


@pytest.mark.parametrize("case", NOT_TRACED)
def test_refused_when_traced(case):
    preset, images, labels, message = NOT_TRACED[case]
    model = distiller(preset)
    before = trained(model)
    with pytest.raises(ValueError, match=message):
        step(model, images, labels)
    assert_equal(trained(model), before)


def test_refused_in_the_graph_of_fit():
    model = distiller(LABELS_ONLY, graph=True)
    with pytest.raises(ValueError, match="`hard_labels` needs labels"):
        fit(model, labels=None)


def test_images_that_are_not_square():
    images = keras.Input((8, 6, 3))
    x = layers.Flatten()(images)
    student = keras.Model(images, {"logits": layers.Dense(3)(x), "projection": x})
    model = distiller(SIMILARITY, student=student)
    with pytest.raises(ValueError, match="Rotations need square images"):
        step(model, IMAGES[:, :, :6].astype("float32"))


def test_compiled_loss_without_labels():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = distiller({"objectives": [SoftLabels()]}, loss=loss)
    with pytest.raises(ValueError, match=r"`compile\(loss=\)` needs labels"):
        step(model, labels=None)


@pytest.mark.filterwarnings("ignore:The teacher has fewer parameters")
@pytest.mark.parametrize(
    ("networks", "preset", "message"),
    [
        ({"student": subclassed()}, SIMILARITY, "'projection', which the student lacks"),
        (
            {"teacher": lambda rows: tf.zeros([len(rows), 4])},
            KD,
            "the teacher has 4 classes and the student 3",
        ),
        ({"teacher": lambda rows: [rows, rows]}, KD, "got a list of 2"),
        ({"teacher": lambda rows: {"scores": rows}}, KD, "'logits', which the teacher lacks"),
    ],
)
def test_outputs_that_only_a_call_tells(networks, preset, message):
    model = distiller(preset, **networks)
    with pytest.raises((ValueError, TypeError), match=message):
        step(model)


@pytest.mark.parametrize("how", ["layer", "state", "model", "variable"])
def test_objectives_may_hold_what_is_frozen_or_the_students_own(how):
    frozen = layers.Dense(4, trainable=False)
    student = network()
    held = {
        "layer": {"frozen": frozen},
        "state": {"state": frozen},
        "model": {"inner": keras.Sequential([keras.Input((4,)), frozen], trainable=False)},
        "variable": {"kernel": student.trainable_variables[0]},
    }[how]

    class Held(HardLabels):
        def __call__(self, batch):
            if how != "variable":
                next(iter(held.values()))(batch.student["projection"])
            return super().__call__(batch)

    objective = Held()
    vars(objective).update(held)
    assert np.isfinite(step(distiller({"objectives": [objective]}, student=student))["loss"])


def test_a_layer_that_an_objective_builds_later_is_refused_at_the_first_step():
    class Adapted(HardLabels):
        def __init__(self):
            super().__init__()
            self.adapter = layers.Dense(4)

        def __call__(self, batch):
            self.adapter(batch.student["projection"])
            return super().__call__(batch)

    model = distiller({"objectives": [Adapted()]})
    with pytest.raises(
        ValueError, match=r"`adapted` holds the trainable variable 'dense_?\d*/kernel'"
    ):
        step(model)


class SameFeatures(ssd.objectives.Objective):
    teacher_outputs = student_outputs = ("projection",)
    needs_equal_widths = True

    def __call__(self, batch):
        raise AssertionError(f"to be refused before it is called with {batch}")


def test_features_of_other_widths():
    """The sentence speaks of the outputs that are read, not of classes."""
    wide = keras.Model(
        (inner := teacher_network()).input,
        {
            "logits": inner.output["logits"],
            "projection": layers.Dense(7)(inner.output["projection"]),
        },
    )
    with pytest.raises(ValueError, match="'projection' of the teacher has 7 and 'projection' of"):
        distiller({"objectives": [SameFeatures()]}, teacher=wide)


class Asked(HardLabels):
    """Keeps what it is asked, and refuses heads of 7 columns."""

    def __init__(self):
        super().__init__()
        self.questions = []

    def check_outputs(self, teacher, student, num_views):
        self.questions.append((teacher, student, num_views))
        if student is not None and student.get("projection", student["logits"]).shape[-1] == 7:
            raise ValueError("`asked` refuses 7 columns: give it others.")


def test_an_objective_is_asked_before_it_trains():
    asked = Asked()
    preset = {"objectives": [asked], "views": ROTATIONS}
    model = distiller(preset, teacher=teacher_network())
    ((teacher, student, num_views),) = asked.questions
    assert teacher.keys() == student.keys() == {"logits", "projection"}
    assert (teacher["logits"].shape, num_views) == ((None, 3), 4)
    step(model)
    _, (teacher, student, num_views) = asked.questions
    assert (teacher["logits"].shape, student["projection"].shape) == ((48, 3), (48, 4))
    assert num_views == 4
    model.set_teacher(None)
    teacher, student, _ = asked.questions[-1]
    assert teacher is None
    assert student.keys() == {"logits", "projection"}
    step(model)
    assert asked.questions[-1][0] is None
    asked.questions.clear()
    evaluate(model)  # plain images: nothing that the objective reads
    assert asked.questions == []


def test_what_an_objective_refuses_is_refused_by_the_distiller():
    wide = keras.Model(
        (inner := network()).input,
        {"logits": inner.output["logits"], "projection": layers.Dense(7)(inner.output["logits"])},
    )
    with pytest.raises(ValueError, match="`asked` refuses 7 columns"):
        distiller({"objectives": [Asked()]}, student=wide)


def test_a_subclassed_student_is_asked_about_at_the_first_step():
    asked = Asked()
    model = distiller({"objectives": [asked]}, student=subclassed())
    assert asked.questions == [(None, None, 1)]
    step(model)
    assert asked.questions[1][1].keys() == {"logits"}
    wide = subclassed(lambda logits: {"logits": logits, "projection": tf.zeros([len(logits), 7])})
    model = distiller({"objectives": [Asked()]}, student=wide)
    before = trained(model)
    with pytest.raises(ValueError, match="`asked` refuses 7 columns"):
        step(model)
    assert_equal(trained(model), before)


class Counting(HardLabels):
    """Shows a share and, in its sum, which of several it is."""

    def __init__(self, name, share):
        super().__init__(name=name)
        self.share = share

    def diagnostic_names(self, student):
        return [f"{name}_share" for name in sorted(student)]

    def diagnostics(self, batch):
        count = tf.cast(len(batch.student["logits"]), tf.float64)  # whatever the loss's precision
        return {f"{name}_share": (self.share * count, count) for name in batch.student}


def test_diagnostics_are_named_for_the_students_outputs():
    """Under one name the first objective's counts; of other names none is shown."""
    preset = {"objectives": [Counting("one", 0.25), Counting("two", 0.5), HardLabels()]}
    model = distiller(preset, evaluate_views=True)
    expected = {"logits_share": 0.25, "projection_share": 0.25}
    for shown in (step(model), evaluate(model)):
        assert {name: shown[name] for name in shown if "share" in name} == expected
    model = distiller(preset, student=subclassed())
    assert not [name for name in step(model) if "share" in name]


def test_a_last_batch_of_one_image_teaches_nothing():
    model = distiller(SIMILARITY, graph=True)
    assert np.isfinite(fit(model, batch_size=11)["loss"]).all()


# --- While a step runs ------------------------------------------------------------------------

ONES = np.ones(12, "float32")


def changed(array, value):
    array = array.copy()
    array.flat[4] = value
    return array


BROKEN = [
    (changed(LABELS, 3), ONES, r"Labels must be -1 \(unlabeled\) or 0..2"),
    (changed(LABELS, -2), ONES, r"Labels must be -1 \(unlabeled\) or 0..2"),
    (LABELS, changed(ONES, -1), "`sample_weight` must be finite and >= 0"),
    (LABELS, changed(ONES, np.nan), "`sample_weight` must be finite and >= 0"),
    (LABELS, changed(ONES, np.inf), "`sample_weight` must be finite and >= 0"),
    (changed(ONE_HOT, -1), ONES, "One-hot and soft labels must be finite and >= 0"),
    (changed(ONE_HOT, np.nan), ONES, "One-hot and soft labels must be finite and >= 0"),
]


@pytest.mark.parametrize("graph", [False, True])
def test_values_that_mean_nothing_stop_the_run(graph):
    model = distiller(SSKD, graph=graph, optimizer=sgd(weight_decay=0.1))
    before = trained(model)
    for labels, weights, message in BROKEN:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            step(model, IMAGES, labels, weights)
        assert_equal(trained(model), before)
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            model.test_on_batch(IMAGES, labels, weights)


def test_values_that_mean_nothing_under_xla():
    model = distiller(LABELS_ONLY, student=subclassed(), graph=True, jit_compile=True)
    before = trained(model)
    for labels, weights, _ in BROKEN:
        assert np.isnan(step(model, IMAGES, labels, weights)["loss"])
        assert_equal(trained(model), before)
        model.reset_metrics()
    assert np.isfinite(step(model)["loss"])


def test_labels_of_an_evaluation():
    model = distiller(LABELS_ONLY, graph=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Labels must be -1"):
        evaluate(model, labels=LABELS + 1)
    assert evaluate(model)["loss"] > 0


def test_images_of_another_size():
    model = distiller(KD)
    with pytest.raises(ValueError, match=r"The student takes images \(8, 8, 3\), got \(6, 6, 3\)"):
        step(model, images=IMAGES[:, :6, :6])


def test_arrays_of_another_size_in_a_second_fit():
    model = distiller(KD, graph=True)
    fit(model)
    model.fit(IMAGES[:, :, ::-1], LABELS, batch_size=4, verbose=0, check=False)
    words = r"The student takes images \(8, 8, 3\), got \[?\(?6,? 8"
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=words):
        model.fit(IMAGES[:, :6], LABELS, batch_size=4, verbose=0, check=False)


def test_images_of_another_size_than_the_teachers():
    teacher = ssd.models.build("resnet14", num_classes=3, input_shape=(16, 16, 3))
    model = distiller(KD, teacher=teacher)
    with pytest.raises(
        ValueError, match=r"The teacher .* takes .*of a Distiller `teacher_preprocessing`"
    ):
        step(model)


def test_an_assertion_in_the_graph_is_one_sentence():
    model = distiller(LABELS_ONLY, graph=True)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        fit(model, labels=LABELS + 5)
    assert caught.value.message == (
        "Labels must be -1 (unlabeled) or 0..2, got values from 5 to 7."
    )
