"""`models.fuse_batch_norm`: same function, same variables, another kernel; nothing else moves."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssd as ssd
from keras_ssd.layers import BatchNormalization, FrozenBackbone
from keras_ssd.models import fuse_batch_norm

IMAGES = np.random.default_rng(0).uniform(size=(6, 8, 8, 3)).astype("float32")
LABELS = np.eye(5, dtype="float32")[np.arange(6) % 5]


def with_statistics(model):
    """`model` with made-up scales, centres and statistics of all batch normalisation in it."""
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name in ("gamma", "beta", "moving_mean", "moving_variance"):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return model


def backbone(name="backbone", norm=layers.BatchNormalization):
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(images)
    x = layers.ReLU(name="relu")(norm(momentum=0.8, epsilon=1e-4, name="norm")(x))
    return keras.Model(images, layers.GlobalAveragePooling2D(name="pool")(x), name=name)


def functional():
    images = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(center=False, trainable=False)(images)
    x = layers.Conv2D(4, 3, strides=2, use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9, name="norm")(x)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
    return keras.Model(images, layers.Dense(5, name="logits")(x), name="net")


def sequential():
    head = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(name="bn")], name="head")
    parts = [layers.Rescaling(2.0), backbone(), head, layers.Dense(5)]
    return keras.Sequential([keras.Input((8, 8, 3)), *parts], name="net")


def twice_nested():
    images = keras.Input((8, 8, 3))
    middle = keras.Model(images, backbone()(inputs=images, training=False), name="middle")
    outer = keras.Input((8, 8, 3))
    return keras.Model(outer, layers.Dense(5)(middle(outer)), name="net")


def shared():
    """A layer called three times and a nested model called twice."""
    images = keras.Input((8, 8, 3))
    norm, nested = layers.BatchNormalization(name="norm"), backbone()
    paths = [layers.Conv2D(3, size, padding="same", name=f"c{size}")(images) for size in (5, 1, 3)]
    x = layers.Add()([norm(path) for path in paths])
    x = layers.Concatenate()([nested(x), nested(images)])
    return keras.Model(images, layers.Dense(5)(x), name="net")


def several_tensors():
    tensors = {"a": keras.Input((8, 8, 3), name="a"), "b": keras.Input((8, 8, 3), name="b")}
    inner = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    sums = [layers.BatchNormalization()(inner[0] + inner[1]), inner[0]]
    x, y = keras.Model(inner, sums, name="inner")([tensors["a"], keras.ops.relu(tensors["b"])])
    first = layers.GlobalAveragePooling2D(name="first")(x)
    return keras.Model(tensors, {"x": [first, layers.BatchNormalization()(y)]}, name="net")


def fallbacks():
    """What runs through Keras' own code: with a mask, renormalised, of rank 2, on another axis."""
    tokens = keras.Input((8,), dtype="int32")
    x = layers.BatchNormalization()(layers.Embedding(3, 4, mask_zero=True)(tokens))
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.BatchNormalization(renorm=True, renorm_clipping={"rmax": 2.0})(x)
    x = layers.BatchNormalization(axis=1)(layers.Reshape((2, 2, 1))(x))
    return keras.Model(tokens, x, name="net")


CASES = [functional, sequential, twice_nested, shared, several_tensors, fallbacks]
CASES = {case.__name__: case for case in CASES}


def inputs_of(model):
    if len(model.inputs) == 2:
        return {"a": IMAGES, "b": IMAGES[::-1]}
    return np.arange(48).reshape(6, 8) % 3 if "int" in model.inputs[0].dtype else IMAGES


def outputs_of(model):
    return [np.asarray(output) for output in keras.tree.flatten(model(inputs_of(model)))]


def assert_close(got, expected, tolerance=1e-5):
    """Largest difference over largest value, all arrays as one."""
    got, expected = (np.concatenate([np.ravel(x) for x in arrays]) for arrays in (got, expected))
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


def assert_same(got, expected):
    """The same objects in the same order."""
    assert [id(one) for one in got] == [id(other) for other in expected]


