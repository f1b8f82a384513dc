"""A head on the teacher's side: trained beside the student, before it, or not at all."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssd as ssd
from keras_ssd.objectives import (
    ContrastiveRepresentation,
    EmbeddingGraph,
    HardLabels,
    Objective,
    SoftLabels,
)

from .one_and_two import assert_close as assert_variables_close
from .one_and_two import batches, examples, on_one_and_two
from .one_and_two import network as one_and_two_network
from .tiny import IMAGES, LABELS, assert_close, assert_equal, differs, fit, sgd, step


def encoder(width=6, seed=3):
    """Images to vectors, without a classifier."""
    keras.utils.set_random_seed(seed)
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 128, -1, dtype="float32")(images)
    x = keras.layers.Conv2D(width, 3, strides=2, use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.5)(x))
    return keras.Model(images, {"embedding": keras.layers.GlobalAveragePooling2D()(x)})


def student(seed=0, dropout=0.0):
    keras.utils.set_random_seed(seed)
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 128, -1, dtype="float32")(images)
    x = keras.layers.ReLU()(keras.layers.Conv2D(4, 3, strides=2, use_bias=False)(x))
    x = keras.layers.GlobalAveragePooling2D(name="embedding")(x)
    x = keras.layers.Dropout(dropout)(x)
    model = keras.Model(images, keras.layers.Dense(3, name="logits")(x))
    return ssd.with_node_embedding(model, units=5)


def head(seed=1, width=6):
    keras.utils.set_random_seed(seed)
    return ssd.node_embedding_head(width, 3, units=5)


def ega(*, compiled=(), teacher=None, network=None, own_head=None, optimizer=sgd, **preset):
    """A compiled Distiller of EGA; arguments of the preset, and `compiled` for `compile`."""
    preset = ssd.presets.ega(**{"padding": 1, **preset})
    trains = bool(preset["teacher_objectives"])
    model = ssd.Distiller(
        teacher or encoder(),
        network or student(),
        teacher_head=own_head or head(),
        **preset,
    )
    options = {"teacher_optimizer": sgd(0.5, momentum=0.9)} if trains else {}
    model.compile(**{"optimizer": optimizer(), "run_eagerly": True, **options, **dict(compiled)})
    return model


def weights(network):
    return [variable.numpy() for variable in network.weights]


class WithoutGraph(Objective):
    """Costs nothing: the place of the graph where there is none."""

    student_outputs = ("node",)

    def __call__(self, batch):
        return 0 * tf.reduce_sum(batch.student["node"]), tf.constant(1.0)


def test_the_head_learns_from_its_labels_alone():
    """Weights of the head are those of a step without the graph, bit for bit."""
    with_graph = ega()
    without = ega()
    without.objectives = (HardLabels(), WithoutGraph())
    before = weights(with_graph.teacher_head)
    for model in (with_graph, without):
        model.compile(sgd(), teacher_optimizer=sgd(0.5, momentum=0.9), run_eagerly=True)
        step(model)
        step(model)
    assert differs(weights(with_graph.teacher_head), before)
    assert_equal(weights(with_graph.teacher_head), weights(without.teacher_head))
    assert differs(weights(with_graph.student), weights(without.student))


def test_the_head_learns_as_a_classifier_of_the_embeddings_does():
    """A step is the step of Keras' own `fit` on the teacher's vectors."""
    model = ega(crop=False, flip=False)
    classifier = head()
    vectors = ssd.freeze(encoder())(tf.constant(IMAGES))["embedding"]
    alone = keras.Model(classifier.input, classifier.output["logits"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    alone.compile(sgd(0.5, momentum=0.9), loss)
    shown = []
    for _ in range(3):
        shown.append(step(model)["teacher_hard_labels"])
        expected = alone.train_on_batch(vectors, LABELS)
        alone.reset_metrics()
        np.testing.assert_allclose(shown[-1], expected, rtol=1e-5)
    assert_close(weights(model.teacher_head), weights(classifier), 1e-6)
    assert shown[2] < shown[0]


def test_the_student_does_not_feel_whether_the_head_is_trained():
    trained, frozen = ega(), ega(train_teacher_head=False)
    for model in (trained, frozen):
        step(model)
    assert_equal(weights(trained.student), weights(frozen.student))
    assert_equal(weights(frozen.teacher_head), weights(head()))


def test_the_encoder_stays_as_it_is_and_is_in_no_list():
    teacher = encoder()
    before = weights(teacher)
    model = ega(teacher=teacher)
    copies = [v.numpy() for v in model.teacher.variables]
    fit(model, epochs=2)
    assert_equal(weights(teacher), before)
    assert_equal([v.numpy() for v in model.teacher.variables], copies)
    hidden = {id(v) for v in [*teacher.variables, *model.teacher.variables]}
    held = [*model.variables, *model.optimizer.variables, *model.teacher_optimizer.variables]
    assert not hidden & set(map(id, held))
    heads = len(model.teacher_head.variables)
    assert len(model.variables) == len(model.student.variables) + heads
    assert len(model.teacher_optimizer.variables) == heads + 2  # velocities, step, rate


def test_what_is_shown():
    history = fit(ega(compiled={"metrics": ["accuracy"]}), epochs=1)
    assert set(history) == {
        "loss",
        "hard_labels",
        "embedding_graph",
        "teacher_hard_labels",
        "teacher_agreement",
        "accuracy",
    }
    total = history["hard_labels"][0] + history["embedding_graph"][0]
    assert abs(history["loss"][0] - total) < 0.1 * total  # terms count rows, the loss batches


def test_a_check_shows_what_the_heads_next_step_does():
    """The value of its term, and the gradient that moves it."""
    model = ega()
    model.compile(sgd(), teacher_optimizer=sgd(1.0), run_eagerly=True)
    before = weights(model.teacher_head)
    report = model.check(IMAGES, LABELS, batch_size=len(IMAGES))
    assert_equal(weights(model.teacher_head), before)
    shown = step(model)
    [term] = report.head_terms
    assert (term.name, term.weight, term.rows) == ("teacher_hard_labels", 1, len(IMAGES))
    assert term.value == pytest.approx(shown[term.name], rel=1e-5)
    pairs = zip(before, weights(model.teacher_head), strict=True)
    moved = np.concatenate([(old - new).ravel() for old, new in pairs])
    assert term.gradient == pytest.approx(np.linalg.norm(moved), rel=1e-4)
    assert "\nterm of the teacher's head  value  weight" in str(report)
    assert "\nteacher_hard_labels " in str(report)


def test_a_check_shows_the_students_terms_that_reach_the_head():
    model = ega(train_teacher_head=False)
    assert model.check(IMAGES, LABELS).head_terms == ()
    assert "head" not in str(model.check(IMAGES, LABELS))
    model.objectives[1].trains_teacher_head = True
    model.compile(sgd(), teacher_optimizer=sgd(), run_eagerly=True)
    report = model.check(IMAGES, LABELS)
    [term] = report.head_terms
    assert (term.name, term.value) == ("embedding_graph", report.terms[1].value)
    assert 0 < term.gradient != report.terms[1].gradient
    [warning] = [one for one in report.warnings if "head" in one]
    assert "2 trainable variables of the teacher's head are reached by no term" in warning


def test_a_check_names_a_term_of_the_head_that_teaches_nothing():
    model = ega()
    report = model.check(IMAGES, np.full_like(LABELS, -1))
    assert any(
        "`teacher_hard_labels` has no gradient on the teacher's head: no row" in one
        for one in report.warnings
    )


def test_two_optimizers_two_schedules():
    """The student's rate falls, the head's does not; each has its own step."""
    rate = ssd.schedules.steps_at(0.05, epochs=[1, 2, 3], steps_per_epoch=3)
    model = ega(optimizer=lambda: sgd(rate))
    rates = []
    for _ in range(4):
        rates.append(float(model.optimizer.learning_rate))
        fit(model, batch_size=4)
    np.testing.assert_allclose(rates, [0.05, 0.005, 5e-4, 5e-5], rtol=1e-5)
    assert float(model.teacher_optimizer.learning_rate) == 0.5
    assert int(model.optimizer.iterations) == int(model.teacher_optimizer.iterations) == 12


@pytest.mark.parametrize("on_replicas", [False, True])
def test_the_head_ends_as_its_average(on_replicas, two_replicas):
    scope = two_replicas.scope() if on_replicas else contextlib.nullcontext()
    with scope:
        model = ega(compiled={"run_eagerly": not on_replicas})
        averaging = sgd(0.5, use_ema=True, ema_momentum=0.5)
        model.compile(sgd(), teacher_optimizer=averaging, run_eagerly=not on_replicas)
    steps = []
    recorded = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(  # noqa: ARG005
            weights(model.teacher_head)
        )
    )
    model.fit(batches(IMAGES, LABELS, size=4), epochs=2, callbacks=[recorded], verbose=0)
    averages = steps[0]
    for after in steps[1:]:
        pairs = zip(averages, after, strict=True)
        averages = [0.5 * average + 0.5 * weight for average, weight in pairs]
    assert_close(weights(model.teacher_head), averages, 1e-6)
    assert differs(weights(model.teacher_head), steps[-1])


def test_published_schedule():
    rate = ssd.schedules.steps_at(0.05, epochs=[150, 180, 210], steps_per_epoch=782)
    first_steps = np.array([149, 150, 180, 210]) * 782
    rates = [float(rate(int(first))) for first in first_steps]
    np.testing.assert_allclose(rates, [0.05, 0.005, 5e-4, 5e-5], rtol=1e-5)


def test_views_are_drawn_independently_or_shared():
    seen = {}

    def watched(images):
        seen["teacher"] = images.numpy()
        return {"embedding": tf.reshape(tf.cast(images, "float32"), [-1, 192])}

    class Watch(WithoutGraph):
        def __call__(self, batch):
            seen["student"] = batch.images.numpy()
            return super().__call__(batch)

    for shared in (True, False):
        preset = ssd.presets.ega(padding=2, shared_view=shared)
        preset["objectives"] = [Watch()]
        model = ssd.Distiller(watched, student(), teacher_head=head(width=192), **preset)
        model.compile(sgd(), teacher_optimizer=sgd(), run_eagerly=True)
        step(model)
        same = (seen["teacher"] == seen["student"]).all(axis=(1, 2, 3))
        assert same.all() if shared else same.mean() < 0.5


def resumed(folder):
    model = keras.models.load_model(folder / "model.keras")
    model.set_teacher(encoder())
    return model


def reloaded(folder):
    model = ega(optimizer=lambda: sgd(0.05, momentum=0.9))
    model.load_weights(folder / "model.weights.h5")
    return model


@pytest.mark.parametrize("read", [resumed, reloaded])
def test_a_resumed_run_is_the_uninterrupted_one(read, tmp_path):
    """Both optimizers and the head go on where they were."""
    model = ega(optimizer=lambda: sgd(0.05, momentum=0.9))
    fit(model, epochs=2)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    fit(model, epochs=2)
    other = read(tmp_path)
    fit(other, epochs=2)

    def everything(one):
        parts = [one, one.optimizer, one.teacher_optimizer]
        return [v.numpy() for part in parts for v in part.variables]

    assert_equal(everything(other), everything(model))


def test_a_backup_holds_both_optimizers(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
            if epoch == 2:
                raise KeyboardInterrupt

    undisturbed, cut, again = ega(), ega(), ega()
    fit(undisturbed, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        fit(cut, epochs=4, callbacks=[ssd.callbacks.Backup(tmp_path), Stop()])
    fit(again, epochs=4, callbacks=[ssd.callbacks.Backup(tmp_path)])
    assert_equal(weights(again), weights(undisturbed))
    optimizers = again.teacher_optimizer, undisturbed.teacher_optimizer
    assert_equal(*([v.numpy() for v in one.variables] for one in optimizers))


@pytest.mark.parametrize("trained", [True, False])
def test_two_replicas_do_what_one_does(trained, float64, two_replicas):
    """Uneven shards, and every third image of weight 0; the head's weights, too."""
    images, labels = examples(37)
    data = batches(images, labels, np.where(np.arange(37) % 3, 1.0, 0.0))

    def make():
        base = one_and_two_network(4)
        plain = ssd.strip_heads(base)
        preset = ssd.presets.ega(padding=1, train_teacher_head=trained)
        model = ssd.Distiller(
            one_and_two_teacher,
            ssd.with_node_embedding(plain, units=6),
            teacher_head=ssd.node_embedding_head(8, 3, units=6),
            **preset,
        )
        options = {"teacher_optimizer": sgd(0.1, momentum=0.9)} if trained else {}
        model.compile(sgd(0.05, momentum=0.9, global_clipnorm=1.0), **options)
        return model

    def one_and_two_teacher(rows):
        means = tf.reduce_mean(tf.cast(rows, "float64"), [1, 2]) / 255
        return {"embedding": tf.concat([means, means**2, means[:, :2]], 1)}

    one, two = on_one_and_two(two_replicas, make)
    two.teacher_head.set_weights(one.teacher_head.get_weights())
    history = [model.fit(data, epochs=2, verbose=0).history for model in (one, two)]
    assert_variables_close(two.student.variables, one.student.variables, 1e-10)
    assert_variables_close(two.teacher_head.variables, one.teacher_head.variables, 1e-10)
    assert history[0].keys() == history[1].keys()
    for name in history[0]:
        np.testing.assert_allclose(history[1][name], history[0][name], rtol=1e-10)


