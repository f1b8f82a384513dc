import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_ssd import export
from keras_ssd.export import export_student
from keras_ssd.heads import named_outputs, with_projection

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype("uint8")


def student(normalises=True, activation=None, size=8, name="student"):
    images = keras.Input((size, size, 3))
    x = layers.Rescaling(1 / 255, dtype="float32")(images) if normalises else images
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.Dropout(0.5)(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    return keras.Model(images, layers.Dense(5, activation=activation)(x), name=name)


class Subclassed(keras.Model):
    """A student that names its outputs itself."""

    def __init__(self, normalises=True):
        super().__init__()
        self.rescaling = layers.Rescaling(1 / 255) if normalises else layers.Identity()
        self.dense = layers.Dense(5)
        self.head = layers.Dense(3)

    def call(self, images):
        x = keras.ops.mean(self.rescaling(images), axis=(1, 2))
        return {"logits": self.dense(x), "projection": self.head(x)}


class RescalesItsLogits(keras.Model):
    """A student for floats whose first attribute normalises something else than images."""

    def __init__(self):
        super().__init__()
        self.rescaling = layers.Rescaling(0.1)
        self.dense = layers.Dense(5)

    def call(self, images):
        return self.rescaling(self.dense(keras.ops.reshape(images, (-1, 8 * 8 * 3))))


class Distiller(keras.Model):
    """What `export_student` knows of a Distiller."""

    def __init__(self, student):
        super().__init__()
        self.student = student


def serve(path, images):
    return tf.saved_model.load(str(path)).signatures["serving_default"](image=images)


def logits_of(network, images):
    outputs = network(images, training=False)
    return np.asarray(outputs["logits"] if isinstance(outputs, dict) else outputs)


def sequential():
    return keras.Sequential([keras.Input((8, 8, 3)), student(), layers.Dense(4)])


def subclassed():
    network = Subclassed()
    network(IMAGES)
    return network


def with_heads():
    return named_outputs(with_projection(student()), {"stage_1": "conv"})


STUDENTS = {
    "functional": student,
    "sequential": sequential,
    "subclassed": subclassed,
    "heads": with_heads,
    "frozen": lambda: with_projection(student(), backbone="frozen"),
    "distiller": lambda: Distiller(with_heads()),
}


def test_only_a_call_tells_what_a_subclassed_student_takes(tmp_path):
    network = RescalesItsLogits()
    images = IMAGES.astype("float32") / 255
    network(images)
    got = serve(export_student(network, tmp_path / "student"), images)["logits"]
    np.testing.assert_allclose(got, logits_of(network, images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", STUDENTS.values(), ids=STUDENTS)
def test_saved_model_gives_the_students_logits(build, tmp_path, capsys):
    given = build()
    path = export_student(given, tmp_path / "models" / "student")
    assert path == tmp_path / "models" / "student"
    assert "differs from the student by at most" in capsys.readouterr().out
    outputs = serve(path, IMAGES)
    assert list(outputs) == ["logits"]
    expected = logits_of(getattr(given, "student", given), IMAGES)
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-5, atol=1e-6)
    assert os.listdir(path.parent) == ["student"]


def test_signature(tmp_path):
    path = export_student(student(), str(tmp_path / "student"))
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    image = signature.structured_input_signature[1]["image"]
    assert image.dtype == tf.uint8
    assert image.shape.as_list() == [None, 8, 8, 3]
    assert signature.structured_outputs["logits"].shape.as_list() == [None, 5]
    for rows in (1, 4):
        assert signature(image=IMAGES[:rows])["logits"].shape == (rows, 5)


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
def test_images_that_somebody_else_normalises(kind, tmp_path):
    network = student(normalises=False) if kind == "functional" else Subclassed(normalises=False)
    images = (IMAGES / 255).astype("float32")
    network(images)
    path = export_student(network, tmp_path / "student")
    np.testing.assert_allclose(
        serve(path, images)["logits"], logits_of(network, images), rtol=1e-5, atol=1e-6
    )


def test_free_image_size(tmp_path):
    path = export_student(student(size=None), tmp_path / "student")
    assert serve(path, IMAGES[:, :6])["logits"].shape == (5, 5)


def test_probabilities(tmp_path):
    network = student()
    outputs = serve(export_student(network, tmp_path / "p", outputs="probabilities"), IMAGES)
    assert list(outputs) == ["probabilities"]
    expected = tf.nn.softmax(logits_of(network, IMAGES))
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_precision(policy, outputs, tmp_path):
    keras.config.set_dtype_policy(policy)
    network = student()
    path = export_student(network, tmp_path / "student", outputs=outputs)
    answer = serve(path, IMAGES)[outputs]
    assert answer.dtype == (tf.float64 if policy == "float64" else tf.float32)
    if outputs == "probabilities":  # a softmax in half precision is off by 1e-3
        np.testing.assert_allclose(np.sum(answer, axis=-1), 1, atol=1e-6)


def test_heads_and_optimizer_are_not_in_the_file(tmp_path):
    network = with_heads()
    network.compile("adam", loss={"logits": "mse", "projection": "mse"})
    network.fit(IMAGES, {"logits": np.ones((5, 5)), "projection": np.ones((5, 4))}, verbose=0)
    variables = tf.train.list_variables(
        str(export_student(network, tmp_path / "student") / "variables" / "variables")
    )
    elements = sum(np.prod(shape) for name, shape in variables if "weights/" in name)
    assert elements == student().count_params()
    assert len(variables) == len(student().weights) + 1  # and the object graph


def test_the_student_stays_as_it_is(tmp_path):
    network = with_heads()
    before = [v.numpy() for v in network.variables]
    path = export_student(network, tmp_path / "student")
    for old, variable in zip(before, network.variables, strict=True):
        np.testing.assert_array_equal(variable, old)
    expected = logits_of(network, IMAGES)
    for variable in network.variables:
        variable.assign(variable + 1)
    np.testing.assert_allclose(serve(path, IMAGES)["logits"], expected, rtol=1e-5, atol=1e-6)


def test_two_replicas(two_replicas, tmp_path):
    with two_replicas.scope():
        network = student()
        with pytest.raises(ValueError, match="Leave the scope"):
            export_student(network, tmp_path / "student")
    path = export_student(network, tmp_path / "student")
    np.testing.assert_allclose(
        serve(path, IMAGES)["logits"], logits_of(network, IMAGES), rtol=1e-5, atol=1e-6
    )


def test_an_earlier_export_is_replaced(tmp_path):
    export_student(student(), tmp_path / "student")
    (tmp_path / "student" / "stale").touch()
    network = student()
    path = export_student(network, tmp_path / "student")
    np.testing.assert_allclose(
        serve(path, IMAGES)["logits"], logits_of(network, IMAGES), rtol=1e-5, atol=1e-6
    )
    assert not (path / "stale").exists()
    assert os.listdir(tmp_path) == ["student"]


def break_saving(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)


def break_values(monkeypatch):
    """What is read back computes something else."""
    load = tf.saved_model.load

    class Loaded:
        def __init__(self, path):
            serve = load(path).signatures["serving_default"]
            self.signatures = {
                "serving_default": lambda image: {
                    k: v + 0.01 for k, v in serve(image=image).items()
                }
            }

    monkeypatch.setattr(tf.saved_model, "load", Loaded)


def renaming_ends_in(error):
    def break_renaming(monkeypatch):
        rename = export.pathlib.Path.rename

        def fail(self, target):
            if self.name == "new":
                raise error
            return rename(self, target)

        monkeypatch.setattr(export.pathlib.Path, "rename", fail)

    return break_renaming


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (break_saving, OSError, "disk full"),
        (
            break_values,
            RuntimeError,
            r"differ from the student's by 0\.01, .* nothing was exported",
        ),
        (renaming_ends_in(OSError("disk full")), OSError, "disk full"),
        (renaming_ends_in(KeyboardInterrupt("stopped")), KeyboardInterrupt, "stopped"),
    ],
)
def test_a_failure_leaves_nothing_behind(
    break_it, error, message, earlier, tmp_path, monkeypatch, capsys
):
    network = student()
    if earlier:
        export_student(network, tmp_path / "student")
        capsys.readouterr()
    with monkeypatch.context() as patch:
        break_it(patch)
        with pytest.raises(error, match=message):
            export_student(student(), tmp_path / "student")
    assert capsys.readouterr().out == ""
    assert os.listdir(tmp_path) == (["student"] if earlier else [])
    if earlier:
        np.testing.assert_allclose(
            serve(tmp_path / "student", IMAGES)["logits"], logits_of(network, IMAGES), rtol=1e-5
        )


