"""No test of freezing depends on which precisions this machine is fast in."""

import pytest

from keras_ssd.freezing import precision


@pytest.fixture(autouse=True)
def _machine_with_all_units(monkeypatch):
    rates = {"float32": 1.0, "bfloat16": 1.0, "float16": 1.0}
    monkeypatch.setattr(precision, "_matmul_rate", rates.get)
