import copy
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from distiller.tiny import (
    IMAGES,
    KD,
    LABELS,
    SSKD,
    Counter,
    assert_close,
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
from keras import layers

import keras_ssd as ssd
from keras_ssd.objectives import SoftLabels


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.5)
        self.conv = layers.Conv2D(8, 3)
        self.dense = layers.Dense(3)

    def call(self, images, training=None):
        x = self.conv(self.norm(keras.ops.cast(images, "float32") / 255, training=training))
        return self.dense(self.drop(keras.ops.mean(x, (1, 2)), training=training))


def stack():
    return [
        layers.Rescaling(1 / 255, dtype="float32"),
        layers.Conv2D(8, 3),
        layers.BatchNormalization(),
        layers.GlobalAveragePooling2D(),
        layers.Dropout(0.5),
        layers.Dense(3),
    ]


def images():
    return keras.Input((8, 8, 3), dtype="uint8")


def functional(extra=lambda x: x):
    inputs = images()
    x = inputs
    for layer in stack():
        x = layer(extra(x))
    return keras.Model(inputs, x)


def sequential():
    return keras.Sequential([images(), *stack()])


def nested():
    inputs = images()
    inner = keras.Sequential([images(), *stack()[:3]])
    x = layers.GlobalAveragePooling2D()(inner(inputs))
    return keras.Model(inputs, {"logits": layers.Dense(3)(x), "embedding": x})


def subclassed():
    model = Subclassed()
    model(IMAGES)
    return model


def with_lambda():
    return functional(lambda x: layers.Lambda(lambda y: y)(x))


def compiled():
    model = functional()
    model.compile("adam", lambda y, p: tf.reduce_mean((p - y[:, None]) ** 2))
    model.fit(IMAGES, LABELS, verbose=0)
    return model


KINDS = [functional, sequential, nested, subclassed, with_lambda, compiled]


def shaken(model):
    """The model with statistics and offsets that are not the initial ones."""
    for weight in model.weights:
        weight.assign(weight + keras.random.uniform(weight.shape, dtype="float32"))
    return model


def outputs(network, rows=IMAGES):
    got = network(tf.constant(rows))
    return [got[name] for name in sorted(got)] if isinstance(got, dict) else [got]


# --- What a frozen teacher is -----------------------------------------------------------------


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_teacher_stays_what_it_was(kind, fold):
    model = shaken(kind())
    flags = {layer.name: layer.trainable for layer in model.layers}
    before = model.get_weights()
    expected = outputs(lambda rows: model(rows, training=False))

    frozen = ssd.freeze(model, fold_batch_norm=fold)
    if fold and kind is not subclassed:
        assert_close(outputs(frozen), expected, 1e-6)
        expected = outputs(frozen)
    assert_equal(outputs(frozen), expected)
    student = network()
    distilled = distiller(teacher=frozen, student=student, preset=KD, optimizer=sgd(1.0))
    fit(distilled)
    assert_equal(model.get_weights(), before)
    assert {layer.name: layer.trainable for layer in model.layers} == flags
    assert model.trainable_variables

    for weight in model.weights:
        weight.assign(weight + 1)
    model.trainable = False
    fit(distilled)
    assert_equal(outputs(frozen), expected)
    assert (outputs(model)[-1].numpy() != expected[-1].numpy()).any()


