import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from sklearn.linear_model import LogisticRegression

import keras_ssd as ssd
from keras_ssd.evaluation import linear_probe
from keras_ssd.evaluation.features import Features

SHAPE = (4, 4, 3)


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE)).astype("uint8")


def labels(count, classes=3, seed=0):
    """Every class is among the first ones."""
    drawn = np.random.default_rng(seed).integers(0, classes, count)
    return np.r_[np.arange(classes), drawn[classes:]].astype("int32")


TRAIN = images(21, 0), labels(21, seed=0)
TEST = images(10, 1), labels(10, seed=1)


def network(width=5, name="net", pooled="embedding", classes=7):
    """A classifier with dropout, and batch normalisation that has seen images."""
    image = keras.Input(SHAPE, dtype="uint8")
    x = layers.Conv2D(width, 3, name="conv")(layers.Rescaling(1 / 255)(image))
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D(name=pooled)(x))
    model = keras.Model(image, layers.Dense(classes, name="logits")(x), name=name)
    norm = model.get_layer("norm")
    norm.moving_mean.assign(np.linspace(-0.5, 0.5, width))
    norm.moving_variance.assign(np.linspace(0.1, 0.5, width))
    return model


def embedding_of(model, images, layer="embedding"):
    """What a layer gives in inference mode, from a graph of the layers themselves."""
    tapped = keras.Model(model.input, model.get_layer(layer).output)
    return tapped(images, training=False).numpy()


class Subclassed(keras.Model):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, images, training=False):
        x = self.inner(images, training=training)
        return {"logits": x[:, :2], "embedding": x, "twice": 2 * x}


def subclassed():
    model = Subclassed(network())
    model(TRAIN[0])
    return model


class Counter(layers.Layer):
    """Counts the images that pass, in graphs, too."""

    def build(self, _):
        self.count = tf.Variable(0)

    def call(self, images):
        self.count.assign_add(tf.shape(images)[0])
        return tf.identity(images)


def trained_by_numpy(features, labels, kernel, epochs, batch_size, rates, decay, seed):
    """SGD with Nesterov momentum 0.9 on a softmax regression, in float64."""
    kernel, bias = kernel.astype("float64"), np.zeros(kernel.shape[1])
    velocity = [np.zeros_like(kernel), np.zeros_like(bias)]
    losses, accuracies = [], []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(features))
        loss, right = 0.0, 0
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            logits = features[rows].astype("float64") @ kernel + bias
            exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares = exponentials / exponentials.sum(axis=1, keepdims=True)
            loss -= np.log(shares[np.arange(len(rows)), labels[rows]]).sum()
            right += np.sum(logits.argmax(axis=1) == labels[rows])
            error = (shares - np.eye(kernel.shape[1])[labels[rows]]) / len(rows)
            gradients = [features[rows].T @ error + decay * kernel, error.sum(0) + decay * bias]
            for weight, slot, gradient in zip((kernel, bias), velocity, gradients, strict=True):
                slot[:] = 0.9 * slot + gradient
                weight -= rates[epoch] * (gradient + 0.9 * slot)
        losses.append(loss / len(order))
        accuracies.append(right / len(order))
    return kernel, bias, losses, accuracies