def all_layers(model):
    """The layers of a model, nested ones opened, each as often as it is found."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)


def norms(model):
    return [x for x in all_layers(model) if isinstance(x, layers.BatchNormalization)]


def flags(model):
    return [x.trainable for x in [model, *all_layers(model), *model.weights]]


def fused_operations(model):
    inputs = keras.tree.map_structure(tf.convert_to_tensor, inputs_of(model))
    graph = tf.function(lambda x: model(x, training=True)).get_concrete_function(inputs).graph
    definition = graph.as_graph_def()
    bodies = [definition.node, *(function.node_def for function in definition.library.function)]
    return [node.op for body in bodies for node in body].count("FusedBatchNormV3")


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.fixture
def model(case):
    return with_statistics(CASES[case]())


def test_outputs_are_the_same_and_variables_the_same_objects(model):
    fused = fuse_batch_norm(model)
    assert_close(outputs_of(fused), outputs_of(model))
    for kind in ("weights", "variables", "trainable_variables", "non_trainable_variables"):
        assert_same(getattr(fused, kind), getattr(model, kind))
    assert fused.count_params() == model.count_params()
    for new, old in zip(norms(fused), norms(model), strict=True):
        assert_same(new.weights, old.weights)
        assert_same(new.trainable_weights, old.trainable_weights)


def test_every_batch_normalisation_and_nothing_else_is_replaced(model):
    fused = fuse_batch_norm(model)
    assert norms(fused)
    for new, old in zip(all_layers(fused), all_layers(model), strict=True):
        assert new.name == old.name
        if type(old) is layers.BatchNormalization:
            assert type(new) is BatchNormalization
            assert new.get_config() == old.get_config()
            assert new.get_build_config() == old.get_build_config()
            assert "add_weight" not in vars(new)
        else:
            assert new is old or (isinstance(old, keras.Model) and norms(old))


def test_structure_and_names_are_the_same(model):
    fused = fuse_batch_norm(model)
    assert fused.name == "net"
    assert type(fused) is type(model)
    assert_same(fused.inputs, model.inputs)
    if not isinstance(model, keras.Sequential):
        keras.tree.assert_same_structure(fused.input, model.input)
        keras.tree.assert_same_structure(fused.output, model.output)
        assert fused.output_names == model.output_names


def test_the_model_is_left_alone(model):
    model.compile("sgd", loss=lambda *pair: pair[1])  # known to no registry
    norms(model)[0].trainable = False
    config, kept = model.get_config(), list(all_layers(model))
    outputs, values = outputs_of(model), [v.numpy() for v in model.variables]
    before = flags(model)
    fused = fuse_batch_norm(model)
    assert model.compiled
    assert not fused.compiled
    assert model.get_config() == config
    assert_same(all_layers(model), kept)
    assert flags(model) == flags(fused) == before
    assert_close(outputs_of(model), outputs, 0)
    assert_close([v.numpy() for v in model.variables], values, 0)


def step(model):
    """The loss of one training step, and the gradients, which also move the variables."""
    variables = model.trainable_variables
    with tf.GradientTape() as tape:
        outputs = keras.tree.flatten(model(inputs_of(model), training=True))
        loss = tf.add_n([tf.reduce_mean(tf.cos(x)) for x in outputs])
    gradients = [tf.convert_to_tensor(x) for x in tape.gradient(loss, variables)]
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(0.1 * gradient)
    return loss, gradients


@pytest.mark.parametrize(
    "case", ["functional", "sequential", "shared", "several_tensors", "fallbacks"]
)
def test_two_training_steps_are_the_same(case):
    model, twin = (with_statistics(CASES[case]()) for _ in range(2))
    for variable, value in zip(twin.variables, model.variables, strict=True):
        variable.assign(value)
    fused = fuse_batch_norm(twin)
    for _ in range(2):
        (expected_loss, expected), (loss, gradients) = step(model), step(fused)
        assert_close([loss], [expected_loss])
        assert_close(gradients, expected)
    for new, old in zip(norms(fused), norms(model), strict=True):
        assert_close([new.moving_mean], [old.moving_mean])


def test_the_moving_variance_takes_up_the_unbiased_one():
    images = keras.Input((8, 8, 3))
    norm = layers.BatchNormalization(momentum=0.75)
    fuse_batch_norm(keras.Model(images, norm(images)))(IMAGES, training=True)
    expected = 0.75 + 0.25 * IMAGES.reshape(-1, 3).astype("float64").var(0, ddof=1)
    np.testing.assert_allclose(norm.moving_variance, expected, rtol=1e-6)


def test_training_one_trains_the_other():
    model = with_statistics(sequential())
    fused = fuse_batch_norm(model)
    before = [v.numpy() for v in model.weights]
    fused.compile("sgd", loss="mse")
    fused.train_on_batch(IMAGES, LABELS)
    for weight, value in zip(model.weights, before, strict=True):
        assert np.any(weight.numpy() != value), weight.path
    assert_close(outputs_of(model), outputs_of(fused))


@pytest.mark.parametrize(("case", "calls"), [("functional", 1), ("sequential", 1), ("shared", 5)])
def test_the_fused_kernel_runs(case, calls):
    model = CASES[case]()
    assert fused_operations(model) == 0
    assert fused_operations(fuse_batch_norm(model)) == calls


def test_a_model_nested_in_two_models_is_rewritten_once():
    images, nested = keras.Input((8, 8, 3)), backbone()
    around = keras.Model(images, nested(images), name="around")
    fused = fuse_batch_norm(keras.Model(images, around(images) + nested(images)))
    assert fused.get_layer("around").get_layer("backbone") is fused.get_layer("backbone")
    assert len({id(norm) for norm in norms(fused)}) == 1


FROZEN = {  # what is set in `sequential()`, in this order: where, trainable
    "a layer": [("backbone/norm", False)],
    "a variable": [("backbone/norm/beta", False)],
    "a nested model": [("backbone", False)],
    "all but a layer": [("", False), ("backbone/norm", True)],
    "a nested model, but for a layer": [("head", False), ("head/bn", True)],
}


@pytest.fixture(params=FROZEN)
def partly_frozen(request):
    model = with_statistics(sequential())
    for path, trainable in FROZEN[request.param]:
        found = model
        for name in filter(None, path.split("/")):
            found = found.get_layer(name) if isinstance(found, keras.Model) else found.beta
        found.trainable = trainable
    return model


def test_what_is_frozen_stays_frozen(partly_frozen):
    before = flags(partly_frozen)
    fused = fuse_batch_norm(partly_frozen)
    assert flags(fused) == flags(partly_frozen) == before
    for kind in ("weights", "trainable_variables", "non_trainable_variables"):
        assert_same(getattr(fused, kind), getattr(partly_frozen, kind))
    norm = fused.get_layer("backbone").get_layer("norm")
    mean = norm.moving_mean.numpy()
    norm(IMAGES @ np.ones((3, 4)), training=True)
    assert np.any(norm.moving_mean.numpy() != mean) == norm.trainable


def test_what_is_frozen_can_be_trained_again(partly_frozen):
    fused = fuse_batch_norm(partly_frozen)
    fused.trainable = False  # Keras passes on what changes
    fused.trainable = True
    names = [variable.name for variable in fused.trainable_variables]
    assert names == ["kernel", "gamma", "beta", "gamma", "beta", "kernel", "bias"]


class Norm(layers.BatchNormalization):
    """A user's own."""


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.norm = layers.BatchNormalization()

    def call(self, images):
        return self.norm(images)