def two_inputs():
    images = [keras.Input((8, 8, 3)), keras.Input((8, 8, 3))]
    pooled = layers.GlobalAveragePooling2D()(layers.Add()(images))
    return keras.Model(images, layers.Dense(5)(pooled))


def maps():
    images = keras.Input((8, 8, 3))
    return keras.Model(images, layers.Conv2D(5, 3)(images))


MISTAKES = {
    "softmax": (lambda: student(activation="softmax"), ValueError, "ends with a softmax: build it"),
    "unbuilt": (Subclassed, ValueError, "is not built: call it once"),
    "unbuilt sequential": (
        lambda: keras.Sequential([layers.Dense(5)]),
        ValueError,
        "is not built: call it once",
    ),
    "two inputs": (two_inputs, ValueError, "takes 2 inputs"),
    "maps": (maps, ValueError, r"must return a tensor \(rows, classes\)"),
    "function": (lambda: len, TypeError, "Expected a Distiller or a Keras model, got builtin"),
}


@pytest.mark.parametrize(("build", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(build, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_student(build(), tmp_path / "student")
    assert os.listdir(tmp_path) == []


def test_unknown_outputs(tmp_path):
    with pytest.raises(ValueError, match="must be 'logits' or 'probabilities', got 'classes'"):
        export_student(student(), tmp_path / "student", outputs="classes")


def test_what_is_no_saved_model_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("precious, too")
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match=f"{name} exists and is no SavedModel"):
            export_student(student(), tmp_path / name)
    assert (tmp_path / "file").read_text() == "precious"


NAMES = ["cat", "chat noir", "\u732b", "a/b", " indented"]


def assets(path):
    return sorted(os.listdir(path / "assets"))


def test_class_names_are_a_file_of_the_saved_model(tmp_path):
    path = export_student(student(), tmp_path / "here" / "student", class_names=NAMES)
    assert os.listdir(path.parent) == ["student"]
    assert assets(path) == ["class_names.txt"]
    moved = path.rename(tmp_path / "moved")
    loaded = tf.saved_model.load(str(moved))
    file = os.fsdecode(loaded.class_names.asset_path.numpy())
    assert file == str(moved / "assets" / "class_names.txt")
    with open(file, "rb") as lines:
        assert lines.read() == "cat\nchat noir\n\u732b\na/b\n indented\n".encode()
    assert loaded.signatures["serving_default"](image=IMAGES)["logits"].shape == (5, 5)
    assert str(tmp_path / "here").encode() not in (moved / "saved_model.pb").read_bytes()


@pytest.mark.parametrize("kind", [tuple, list])
def test_class_names_of_a_distiller(kind, tmp_path):
    path = export_student(Distiller(with_heads()), tmp_path / "s", class_names=kind("abcde"))
    assert (path / "assets" / "class_names.txt").read_text() == "a\nb\nc\nd\ne\n"


def test_no_class_names_no_file(tmp_path):
    path = export_student(student(), tmp_path / "student", class_names=NAMES)
    export_student(student(), path)
    assert assets(path) == []
    assert not hasattr(tf.saved_model.load(str(path)), "class_names")


@pytest.mark.parametrize(
    ("class_names", "error", "message"),
    [
        ("abcde", TypeError, "must be a sequence of strings, one a class, got 'abcde'"),
        (b"abcde", TypeError, "must be a sequence of strings"),
        ({"a", "b"}, TypeError, "must be a sequence of strings"),
        (5, TypeError, "must be a sequence of strings, one a class, got 5"),
        (list("abcd"), ValueError, "one a class of the student, so 5, got 4: give those of the"),
        ([], ValueError, "so 5, got 0"),
        (list("abcdd"), ValueError, "must be distinct, got 'd' more than once"),
        (["a", "b", "", "d", "e"], ValueError, "that are not empty, .*got ''"),
        (["a", "b", "  ", "d", "e"], ValueError, "that are not empty, .*got '  '"),
        (["a", "b", "c\nd", "d", "e"], ValueError, r"strings of one line .*got 'c\\nd'"),
        (["a", "b", "c\r", "d", "e"], ValueError, r"strings of one line .*got 'c\\r'"),
        (["a", "b", "c\u2028d", "d", "e"], ValueError, "strings of one line"),
        (
            ["a", "caf\udce9", "c", "d", "e"],
            ValueError,
            r"UTF-8 can write, .*got 'caf\\udce9': give",
        ),
        (["a", "b", 3, "d", "e"], ValueError, "must be strings of one line .*got 3"),
    ],
)
def test_refuses_class_names(class_names, error, message, tmp_path):
    with pytest.raises(error, match=message):
        export_student(student(), tmp_path / "student", class_names=class_names)
    assert os.listdir(tmp_path) == []


def test_class_names_are_read_back_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    save = tf.saved_model.save

    def spoil(module, folder, **options):
        save(module, folder, **options)
        pathlib.Path(folder, "assets", "class_names.txt").write_text("other\n")

    monkeypatch.setattr(tf.saved_model, "save", spoil)
    with pytest.raises(RuntimeError, match=r"class names, read back, .* nothing was exported"):
        export_student(student(), tmp_path / "student", class_names=NAMES)
    assert os.listdir(tmp_path) == []


RUN_WITHOUT_KERAS = """
import sys
sys.modules["keras"] = None  # TensorFlow imports it by itself where it can
sys.modules["keras_ssd"] = None
import numpy as np
import tensorflow as tf
for name in sys.argv[1:]:
    serve = tf.saved_model.load(name).signatures["serving_default"]
    for rows in (1, 3):
        images = tf.constant(np.load("images.npy")[:rows])
        np.save(f"{name}{rows}.npy", serve(image=images)["logits"])
assert sys.modules["keras_ssd"] is None
assert not [name for name in sys.modules if name.startswith(("keras.", "keras_ssd."))]
"""


@pytest.mark.slow
def test_runs_without_keras(tmp_path):
    given = {name: build() for name, build in STUDENTS.items()}
    for name, network in given.items():
        export_student(network, tmp_path / name)
    np.save(tmp_path / "images.npy", IMAGES)
    command = [sys.executable, "-W", "error", "-c", RUN_WITHOUT_KERAS, *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING:tensorflow" not in done.stderr
    for name, network in given.items():
        for rows in (1, 3):
            expected = logits_of(getattr(network, "student", network), IMAGES[:rows])
            got = np.load(tmp_path / f"{name}{rows}.npy")
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