def test_the_training_is_that_of_the_papers_sgd():
    model = network(width=4)
    options = {"epochs": 4, "batch_size": 8, "seed": 3}  # 21 images: the last batch holds 5
    first = linear_probe(model, TRAIN, TEST, **options, learning_rate=0.0)
    found = linear_probe(
        model, TRAIN, TEST, **options, learning_rate=0.2, drop_epochs=[2, 3], weight_decay=0.1
    )
    assert not first.bias.any()
    kernel, bias, losses, accuracies = trained_by_numpy(
        embedding_of(model, TRAIN[0]), TRAIN[1], first.kernel, 4, 8, [0.2, 0.2, 0.02, 0.002], 0.1, 3
    )
    np.testing.assert_allclose(found.kernel, kernel, atol=1e-5)
    np.testing.assert_allclose(found.bias, bias, atol=1e-5)
    np.testing.assert_allclose(found.history["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(found.history["accuracy"], accuracies, rtol=1e-6)
    predicted = np.argmax(embedding_of(model, TEST[0]) @ kernel + bias, axis=1)
    assert found.accuracy == found.history["test_accuracy"][-1] == np.mean(predicted == TEST[1])


def test_defaults_are_those_of_the_authors():
    wide = network(width=300)
    default = linear_probe(wide, TRAIN, TEST)
    assert len(default.history["loss"]) == 100
    spelled = linear_probe(
        wide,
        TRAIN,
        TEST,
        epochs=100,
        batch_size=64,
        learning_rate=0.1,
        drop_epochs=(30, 60, 90),
        momentum=0.9,
        weight_decay=0,
        seed=0,
        num_classes=3,
    )
    np.testing.assert_array_equal(default.kernel, spelled.kernel)
    first = linear_probe(wide, TRAIN, TEST, epochs=1, learning_rate=0.0).kernel
    # normal, deviation 0.01: 900 values, relative standard error of the deviation 0.024
    assert np.std(first) == pytest.approx(0.01, rel=0.1)
    assert np.mean(np.abs(first) < 0.01) == pytest.approx(0.683, abs=0.06)


def test_without_momentum():
    found = linear_probe(network(), TRAIN, TEST, epochs=1, momentum=0)
    other = linear_probe(network(), TRAIN, TEST, epochs=1)
    assert not np.array_equal(found.kernel, other.kernel)


def test_accuracy_is_that_of_a_logistic_regression():
    generator = np.random.default_rng(0)
    centres = generator.integers(60, 200, (3, 1, 1, 3))
    train, test = (
        (np.clip(centres[y] + generator.normal(0, 20, (len(y), *SHAPE)), 0, 255).astype("uint8"), y)
        for y in (labels(90, seed=2), labels(60, seed=3))
    )
    image = keras.Input(SHAPE)
    mean = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 64, offset=-2)(image))
    model = keras.Model(image, layers.Dense(3)(mean))
    features = [x.mean(axis=(1, 2)) / 64 - 2 for x in (train[0], test[0])]
    regression = LogisticRegression(C=1e6, max_iter=1000).fit(features[0], train[1])
    found = linear_probe(model, train, test)
    assert found.accuracy == regression.score(features[1], test[1]) == 1.0
    assert found.history["accuracy"][-1] == regression.score(features[0], train[1]) == 1.0


def test_the_network_stays_bit_for_bit_as_it_is():
    model = network()
    model.get_layer("conv").trainable = False
    model.compile("sgd", "mse")
    before = [weight.copy() for weight in model.get_weights()]
    flags = [layer.trainable for layer in model.layers]
    found = linear_probe(model, TRAIN, TEST, epochs=3)
    for weight, earlier in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, earlier)
    assert [layer.trainable for layer in model.layers] == flags
    assert model.optimizer.iterations == 0
    moved = linear_probe(model, TRAIN, TEST, epochs=3, learning_rate=0.0)
    assert not np.array_equal(found.kernel, moved.kernel)
    assert np.any(found.bias)


@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_features_are_computed_once_and_of_labelled_images_alone(form):
    inner, counter = network(), Counter()
    image = keras.Input(SHAPE)
    model = keras.Model(image, inner(counter(image)))
    some = np.where(np.arange(21) % 5 == 4, -1, TRAIN[1])  # 4 without label
    train, test = (TRAIN[0], some), TEST
    if form == "dataset":
        train, test = (tf.data.Dataset.from_tensor_slices(d).batch(4) for d in (train, test))
    counter.count.assign(0)
    found = linear_probe(model, train, test, epochs=6, batch_size=4)
    assert int(counter.count) == 17 + 10
    assert (found.train_images, found.test_images) == (17, 10)
    labelled = linear_probe(
        inner, (TRAIN[0][some >= 0], some[some >= 0]), TEST, epochs=6, batch_size=4
    )
    np.testing.assert_allclose(found.kernel, labelled.kernel, atol=1e-6)