class OwnCall(keras.Model):
    """Has a graph and computes something else."""

    def call(self, images):
        return 2 * super().call(images)


class OwnConstructor(keras.Model):
    def __init__(self, width):
        images = keras.Input((8, 8, 3))
        super().__init__(images, layers.BatchNormalization()(layers.Dense(width)(images)))


def own_call():
    images = keras.Input((8, 8, 3))
    return OwnCall(images, layers.BatchNormalization()(images), name="net")


KEPT = {
    "a user's subclass": Norm,
    "the fused layer": BatchNormalization,
    "a frozen backbone": lambda: FrozenBackbone(backbone()),
    "a subclassed model": Subclassed,
    "a model with a call of its own": own_call,
    "a wrapper": lambda: layers.TimeDistributed(layers.BatchNormalization()),
    "a model without batch normalisation": lambda: keras.Sequential([layers.Dense(2)]),
    "a model on the fused layer": lambda: backbone(norm=BatchNormalization),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_left_as_it_is(case):
    images = keras.Input((8, 8, 3))
    kept = KEPT[case]()
    model = keras.Model(images, kept(layers.BatchNormalization(name="first")(images)))
    fused = fuse_batch_norm(model)
    assert fused.layers[2] is kept
    assert type(fused.get_layer("first")) is BatchNormalization
    assert_close(outputs_of(fused), outputs_of(model))


def test_a_sequential_model_of_several_tensors_has_no_graph():
    """Keras builds its layers only when it runs."""
    images = keras.Input((8, 8, 3))
    both = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    join = keras.Sequential([keras.Model(both, both[0] + both[1]), layers.BatchNormalization()])
    model = keras.Model(images, join([layers.BatchNormalization()(images), images]))
    fused = fuse_batch_norm(model)
    assert fused.layers[2] is join
    assert_close(outputs_of(fused), outputs_of(model))


def test_a_nested_model_of_another_constructor_becomes_a_plain_one():
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, OwnConstructor(width=4)(images))
    fused = fuse_batch_norm(model)
    assert type(fused.layers[1]) is type(model)
    assert fused_operations(fused) == 1
    assert_close(outputs_of(fused), outputs_of(model))