def test_two_replicas_remember_and_train_both_sides_as_one_does(float64, two_replicas):
    """CRD: its memory, and a head on either side that it trains, on uneven shards."""
    images, labels = examples(37)
    places = np.arange(37, dtype="int32")[::-1].copy()
    data = batches({"image": images, "index": places}, labels)

    def teacher(rows):
        means = tf.reduce_mean(tf.cast(rows, "float64"), [1, 2]) / 255
        return {"embedding": tf.concat([means, means**2], 1)}

    def make():
        contrast = ContrastiveRepresentation(labels[::-1], negatives=5, width=6)
        model = ssd.Distiller(
            teacher,
            ssd.with_node_embedding(ssd.strip_heads(one_and_two_network(4)), units=6),
            [HardLabels(), contrast],
            teacher_head=ssd.node_embedding_head(6, 3, units=6),
        )
        model.compile(sgd(0.05), teacher_optimizer=sgd(0.1))
        return model

    one, two = on_one_and_two(two_replicas, make)
    two.teacher_head.set_weights(one.teacher_head.get_weights())
    before = weights(one.teacher_head.get_layer("node"))
    history = [model.fit(data, epochs=2, verbose=0).history for model in (one, two)]
    assert differs(weights(one.teacher_head.get_layer("node")), before)
    assert_variables_close(two.variables, one.variables, 1e-10)
    for name in history[0]:
        np.testing.assert_allclose(history[1][name], history[0][name], rtol=1e-10)