def test_last_and_best_epoch():
    found = linear_probe(
        network(), TRAIN, TEST, epochs=12, batch_size=4, learning_rate=2.0, drop_epochs=[], seed=1
    )
    shares = found.history["test_accuracy"]
    assert len(shares) == 12
    assert found.accuracy == shares[-1] < max(shares) == found.best_accuracy
    assert shares.index(max(shares)) + 1 == found.best_epoch
    assert (found.num_classes, found.feature_width) == (3, 5)
    assert found.kernel.shape == (5, 3)
    assert repr(found).startswith(f"LinearProbe(accuracy={shares[-1]}, best_accuracy={max(shares)}")
    assert "history" not in repr(found)


def test_the_seed_decides_alone():
    def probe(seed, **options):
        return linear_probe(model, TRAIN, TEST, epochs=2, batch_size=4, seed=seed, **options)

    model = network()
    keras.utils.set_random_seed(1)
    first = probe(5)
    state = np.random.get_state()[1].copy()
    keras.utils.set_random_seed(2)
    second = probe(np.int64(5))
    np.testing.assert_array_equal(first.kernel, second.kernel)
    assert first.history == second.history
    assert not np.array_equal(probe(6).kernel, first.kernel)
    assert not np.array_equal(probe(5, learning_rate=0).kernel, probe(6, learning_rate=0).kernel)
    keras.utils.set_random_seed(1)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


NETWORKS = {
    "plain": lambda model: model,
    "projection": ssd.with_projection,
    "frozen backbone": lambda model: ssd.with_projection(model, backbone="frozen"),
    "named output": lambda model: ssd.named_outputs(model, {"embedding": "embedding"}),
    "no logits": lambda model: keras.Model(
        model.input, {"embedding": model.get_layer("embedding").output}
    ),
    "nested": lambda model: keras.Sequential([keras.Input(SHAPE, dtype="uint8"), model]),
    "frozen teacher": ssd.freeze,
    "halved teacher": lambda model: ssd.freeze(model, dtype="bfloat16"),
    "frozen frozen backbone": lambda model: ssd.freeze(
        ssd.with_projection(model, backbone="frozen")
    ),
    "distiller": lambda model: ssd.Distiller(
        student=ssd.with_projection(model), **ssd.presets.labels_only()
    ),
}


@pytest.mark.filterwarnings("ignore:.*multiplies.*")  # a CPU without units for bfloat16
@pytest.mark.parametrize("kind", NETWORKS)
def test_whose_features(kind):
    model = network()
    features, numbers = Features(NETWORKS[kind](model)).of(TRAIN, "train")
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, embedding_of(model, TRAIN[0]), atol=1e-6)
    np.testing.assert_array_equal(numbers, TRAIN[1])


@pytest.mark.parametrize("backbone", ["trainable", "frozen"])
def test_auxiliary_classifiers_are_left_out(backbone):
    model = ssd.models.build("resnet8", num_classes=3, input_shape=SHAPE)
    heads = ssd.with_projection(ssd.with_auxiliary_classifiers(model, backbone=backbone))
    features, _ = Features(heads).of(TRAIN, "train")
    np.testing.assert_allclose(features, embedding_of(model, TRAIN[0]), rtol=1e-4, atol=1e-6)


def test_copies_in_a_frozen_backbone_are_what_is_probed():
    model = network()
    wanted = embedding_of(model, TRAIN[0])
    projected = ssd.with_projection(model, backbone="frozen")
    model.set_weights([2 * weight for weight in model.get_weights()])
    np.testing.assert_allclose(Features(projected).of(TRAIN, "train")[0], wanted, atol=1e-6)


def test_an_embedding_by_name_or_by_place():
    model = network(pooled="pool")
    for features in (Features(model), Features(model, "pool")):  # what goes into the last Dense
        np.testing.assert_allclose(
            features.of(TRAIN, "train")[0], embedding_of(model, TRAIN[0], "pool"), atol=1e-6
        )
    outer = keras.Sequential([keras.Input(SHAPE, dtype="uint8"), model])
    found = linear_probe(outer, TRAIN, TEST, embedding="net/logits", epochs=1)
    assert found.feature_width == 7