def test_models_that_are_refused():
    with pytest.raises(ValueError, match=r"Subclassed 'net' is .*: give it `keras_ssd"):
        fuse_batch_norm(Subclassed())
    with pytest.raises(ValueError, match="OwnCall 'net' is a subclassed model"):
        fuse_batch_norm(own_call())
    with pytest.raises(ValueError, match="not built: begin it with keras"):
        fuse_batch_norm(keras.Sequential([layers.BatchNormalization()]))
    with pytest.raises(TypeError, match="Expected a Keras model, got BatchNormalization"):
        fuse_batch_norm(BatchNormalization())


def test_options_are_those_of_the_layer():
    def ones(shape, dtype=None):  # known to no registry
        return keras.ops.ones(shape, dtype)

    images = keras.Input((8, 8, 3))
    options = {
        "gamma_regularizer": keras.regularizers.L2(0.1),
        "beta_constraint": keras.constraints.MaxNorm(2.0),
        "activity_regularizer": keras.regularizers.L1(0.1),
        "moving_variance_initializer": ones,
        "synchronized": True,
        "dtype": "mixed_float16",
    }
    model = keras.Model(images, layers.BatchNormalization(name="norm", **options)(images))
    fused = fuse_batch_norm(model)
    norm = fused.get_layer("norm")
    assert norm.get_config() == model.get_layer("norm").get_config()
    assert norm.moving_variance_initializer is ones
    assert norm.synchronized
    for one in (model, fused):
        one(IMAGES)
    assert_close(fused.losses, model.losses)
    assert len(fused.losses) == 2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_dtype_policies(policy):
    keras.config.set_dtype_policy(policy)
    model = with_statistics(sequential())
    keras.config.set_dtype_policy("float32")
    fused = fuse_batch_norm(model)
    for new, old in zip([fused, *all_layers(fused)], [model, *all_layers(model)], strict=True):
        assert new.dtype_policy == old.dtype_policy
    assert fused_operations(fused) == (policy != "float64")
    rounding = {"mixed_bfloat16": 2**-7, "mixed_float16": 2**-10, "float64": 0}[policy]
    assert outputs_of(fused)[0].dtype == outputs_of(model)[0].dtype
    assert_close(outputs_of(fused), outputs_of(model), rounding)


def test_the_strategy_is_kept(two_replicas):
    with two_replicas.scope():
        model = functional()
    assert fuse_batch_norm(model).distribute_strategy is two_replicas
    assert fuse_batch_norm(functional()).distribute_strategy is not two_replicas


def test_optional_inputs_stay_optional():
    images, more = keras.Input((8, 8, 3)), keras.Input((8, 8, 3), optional=True)
    fused = fuse_batch_norm(keras.Model([images, more], layers.BatchNormalization()(images)))
    np.testing.assert_allclose(fused([IMAGES, None]), IMAGES / np.sqrt(1.001), rtol=1e-5)