@pytest.mark.parametrize("option", [{}, {"jit_compile": True}], ids=str)
def test_ways_to_run_are_equal(option):
    expected, model = ega(), ega(compiled={"run_eagerly": False, **option})
    for one in (expected, model):
        fit(one, epochs=2, batch_size=4)
    assert_close(weights(model.student), weights(expected.student), 1e-5)
    assert_close(weights(model.teacher_head), weights(expected.teacher_head), 1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(policy):
    keras.config.set_dtype_policy(policy)
    network = student()
    dense = keras.layers.Dense(5, name="node")
    embedding = keras.Input([6], name="embedding")
    node = dense(embedding)
    logits = keras.layers.Dense(3, name="logits", dtype="float32")(node)
    own_head = keras.Model(embedding, {"node": node, "logits": logits})
    keras.config.set_dtype_policy("float32")
    model = ega(network=network, own_head=own_head)
    before = weights(own_head)
    history = fit(model, epochs=1)
    assert np.isfinite([*history.values()]).all()
    assert all((one != other).any() for one, other in zip(weights(own_head), before, strict=True))
    scaled = isinstance(model.teacher_optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")


def test_an_overflow_of_the_head_is_skipped():
    embedding = keras.Input([6], name="embedding")
    node = keras.layers.Dense(5, dtype="mixed_float16")(embedding)
    logits = keras.layers.Dense(3, dtype="float32")(node)
    model = ega(own_head=keras.Model(embedding, {"node": node, "logits": logits}))
    before = weights(model.teacher_head)
    model.teacher_optimizer.dynamic_scale.assign(1e30)
    step(model)
    assert_equal(weights(model.teacher_head), before)
    assert int(model.optimizer.iterations) == 1


class Stateful(HardLabels):
    def __init__(self):
        super().__init__()
        self.state = keras.layers.Dense(2)
        self.state.build([None, 3])


class Both(Objective):
    """The mean square of what student and teacher's head give: trains both."""

    teacher_outputs = student_outputs = ("node",)
    trains_teacher_head = True

    def __call__(self, batch):
        values = tf.reduce_mean(batch.student["node"] ** 2 + batch.teacher["node"] ** 2, axis=1)
        return tf.reduce_sum(values), tf.cast(tf.shape(values)[0], "float32")


def test_an_objective_may_train_the_head():
    """Its gradient is that of the weighted mean, and no other objective's reaches the head."""
    model = ssd.Distiller(
        encoder(), student(), [Both(weight=3.0), EmbeddingGraph()], teacher_head=head()
    )
    model.compile(sgd(), teacher_optimizer=sgd(0.1), run_eagerly=True)
    own = head()
    vectors = ssd.freeze(encoder())(tf.constant(IMAGES))["embedding"]
    with tf.GradientTape() as tape:
        loss = 3 * tf.reduce_mean(own(vectors)["node"] ** 2)
    layer = own.get_layer("node")
    gradients = tape.gradient(loss, layer.trainable_variables)
    expected = [v - 0.1 * g for v, g in zip(layer.weights, gradients, strict=True)]
    step(model)
    assert_close(weights(model.teacher_head.get_layer("node")), expected, 1e-6)
    assert_equal(weights(model.teacher_head.get_layer("logits")), weights(own.get_layer("logits")))


def test_evaluation_with_views_shows_the_heads_terms_and_moves_nothing():
    model = ega(compiled={"evaluate_views": True})
    before = weights(model)
    shown = model.evaluate(IMAGES, LABELS, batch_size=4, verbose=0, return_dict=True)
    assert {"teacher_hard_labels", "embedding_graph"} <= shown.keys()
    assert_equal(weights(model), before)


def test_check_says_nothing_of_a_head_that_still_learns(capsys):
    model = ega()
    before = weights(model)
    report = model.check(IMAGES, LABELS)
    assert "chance" not in capsys.readouterr().out
    assert [term.name for term in report.terms] == ["hard_labels", "embedding_graph"]
    assert_equal(weights(model), before)


def test_stored_vectors_run_no_teacher():
    vectors = ssd.freeze(encoder())(tf.constant(IMAGES))["embedding"].numpy()
    stored, live = (ega(crop=False, flip=False, shared_view=True) for _ in range(2))
    stored.set_teacher(None)
    step(stored, {"image": IMAGES, "teacher": {"embedding": vectors}})
    step(live)
    assert_close(weights(stored), weights(live), 1e-6)


def test_the_graph_is_learnt():
    """Teacher's features are informative: nodes find their images, edges become the teacher's."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (12, 1, 1, 3))
    images = np.broadcast_to(colours, (12, 8, 8, 3)).astype("uint8")
    labels = colours.reshape(12, 3).argmax(axis=1)
    waves = tf.constant(random.normal(0, 30, (3, 64)), "float32")

    def teacher(rows):
        return {"embedding": tf.sin(tf.cast(rows[:, 0, 0], "float32") / 255 @ waves)}

    keras.utils.set_random_seed(0)
    pixels = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 128, -1)(pixels))
    for _ in range(2):
        x = keras.layers.Dense(64, activation="relu")(x)
    network = keras.Model(pixels, keras.layers.Dense(3, name="logits")(x))
    network = ssd.with_node_embedding(network, units=64)
    own = ssd.fixed_node_embedding(64, units=64)
    model = ssd.Distiller(teacher, network, [EmbeddingGraph()], teacher_head=own)
    model.compile(keras.optimizers.Adam(3e-3))  # a graph: 100 steps

    def state():
        vectors = teacher(tf.constant(images))["embedding"]
        nodes = own(vectors)["node"], network(images)["node"]
        correlations = ssd.losses.pearson_correlation(*nodes)
        return np.diag(correlations).mean(), float(ssd.losses.edge_loss(*nodes))

    (start, edges_before) = state()
    fit(model, images, labels, batch_size=12, epochs=100)
    end, edges = state()
    assert start < 0.5
    assert end > 0.8
    assert edges < edges_before / 2


WRONG = {
    "no model": (
        TypeError,
        "`teacher_head` must be a functional Keras model",
        lambda: {"teacher_head": lambda x: x},
    ),
    "one tensor": (
        ValueError,
        "must return a dict of named outputs",
        lambda: {"teacher_head": keras.Model(x := keras.Input([6]), keras.layers.Dense(5)(x))},
    ),
    "other width": (
        ValueError,
        r"takes \(None, 7\) and the teacher gives \(None, 6\): make the head for 6 values",
        lambda: {"teacher_head": head(width=7)},
    ),
    "other name": (
        ValueError,
        "is named like no output of the teacher, which has",
        lambda: {
            "teacher": keras.Model(
                (t := encoder()).input, {"a": t.output["embedding"], "b": t.output["embedding"]}
            )
        },
    ),
    "tokens": (
        ValueError,
        r"a sequence of tokens, \(None, 2, 3\): pool them",
        lambda: {
            "teacher": keras.Model(
                (t := encoder()).input, keras.layers.Reshape([2, 3])(t.output["embedding"])
            )
        },
    ),
    "own losses": (
        ValueError,
        "has losses of its own",
        lambda: {
            "teacher_head": keras.Model(
                x := keras.Input([6], name="embedding"),
                {"node": keras.layers.Dense(5, kernel_regularizer="l2")(x)},
            )
        },
    ),
    "no head": (
        ValueError,
        "`teacher_objectives` train the teacher's head, and there is none",
        lambda: {"teacher_head": None},
    ),
    "other classes": (
        ValueError,
        "The teacher's head has 4 classes and the student 3",
        lambda: {"teacher_head": ssd.node_embedding_head(6, 4, units=5)},
    ),
    "narrow nodes": (
        ValueError,
        "of the teacher has 9 and 'node' of the student 5",
        lambda: {"teacher_head": ssd.node_embedding_head(6, 3, units=9)},
    ),
    "number of views": (
        ValueError,
        "`teacher_views` make 4 rows of an image and `views` 1",
        lambda: {"teacher_views": ssd.views.Rotations()},
    ),
    "no views": (
        TypeError,
        "`teacher_views` must be `Plain",
        lambda: {"teacher_views": "plain"},
    ),
    "preprocessing for nobody": (
        ValueError,
        "`teacher_preprocessing` makes the images of a teacher, and there is none",
        lambda: {"teacher": None, "teacher_preprocessing": ssd.layers.ImagePreprocessing(8)},
    ),
    "one name for two": (
        ValueError,
        "which is the name of another term",
        lambda: {
            "objectives": [HardLabels(), EmbeddingGraph(name="teacher_hard_labels")],
        },
    ),
    "an output of both": (
        ValueError,
        "both have the output 'logits'",
        lambda: {
            "teacher": keras.Model(
                (t := encoder()).input,
                {**t.output, "logits": keras.layers.Dense(3)(t.output["embedding"])},
            )
        },
    ),
    "a head that cannot learn": (
        ValueError,
        "which has no trainable variable",
        lambda: {"teacher_head": ssd.fixed_node_embedding(6, units=5)},
    ),
    "a layer of the student": (
        ValueError,
        "shares the variable 'logits/kernel' with the student",
        lambda: {
            "student": (s := student()),
            "teacher_head": keras.Model(
                x := keras.Input([6], name="embedding"),
                {"node": (n := keras.layers.Dense(5)(x)), "logits": s.get_layer("logits")(n)},
            ),
        },
    ),
    "an objective that trains something": (
        ValueError,
        "holds the trainable variable",
        lambda: {"teacher_objectives": [Stateful()]},
    ),
    "not an output of the head": (
        ValueError,
        "reads the teacher's head's output 'projection'",
        lambda: {"teacher_objectives": [ssd.objectives.ContrastivePretext()]},
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_told(case):
    error, sentence, wrong = WRONG[case]
    given = {
        "teacher": encoder(),
        "student": student(),
        "teacher_head": head(),
        **ssd.presets.ega(),
    }
    if case == "not an output of the head":
        given |= {"views": ssd.views.Rotations(), "teacher_views": ssd.views.Rotations()}
    with pytest.raises(error, match=sentence):
        ssd.Distiller(**{**given, **wrong()})


def test_a_head_that_is_not_trainable_stays_where_an_objective_would_train_it():
    own = head()
    own.trainable = False
    model = ssd.Distiller(encoder(), student(), [Both()], teacher_head=own)
    model.compile(sgd(), run_eagerly=True)
    step(model)
    assert_equal(weights(own), weights(head()))


def test_names_of_optimizers_do():
    model = ega(compiled={"optimizer": "sgd", "teacher_optimizer": "sgd"})
    assert model.optimizer is not model.teacher_optimizer
    step(model)


def test_optimizers_that_do_not_fit_are_told():
    model = ega()
    with pytest.raises(ValueError, match="needs an optimizer of its own"):
        model.compile(sgd())
    one = sgd()
    with pytest.raises(ValueError, match="are one object"):
        model.compile(one, teacher_optimizer=one)
    frozen = ega(train_teacher_head=False)
    with pytest.raises(ValueError, match="none is trained here"):
        frozen.compile(sgd(), teacher_optimizer=sgd())


def test_views_of_the_teacher_and_stored_vectors_do_not_go_together():
    vectors = np.zeros([12, 6], "float32")
    with pytest.raises(ValueError, match="`teacher_views` make the images of a teacher that runs"):
        step(ega(), {"image": IMAGES, "teacher": {"embedding": vectors}})


def test_images_that_are_normalised_before_preprocessing_are_told():
    size = ssd.layers.ImagePreprocessing(8)
    teacher = ssd.freeze(encoder(), preprocessing=size)
    model = ega(teacher=teacher)
    student_warned = pytest.warns(UserWarning, match="The student .* normalises raw images")
    with student_warned, pytest.warns(UserWarning, match="The teacher 'image_preprocessing"):
        fit(model, IMAGES / 255)


def test_a_step_that_lacks_something_is_told(tmp_path):
    model = ega(compiled={"run_eagerly": True})
    with pytest.raises(ValueError, match="needs labels"):
        step(model, labels=None)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="the Distiller has none"):
        fit(loaded)


def test_labels_only_for_the_head_are_missed():
    preset = ssd.presets.ega()
    preset["objectives"] = [EmbeddingGraph()]
    model = ssd.Distiller(encoder(), student(), teacher_head=head(), **preset)
    model.compile(sgd(), teacher_optimizer=sgd(), run_eagerly=True)
    with pytest.raises(ValueError, match="`teacher_hard_labels` trains the teacher's head on"):
        step(model, labels=None)


def test_a_function_as_teacher_is_checked_at_the_first_step():
    def teacher(rows):
        return {"embedding": tf.zeros([tf.shape(rows)[0], 7])}

    model = ega(teacher=teacher, compiled={"run_eagerly": True})
    with pytest.raises(ValueError, match="make the head for 7 values an image"):
        step(model)


def test_soft_labels_may_read_the_heads_logits():
    """The head hides an output of the encoder that has its name."""
    bare = encoder()
    bare = keras.Model(bare.input, bare.output["embedding"])  # one tensor is called `logits`
    model = ssd.Distiller(
        bare,
        student(),
        [SoftLabels(2.0)],
        teacher_head=head(),
        teacher_objectives=[HardLabels()],
    )
    model.compile(sgd(), teacher_optimizer=sgd(), run_eagerly=True)
    logits = head()(ssd.freeze(encoder())(tf.constant(IMAGES))["embedding"])["logits"]
    expected = ssd.losses.kl_divergence(logits, model.student(IMAGES)["logits"], 2.0)
    np.testing.assert_allclose(step(model)["soft_labels"], np.mean(expected), rtol=1e-5)
