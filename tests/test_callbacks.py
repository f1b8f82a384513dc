import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssd import data
from keras_ssd.callbacks import FollowEpoch


class Recorder(keras.Model):
    """Keeps the labels of every training step, in order."""

    def __init__(self, num_steps):
        super().__init__()
        self.seen = tf.Variable(tf.zeros([num_steps, 64], tf.int32), trainable=False)
        self.step = tf.Variable(0, trainable=False)
        self.dense = keras.layers.Dense(1)

    def train_step(self, batch):
        _, labels = batch
        context = tf.distribute.get_replica_context()
        labels = context.all_gather(labels, axis=0)
        context.merge_call(self._keep, args=(labels,))
        return {"loss": 0.0}