@pytest.mark.parametrize("fold", [True, False])
def test_no_gradient_reaches_a_teacher(fold):
    frozen = ssd.freeze(functional(), fold_batch_norm=fold)
    rows = tf.constant(IMAGES, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([rows, *(v.value for v in frozen.variables)])
        total = tf.reduce_sum(frozen(rows)["logits"])
    assert len(frozen.variables) == (4 if fold else 8)
    sources = [rows, *(v.value for v in frozen.variables)]
    assert tape.gradient(total, sources) == [None] * len(sources)


def test_function_as_teacher():
    model = functional()
    by_function = distiller(KD, teacher=lambda rows: {"logits": model(rows, training=False)})
    by_model = distiller(KD, teacher=ssd.freeze(model, fold_batch_norm=False))
    assert by_function.teacher.variables == []
    assert step(by_function) == step(by_model)
    assert_equal(trained(by_function), trained(by_model))


class Table:
    """A callable that has variables and gives a mapping that is no dict."""

    variables = (1, 2)

    def __call__(self, rows):
        return types.MappingProxyType({"logits": tf.zeros([len(rows), 3])})


def test_any_callable_as_teacher():
    frozen = ssd.freeze(Table())
    assert frozen.variables == []
    assert frozen(tf.constant(IMAGES))["logits"].shape == (len(IMAGES), 3)


def test_one_output_by_any_name():
    inputs = keras.Input((8,))
    frozen = ssd.freeze(keras.Model(inputs, {"embedding": layers.Dense(3)(inputs)}))
    assert list(frozen(tf.zeros([2, 8]))) == ["embedding"]


@pytest.mark.parametrize(("dtype", "said"), [(None, "folded."), ("bfloat16", "not in bfloat16.")])
def test_a_subclassed_model_runs_as_it_is(dtype, said, caplog, monkeypatch):
    monkeypatch.setattr("keras_ssd.teacher.warn_if_slower", str)  # says nothing
    model = shaken(subclassed())
    frozen = ssd.freeze(model, dtype=dtype)
    assert_equal(outputs(frozen), outputs(lambda rows: model(rows, training=False)))
    assert caplog.text.rstrip().endswith(said)


def test_frozen_teacher_is_taken_as_it_is():
    frozen = ssd.freeze(functional())
    assert distiller(KD, teacher=frozen).teacher is frozen
    for options in ({"preprocessing": layers.Resizing(4, 4)}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match="is frozen already"):
            ssd.freeze(frozen, **options)
    for options in ({"fold_batch_norm": False}, {"read": dict}):
        with pytest.raises(ValueError, match="is frozen already"):
            ssd.freeze(frozen, **options)


@pytest.mark.parametrize("teacher", ["resnet56", keras.Model, 3])
def test_no_teacher(teacher):
    with pytest.raises(TypeError, match="must be a Keras model or a function"):
        ssd.freeze(teacher)


def test_options_of_the_wrong_kind():
    with pytest.raises(TypeError, match="`preprocessing` must be a layer, a model or a function"):
        ssd.freeze(functional(), preprocessing="resize")
    with pytest.raises(TypeError, match="`preprocessing` must be a layer, a model or a function"):
        ssd.freeze(functional(), preprocessing=ssd.layers.ImagePreprocessing)
    with pytest.raises(TypeError, match="`read` must be a function"):
        ssd.freeze(functional(), read="logits")
    with pytest.raises(ValueError, match="`fold_batch_norm` must be True or False"):
        ssd.freeze(functional(), fold_batch_norm="no")


def several_outputs(heads):
    inputs = keras.Input((8,))
    return keras.Model(inputs, keras.tree.map_structure(lambda head: head(inputs), heads))


@pytest.mark.parametrize("fold", [True, False])
def test_several_outputs_without_logits(fold):
    model = several_outputs({"tokens": layers.Dense(3), "embedding": layers.Dense(4)})
    frozen = ssd.freeze(model, fold_batch_norm=fold)
    assert {name: x.shape for name, x in frozen.outputs.items()} == {
        "tokens": (None, 3),
        "embedding": (None, 4),
    }
    rows = tf.random.normal([2, 8])
    assert_equal(outputs(frozen, rows), outputs(model, rows))


def test_outputs_without_names():
    with pytest.raises(TypeError, match="must return one tensor"):
        ssd.freeze(several_outputs([layers.Dense(3), layers.Dense(4)]))


@pytest.mark.parametrize("kind", KINDS)
def test_known_outputs(kind):
    frozen = ssd.freeze(kind())
    if kind is subclassed:
        assert frozen.outputs is None
    else:
        shapes = {name: x.shape for name, x in frozen.outputs.items()}
        more = {"embedding": (None, 8)} if kind is nested else {}
        assert shapes == {"logits": (None, 3), **more}
    assert ssd.freeze(Table()).outputs is None


@pytest.mark.parametrize("heads", [1, 2])
def test_outputs_are_read(heads):
    model = several_outputs([layers.Dense(3 + i) for i in range(heads)])

    def read(given):
        return {"embedding": 2 * (given if heads == 1 else given[-1])}

    frozen = ssd.freeze(model, read=read)
    width = 2 + heads
    assert frozen.outputs == {"embedding": tf.TensorSpec([None, width], tf.float32, "embedding")}
    rows = tf.random.normal([2, 8])
    expected = 2 * model(rows)[-1] if heads == 2 else 2 * keras.tree.flatten(model(rows))[0]
    assert_equal(outputs(frozen, rows), [expected])
    function = ssd.freeze(lambda x: x, read=lambda x: {"same": x})
    assert function.outputs is None
    assert list(function(rows)) == ["same"]


def test_images_of_the_wrong_size():
    with pytest.raises(ValueError, match=r"takes images \(8, 8, 3\), got \(4, 4, 3\): make them w"):
        ssd.freeze(functional())(tf.zeros([2, 4, 4, 3]))
    frozen = ssd.freeze(functional(), preprocessing=layers.Resizing(4, 4))
    with pytest.raises(ValueError, match=r"got \(4, 4, 3\): .*ImagePreprocessing\(\(8, 8\)\)"):
        frozen(tf.constant(IMAGES))


def test_grey_images_without_an_axis():
    images = keras.Input((8, 8, 1))
    model = keras.Model(images, layers.Flatten()(images))
    assert ssd.freeze(model)(tf.zeros([2, 8, 8]))["logits"].shape == (2, 64)


WRONG_ROWS = {
    "fewer": lambda rows: tf.reshape(tf.cast(rows, "float32"), [2, -1]),
    "one": lambda rows: tf.reduce_mean(tf.cast(rows, "float32"), (0, 2, 3))[None],
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_another_number_of_rows(case):
    function = WRONG_ROWS[case]
    found = {"fewer": 2, "one": 1}[case]
    match = f"The teacher returned {found} rows for 4 images: it must return one for each"
    with pytest.raises(ValueError, match=match):
        ssd.freeze(function)(tf.constant(IMAGES[:4]))
    halves = ssd.freeze(function, preprocessing=lambda rows: tf.concat([rows, rows], 0))
    with pytest.raises(ValueError, match=match):  # the images given, not those preprocessed
        halves(tf.constant(IMAGES[:4]))


@pytest.mark.parametrize("found", [2, None])
def test_another_number_of_rows_that_only_a_step_tells(found):
    teacher = ssd.freeze(lambda rows: tf.ensure_shape(rows[::2], [found, 8, 8, 3]))
    step = tf.function(teacher, input_signature=[tf.TensorSpec([None, 8, 8, 3], "uint8")])
    words = r"The teacher returned.* \[2\] .*rows for.* \[4\] .*images"
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        step(IMAGES[:4])


def test_rows_of_a_batch_of_any_size():
    teacher = ssd.freeze(lambda rows: tf.cast(rows, "float32"))
    signature = [tf.TensorSpec([None, 8, 8, 3], "uint8")]
    for compiled in (False, True):
        step = tf.function(teacher, input_signature=signature, jit_compile=compiled)
        for count in (4, 1, 0):
            assert step(IMAGES[:count])["logits"].shape[0] == count


def test_outputs_beside_others_may_have_no_rows():
    teacher = ssd.freeze(lambda rows: {"logits": rows, "scale": tf.ones([]), "words": rows[:2]})
    assert teacher(tf.constant(IMAGES))["words"].shape[0] == 2
    assert ssd.freeze(lambda _: {"scale": tf.ones([])})(tf.constant(IMAGES))["scale"].shape == ()


def test_a_function_chooses_its_precision_itself():
    with pytest.raises(ValueError, match="`dtype='bfloat16'` needs a Keras model, got the func"):
        ssd.freeze(lambda images: images, dtype="bfloat16")


def test_a_function_that_hides_its_shape():
    def answer(rows):
        return tf.py_function(lambda x: tf.zeros([x.shape[0], 3]), [rows], tf.float32)

    with pytest.raises(ValueError, match=r"shape of the teacher's logits must be known.*ensure_sh"):
        fit(distiller(KD, teacher=answer, graph=True))


@pytest.mark.skipif(
    tuple(map(int, keras.__version__.split(".")[:2])) < (3, 14),
    reason="Keras before 3.14 cannot read back a model that is nothing but its inputs",
)
def test_a_frozen_teacher_can_be_copied():
    frozen = ssd.freeze(shaken(functional()))
    assert_equal(outputs(copy.deepcopy(frozen)), outputs(frozen))


@pytest.mark.parametrize("model", [Subclassed(), keras.Sequential([layers.Dense(3)])])
def test_unbuilt_teacher(model):
    with pytest.raises(ValueError, match="has no weights yet: call it once"):
        ssd.freeze(model)


# --- Batch normalisation in a training step ----------------------------------------------------


def test_inference_mode_does_not_know_training():
    for batch_norm in (None, "inference"):
        frozen = ssd.freeze(shaken(functional()), batch_norm=batch_norm)
        assert frozen.batch_norm == "inference"
        assert len(frozen.variables) == 4  # folded
        expected = outputs(frozen)
        assert_equal(outputs(lambda rows, frozen=frozen: frozen(rows, training=True)), expected)
        assert_equal(outputs(frozen), expected)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("batch_norm", ["batch", "batch_update"])
@pytest.mark.parametrize("kind", [functional, sequential, nested, with_lambda, compiled])
def test_batch_statistics_of_every_kind(kind, batch_norm, fold):
    model = shaken(kind())
    frozen = ssd.freeze(model, batch_norm=batch_norm, fold_batch_norm=fold)
    assert frozen.batch_norm == batch_norm
    inference = outputs(lambda rows: model(rows, training=False))
    assert_close(outputs(frozen), inference, 1e-6)
    got = outputs(lambda rows: frozen(rows, training=True))
    for layer in model._flatten_layers():
        if isinstance(layer, layers.Dropout):
            layer.rate = layer.rate if batch_norm == "batch_update" else 0.0
    assert_close(got, outputs(lambda rows: model(rows, training=True)), 1e-5)


@pytest.mark.parametrize("batch_norm", ["batch", "batch_update"])
@pytest.mark.parametrize("first", [layers.Resizing(8, 8), lambda rows: rows[:, ::2, ::2]])
def test_batch_statistics_of_preprocessed_rows(first, batch_norm):
    rows = np.repeat(np.repeat(IMAGES, 2, axis=1), 2, axis=2)
    model = nested()
    frozen = ssd.freeze(model, preprocessing=first, batch_norm=batch_norm)
    got = outputs(lambda x: frozen(x, training=True), rows)
    assert_close(got, outputs(lambda x: model(first(x), training=True), rows), 1e-5)


def test_unknown_batch_norm():
    words = "must be one of 'inference', 'batch', 'batch_update', got 'train'"
    with pytest.raises(ValueError, match=words):
        ssd.freeze(functional(), batch_norm="train")


@pytest.mark.parametrize("batch_norm", ["batch", "batch_update"])
def test_batch_statistics_need_a_graph(batch_norm):
    match = f"`batch_norm='{batch_norm}'` needs a functional or Sequential Keras model, "
    with pytest.raises(ValueError, match=match + "and 'subclassed.*' is a subclassed one"):
        ssd.freeze(subclassed(), batch_norm=batch_norm)
    with pytest.raises(ValueError, match=match + "got the function"):
        ssd.freeze(lambda rows: rows, batch_norm=batch_norm)
    with pytest.raises(ValueError, match="has no weights yet: call it once"):
        ssd.freeze(keras.Sequential([layers.BatchNormalization()]), batch_norm=batch_norm)


def test_batch_norm_of_a_frozen_teacher():
    frozen = ssd.freeze(functional(), batch_norm="batch")
    assert ssd.freeze(frozen) is frozen
    assert ssd.freeze(frozen, batch_norm="batch") is frozen
    for other in ("inference", "batch_update"):
        with pytest.raises(
            ValueError, match=f"frozen with `batch_norm='batch'`, .* with '{other}'"
        ):
            ssd.freeze(frozen, batch_norm=other)


# --- Precision, size, sharing -----------------------------------------------------------------


@pytest.mark.parametrize("halves", ["teacher", "student"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_each_network_keeps_its_precision(policy, halves):
    keras.config.set_dtype_policy(policy if halves == "teacher" else "float32")
    teacher = teacher_network()
    keras.config.set_dtype_policy(policy if halves == "student" else "float32")
    student = network()
    keras.config.set_dtype_policy("float32")
    expected = teacher(IMAGES, training=False)["logits"]

    frozen = ssd.freeze(teacher, fold_batch_norm=False)
    model = distiller(KD, teacher=frozen, student=student, evaluate_views=True)
    got = evaluate(model)["soft_labels"]
    logits = student(IMAGES, training=False)["logits"]
    by_hand = tf.reduce_mean(ssd.losses.kl_divergence(expected, logits, 2.0))
    assert got == pytest.approx(float(by_hand), rel=1e-5)
    np.testing.assert_array_equal(model.teacher(IMAGES)["logits"], expected)
    assert np.isfinite([*fit(model).values()]).all()


def large_teacher():
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(9, 3)(inputs / 255))
    return keras.Model(inputs, layers.Dense(3)(x))


def as_model():
    """Preprocessing that has weights."""
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layers.Conv2DTranspose(3, 2, strides=2)(inputs))


@pytest.mark.parametrize("preprocessing", [layers.Resizing(16, 16), as_model()])
def test_teacher_of_another_size(preprocessing):
    teacher = large_teacher()
    frozen = ssd.freeze(teacher, preprocessing=preprocessing)
    rows = tf.constant(IMAGES, tf.float32)
    expected = teacher(preprocessing(rows)).numpy()
    for weight in preprocessing.weights:
        weight.assign(weight + 1)
    np.testing.assert_array_equal(frozen(rows)["logits"], expected)
    model = ssd.Distiller(
        teacher=teacher, student=network(), **KD, teacher_preprocessing=preprocessing
    )
    model.compile(optimizer=sgd(), run_eagerly=True)
    assert step(model)["soft_labels"] > 0


def test_teacher_that_shares_layers_with_the_student():
    student = network()
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    shared = keras.Model(student.input, student.get_layer("head").input)
    teacher = keras.Model(inputs, layers.Dense(3)(layers.Dense(30)(shared(inputs))))
    expected = teacher(IMAGES, training=False).numpy()
    model = distiller(KD, student=student, teacher=ssd.freeze(teacher, fold_batch_norm=False))
    before = trained(model)
    fit(model)
    np.testing.assert_array_equal(model.teacher(IMAGES)["logits"], expected)
    assert (teacher(IMAGES, training=False).numpy() != expected).any()
    moved = [(one != other).any() for one, other in zip(trained(model), before, strict=True)]
    assert sum(moved) == 5  # all but the head that nobody reads


# --- Where a teacher is not -------------------------------------------------------------------


def test_teacher_is_in_no_file_and_in_no_list(tmp_path):
    large, small = (network(width, seed=1) for width in (4000, 6))
    models = [distiller(KD, teacher=teacher) for teacher in (large, small)]
    sizes = []
    for model in models:
        step(model)
        model.save(tmp_path / "model.keras")
        model.save_weights(tmp_path / "model.weights.h5")
        tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
        sizes.append([f.stat().st_size for f in sorted(tmp_path.iterdir())])
        student = model.student
        assert len(model.weights) == len(student.weights)
        assert len(model.variables) == len(student.variables)
        assert model.count_params() == student.count_params()
        lines = []
        model.summary(print_fn=lines.append)
        assert "Trainable params: 151 " in "\n".join(lines)
    assert len(sizes[0]) == 4
    assert np.allclose(*sizes, atol=64)  # names and time stamps; the teacher has 300 kB


# --- Stored outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize("views", [ssd.views.Plain(), ssd.views.Rotations(None, flip=False)])
def test_stored_outputs_replace_the_teacher(views):
    counter = Counter()
    teacher = teacher_network(first=counter)
    preset = {**(KD if views.num_views == 1 else SSKD), "views": views}
    running, stored = distiller(preset, teacher=teacher), distiller(preset, teacher=teacher)
    stored.set_teacher(None)
    rows = views(tf.constant(IMAGES))
    shape = [12] if views.num_views == 1 else [12, views.num_views]
    table = {k: np.reshape(v, [*shape, -1]) for k, v in running.teacher(rows).items()}
    expected = fit(running)
    calls = counter.calls.numpy()
    assert fit(stored, {"image": IMAGES, "teacher": table}) == expected
    assert_equal(trained(stored), trained(running))
    stored.set_teacher(teacher)
    fit(stored, {"image": IMAGES, "teacher": table})
    assert counter.calls.numpy() == calls


def test_stored_tensor_is_the_logits():
    model = distiller({"objectives": [SoftLabels()]})
    table = model.teacher(IMAGES)["logits"].numpy()
    assert step(model, {"image": IMAGES, "teacher": table})["soft_labels"] > 0


def test_another_teacher_is_traced_anew():
    options = {"graph": True, "optimizer": sgd(0.0), "evaluate_views": True}
    model = distiller(KD, student=network(batch_norm=False), **options)
    before = fit(model)["soft_labels"], evaluate(model)["soft_labels"]
    model.set_teacher(network(seed=5))
    after = fit(model)["soft_labels"], evaluate(model)["soft_labels"]
    logits = model.student(IMAGES)["logits"]
    expected = ssd.losses.kl_divergence(network(seed=5)(IMAGES)["logits"], logits, 2.0)
    assert after == (pytest.approx([np.mean(expected)]), pytest.approx(np.mean(expected)))
    assert after[0] != before[0]
    assert after[1] != before[1]


class Flat(keras.Model):
    """Takes the size alone that it was built on."""

    def __init__(self):
        super().__init__(name="flat")
        self.dense = layers.Dense(3)

    def call(self, rows):
        return self.dense(layers.Flatten()(rows))


@pytest.mark.parametrize("traced", [False, True])
def test_a_subclassed_model_that_fails_says_why_in_one_sentence(traced):
    model = Flat()
    model(IMAGES)
    teacher = ssd.freeze(model, preprocessing=keras.layers.Resizing(5, 5))
    run = tf.function(teacher, autograph=False) if traced else teacher
    words = r"^The teacher 'flat' fails on images \(5, 5, 3\) \((?!Exception).+\): give it those"
    with pytest.raises(ValueError, match=words) as raised:
        run(tf.constant(IMAGES))
    assert "\n" not in str(raised.value)