def test_subclassed_networks_return_their_features():
    model = subclassed()
    wanted = model.inner(TRAIN[0], training=False)
    np.testing.assert_allclose(Features(model).of(TRAIN, "train")[0], wanted, atol=1e-6)
    named = Features(model, "twice").of(TRAIN, "train")[0]
    np.testing.assert_allclose(named, 2 * wanted, atol=1e-6)
    found = linear_probe(model, TRAIN, TEST, epochs=1)
    logits = model.inner(TEST[0], training=False) @ found.kernel + found.bias
    np.testing.assert_allclose(found.model(TEST[0]), logits, atol=1e-5)


def test_preprocessing_of_a_teacher():
    model = network()
    teacher = ssd.freeze(model, preprocessing=layers.Resizing(4, 4))
    big = np.repeat(np.repeat(TRAIN[0], 2, axis=1), 2, axis=2)
    features, _ = Features(teacher).of((big, TRAIN[1]), "train")
    np.testing.assert_allclose(features, embedding_of(model, teacher.preprocessing(big)), atol=1e-6)


def test_a_teacher_whose_model_has_changed_is_refused():
    model = network()
    teacher = ssd.freeze(model)
    model.get_layer("conv").kernel.assign(1.1 * model.get_layer("conv").kernel)
    with pytest.raises(ValueError, match="'net' has changed since the teacher was frozen"):
        linear_probe(teacher, TRAIN, TEST)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = network()
    found = linear_probe(model, TRAIN, TEST, epochs=2)
    features, _ = Features(model).of(TEST, "test")
    assert features.dtype == found.kernel.dtype == np.float32
    np.testing.assert_array_equal(features, embedding_of(model, TEST[0]).astype("float32"))
    logits = found.model(TEST[0])
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, features @ found.kernel + found.bias, atol=1e-6)


def test_the_model_is_a_copy_that_can_be_saved_and_exported(tmp_path):
    model = network()
    found = linear_probe(ssd.with_projection(model), TRAIN, TEST, epochs=2)
    wanted = embedding_of(model, TEST[0]) @ found.kernel + found.bias
    model.set_weights([2 * weight for weight in model.get_weights()])
    np.testing.assert_allclose(found.model(TEST[0]), wanted, atol=1e-5)
    assert found.model.name == "net"
    assert len(found.model.trainable_weights) == 2  # kernel and bias
    assert found.model.count_params() == sum(w.size for w in model.get_weights()[:6]) + 5 * 3 + 3
    found.model.save(tmp_path / "probe.keras")
    loaded = keras.models.load_model(tmp_path / "probe.keras")
    np.testing.assert_allclose(loaded(TEST[0]), wanted, atol=1e-5)
    path = ssd.export_student(found.model, tmp_path / "exported")
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    np.testing.assert_allclose(serve(image=tf.constant(TEST[0]))["logits"], wanted, atol=1e-5)


def one_hot(numbers, classes=3):
    return np.eye(classes)[numbers] * (numbers >= 0)[:, None]


