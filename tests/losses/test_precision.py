import numpy as np
import pytest
import tensorflow as tf

from keras_ssd.losses import at_least_float32


@pytest.mark.parametrize(
    ("given", "computed"),
    [
        (tf.float16, tf.float32),
        (tf.bfloat16, tf.float32),
        (tf.float32, tf.float32),
        (tf.float64, tf.float64),
    ],
)
def test_halves_become_float32_and_the_rest_stays(given, computed):
    values = at_least_float32(tf.constant([1.5, -2.0], given))
    assert values.dtype == computed
    np.testing.assert_array_equal(values, [1.5, -2.0])


@pytest.mark.parametrize("dtype", [tf.int32, tf.uint8, tf.bool])
def test_what_is_no_float_is_refused_by_name(dtype):
    with pytest.raises(TypeError, match="`teacher_logits` must be floating point, got"):
        at_least_float32(tf.zeros([2], dtype), "teacher_logits")
