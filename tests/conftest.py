"""What every test stands on: two logical CPU devices, fixed seeds, golden values, real data."""

import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration(), tf.config.LogicalDeviceConfiguration()],
)

TESTS = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Each test starts from the same seed and leaves no global Keras setting behind."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def _fresh_graph():
    """Keras' global graph and names start anew in each file: a test at a time is slow."""
    yield
    keras.backend.clear_session()


@pytest.fixture
def float64():
    """Float64 as the default of every new layer."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


@pytest.fixture(scope="session")
def two_replicas():
    """The one MirroredStrategy of the test process: a second one would break the first."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def golden_cases(file: str, function: str) -> list:
    """The cases of one function in a golden file, as pytest parameters named by case."""
    cases = json.loads((TESTS / "golden" / f"{file}.json").read_text())["cases"]
    chosen = [case for case in cases if case["function"] == function]
    assert chosen, f"no golden case of {function} in {file}.json"
    return [pytest.param(case, id=case["name"]) for case in chosen]


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real images and teachers; skips the test where there is none."""
    default = TESTS.parent.parent / "shared" / "data"
    folder = pathlib.Path(os.environ.get("KERAS_SSD_DATA", default))
    if not (folder / "tfds").is_dir():
        pytest.skip(f"no real data in {folder}: set KERAS_SSD_DATA to the folder that holds `tfds`")
    return folder