SOME = np.where(np.arange(21) == 5, -1, TRAIN[1])  # one image without label
FORMS = {
    "floats": (TRAIN[0], SOME.astype("float32")),
    "a column": (TRAIN[0], SOME[:, None]),
    "one-hot": (TRAIN[0], one_hot(SOME)),
    "lists": (TRAIN[0].tolist(), SOME.tolist()),
    "tensors": [tf.constant(TRAIN[0]), tf.constant(SOME)],
    "batches": tf.data.Dataset.from_tensor_slices((TRAIN[0], SOME)).batch(6),
    "one-hot batches": tf.data.Dataset.from_tensor_slices((TRAIN[0], one_hot(SOME))).batch(21),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_data(form):
    model = network()
    features, numbers = Features(model).of(FORMS[form], "train")
    np.testing.assert_array_equal(numbers, SOME[SOME >= 0])
    wanted = embedding_of(model, TRAIN[0])[SOME >= 0]
    np.testing.assert_allclose(features, wanted, atol=1e-6)


def test_many_images_in_arrays():
    count = 600  # more than are run at once
    model = network()
    features, numbers = Features(model).of((images(count), labels(count)), "train")
    np.testing.assert_allclose(features, embedding_of(model, images(count)), atol=1e-6)
    np.testing.assert_array_equal(numbers, labels(count))


def test_the_epoch_that_a_training_left_does_not_matter():
    data = ssd.data.load("digits", batch_size=64)
    model = keras.Sequential(
        [keras.Input(data.info.input_shape), layers.Flatten(), layers.Dense(2)]
    )
    features, numbers = Features(model).of(data.train, "train")
    follow = ssd.callbacks.FollowEpoch(data.train)
    follow.on_epoch_begin(7)
    later = [y.numpy() for _, y in data.train]
    again, same = Features(model).of(data.train, "train")
    np.testing.assert_array_equal(features, again)
    np.testing.assert_array_equal(numbers, same)
    assert not np.array_equal(np.concatenate(later), numbers)
    for before, after in zip(later, data.train, strict=True):  # epoch 7 goes on
        np.testing.assert_array_equal(before, after[1])


def test_classes_beyond_the_training_labels():
    found = linear_probe(network(), TRAIN, (TEST[0], TEST[1] + 2), num_classes=5, epochs=1)
    assert found.num_classes == found.kernel.shape[1] == 5
    with pytest.raises(ValueError, match="`test` has the label 4, beyond the 3 classes that `tr"):
        linear_probe(network(), TRAIN, (TEST[0], TEST[1] + 2))
    with pytest.raises(ValueError, match="`train` has the label 2, beyond the 2 classes of `num"):
        linear_probe(network(), TRAIN, TEST, num_classes=2)


def with_labels(values):
    return TRAIN[0], np.asarray(values)


BAD_DATA = {
    "no labelled image": (with_labels([-1] * 21), "`train` holds no labelled image"),
    "empty": ((TRAIN[0][:0], TRAIN[1][:0]), "`train` holds no labelled image"),
    "one class": (with_labels([0] * 21), "All training images have the label 0"),
    "-2": (with_labels([-2] * 21), "classes from 0 on, or -1 for no label, got -2"),
    "half": (with_labels([0.5] * 21), "or -1 for no label, got 0.5"),
    "NaN": (with_labels([float("nan")] * 21), "or -1 for no label, got nan"),
    "text": (with_labels(["cat"] * 21), r"must be integers \[batch\] or one-hot rows"),
    "soft": (with_labels([[0.5, 0.5]] * 21), r"one-hot rows \[batch, classes\], got float64"),
    "two classes": (with_labels([[1, 1]] * 21), r"one-hot rows \[batch, classes\], got int64"),
    "fewer labels": ((TRAIN[0], TRAIN[1][:5]), r"got shapes \(21, 4, 4, 3\) and \(5,\)"),
    "a number": ((TRAIN[0], 3), r"got shapes \(21, 4, 4, 3\) and \(\)"),
    "another size": (
        (np.zeros((21, 8, 8, 3)), TRAIN[1]),
        r"takes images \(4, 4, 3\), those of `train` are",
    ),
    "an image of NaN": (
        (np.where(np.arange(21)[:, None, None, None] == 7, np.nan, TRAIN[0]), TRAIN[1]),
        "The images of `train` hold NaN or infinite values",
    ),
    "vectors": ((np.zeros((21, 48)), TRAIN[1]), r"must be \[batch, height, width, channels\], got"),
    "images alone": (tf.data.Dataset.from_tensors(TRAIN[0]), "must give pairs"),
    "a dict": (tf.data.Dataset.from_tensors(({"image": TRAIN[0]}, TRAIN[1])), "must give pairs"),
    "weights": (tf.data.Dataset.from_tensors((*TRAIN, TRAIN[1])), "all images weigh the same"),
    "not batched": (tf.data.Dataset.from_tensors(TRAIN).unbatch(), r"needs `\.batch\(64\)`"),
    "endless": (tf.data.Dataset.from_tensors(TRAIN).repeat(), "`train` never ends"),
    "uneven batches": (
        tf.data.Dataset.from_tensors((TRAIN[0], TRAIN[1][:5])),
        "`train` has 21 images and 5 labels",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_probed(case):
    data, sentence = BAD_DATA[case]
    with pytest.raises(ValueError, match=sentence):
        linear_probe(network(), data, TEST)
    with pytest.raises(ValueError, match=sentence.replace("`train`", "`test`")):
        linear_probe(network(), data if case == "one class" else TRAIN, data)


def test_data_of_another_kind():
    with pytest.raises(TypeError, match=r"`test` must be a tf\.data\.Dataset .* got a ndarray"):
        linear_probe(network(), TRAIN, TEST[0])


def constant(values):
    """A network whose embedding is the same for all images."""
    image = keras.Input(SHAPE)
    x = layers.Rescaling(0.0)(layers.GlobalAveragePooling2D()(image))
    return keras.Model(image, layers.Lambda(lambda x: x + values, name="embedding")(x))


def unbuilt():
    return Subclassed(network())


def returns_its_embedding():
    return ssd.named_outputs(network(), {"embedding": "embedding"})


def two_inputs():
    inputs = [keras.Input((3,)), keras.Input((3,))]
    return keras.Model(inputs, layers.Dense(2)(layers.add(inputs)), name="two")


def list_of_outputs():
    image = keras.Input(SHAPE)
    x = layers.Flatten()(image)
    return keras.Model(image, [x, x])


BAD_NETWORKS = {
    "unbuilt": (unbuilt, {}, "has no weights yet: call it once"),
    "two inputs": (two_inputs, {}, "'two' has 2 inputs"),
    "two outputs": (list_of_outputs, {}, "must return a tensor .* or a dict with 'logits'"),
    "a map": (network, {"embedding": "conv"}, r"vectors \[images, width\], got shape .*2, 2, 5\)"),
    "named twice": (
        returns_its_embedding,
        {"embedding": "conv"},
        "an output named 'embedding' alr",
    ),
    "unknown": (network, {"embedding": "pol"}, "No layer 'pol' in model 'net'"),
    "unknown output": (subclassed, {"embedding": "x"}, r"returns no 'x', only \['embedding', 'log"),
    "NaN": (lambda: constant([0, 0, np.nan]), {}, "of 21 of the 21 images of `train` are not fin"),
    "shares": (lambda: constant([0.2, 0.3, 0.5]), {}, "features of `train` are probabilities"),
}


@pytest.mark.parametrize("case", BAD_NETWORKS)
def test_networks_that_cannot_be_probed(case):
    make, options, sentence = BAD_NETWORKS[case]
    with pytest.raises(ValueError, match=sentence):
        linear_probe(make(), TRAIN, TEST, **options)


def test_features_that_only_look_like_probabilities():
    for values in ([0.2, 0.3, 0.6], [-0.5, 0.5, 1.0]):  # sum to 1.1; one is negative
        linear_probe(constant(values), TRAIN, TEST, epochs=1)


@pytest.mark.parametrize("thing", [lambda images: images, ssd.freeze(lambda images: images), None])
def test_what_is_no_network(thing):
    with pytest.raises(TypeError, match="must be a Keras model, a FrozenTeacher of one or a Dist"):
        linear_probe(thing, TRAIN, TEST)


BAD_OPTIONS = {
    "epochs": [0, 1.5, True],
    "batch_size": [0, -1],
    "num_classes": [1, 2.5],
    "learning_rate": [-1, float("nan")],
    "weight_decay": [-1],
    "momentum": [1.1],
    "drop_epochs": [[3, 2]],
    "seed": [-1, 0.5],
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_out_of_range_are_refused_before_the_network_runs(name):
    for value in BAD_OPTIONS[name]:
        with pytest.raises(ValueError, match="`epochs`" if "epoch" in name else f"`{name}`"):
            linear_probe("no network", None, None, **{name: value})


def test_a_training_that_diverges():
    with pytest.raises(ValueError, match=r"The loss is nan in epoch \d+: lower `learning_rate`"):
        linear_probe(constant([1e20, 0.0, 1e20]), TRAIN, TEST)


def test_the_scope_of_a_strategy_is_left_first(two_replicas):
    with two_replicas.scope(), pytest.raises(ValueError, match="Leave the scope"):
        linear_probe(None, TRAIN, TEST)