def test_no_random_number_is_drawn():
    def build():
        keras.utils.set_random_seed(3)
        images = keras.Input((8, 8, 3))
        scale = keras.initializers.RandomNormal(1.0)
        x = layers.BatchNormalization(gamma_initializer=scale)(images)
        x = backbone()(layers.Dropout(0.5)(layers.Dense(3)(x)))
        return keras.Model(images, x)

    def next_numbers():
        kernel = layers.Dense(4, kernel_initializer="normal")
        kernel.build((None, 4))
        draws = [random.random(), np.random.random(), keras.random.normal((3,)), kernel.kernel]
        return [np.asarray(draw) for draw in draws]

    build()
    expected = next_numbers()
    model = build()
    fuse_batch_norm(model)
    for number, other in zip(next_numbers(), expected, strict=True):
        np.testing.assert_array_equal(number, other)


def test_saved_and_loaded_or_cloned(model, tmp_path):
    fused = fuse_batch_norm(model)
    fused.save(tmp_path / "model.keras")
    loaded, clone = (
        keras.models.load_model(tmp_path / "model.keras"),
        keras.models.clone_model(fused),
    )
    clone.set_weights(fused.get_weights())
    for copy in (loaded, clone):
        assert {type(norm) for norm in norms(copy)} == {BatchNormalization}
        assert not {id(v) for v in copy.weights} & {id(v) for v in fused.weights}
        assert_close(outputs_of(copy), outputs_of(fused), 0)


@pytest.mark.parametrize("written_by", ["the model", "the fused model"])
def test_weights_files_serve_both(model, case, written_by, tmp_path):
    norms(model)[0].trainable = False
    writer, reader = model, fuse_batch_norm(CASES[case]())
    if written_by == "the fused model":
        writer, reader = fuse_batch_norm(model), CASES[case]()
    writer.save_weights(tmp_path / "model.weights.h5")
    reader.load_weights(tmp_path / "model.weights.h5")
    assert_close(outputs_of(reader), outputs_of(writer))


@pytest.mark.parametrize("case", ["functional", "sequential", "twice_nested"])
def test_heads_and_taps(case):
    model = with_statistics(CASES[case]())
    fused = fuse_batch_norm(model)
    path = {"functional": "", "sequential": "backbone/", "twice_nested": "middle/backbone/"}[case]
    taps = {"stage": f"{path}norm"}
    expected, got = (ssd.named_outputs(one, taps)(IMAGES) for one in (model, fused))
    assert_close([got["logits"], got["stage"]], [expected["logits"], expected["stage"]])
    headed = ssd.with_projection(fused)
    assert_close([headed(IMAGES)["logits"]], outputs_of(model))
    assert_close([ssd.strip_heads(headed)(IMAGES)], outputs_of(model))


def test_a_student_is_distilled_and_exported(tmp_path):
    model = with_statistics(functional())
    before = [v.numpy() for v in model.trainable_variables]
    objectives = [ssd.objectives.HardLabels(), ssd.objectives.SoftLabels(2.0)]
    distiller = ssd.Distiller(
        teacher=ssd.models.build("resnet8", num_classes=5, input_shape=(8, 8, 3)),
        student=fuse_batch_norm(model),
        objectives=objectives,
    )
    distiller.compile(ssd.optimizers.SGD(0.1))
    distiller.fit(IMAGES, LABELS, batch_size=6, verbose=0)
    for variable, value in zip(model.trainable_variables, before, strict=True):
        assert np.any(variable.numpy() != value)
    path = ssd.export_student(distiller, tmp_path / "student")
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    assert_close([serve(image=tf.constant(IMAGES))["logits"]], outputs_of(model))


APPLICATIONS = {
    "MobileNetV2": {"alpha": 0.35, "input_shape": (32, 32, 3)},
    "ResNet50": {"input_shape": (32, 32, 3)},
    "EfficientNetB0": {"input_shape": (32, 32, 3)},
}


@pytest.mark.parametrize(
    "name",
    ["MobileNetV2", *(pytest.param(x, marks=pytest.mark.slow) for x in [*APPLICATIONS][1:])],
)
def test_networks_of_keras_applications(name):
    build = getattr(keras.applications, name)
    options = {"weights": None, "classifier_activation": None, "classes": 10}
    model = with_statistics(build(**options, **APPLICATIONS[name]))
    fused = fuse_batch_norm(model)
    assert {type(norm) for norm in norms(fused)} == {BatchNormalization}
    assert_same(fused.weights, model.weights)
    images = np.random.default_rng(2).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    expected = model(images)
    assert np.ptp(expected, axis=0).max() > 0
    assert_close([fused(images)], [expected])
