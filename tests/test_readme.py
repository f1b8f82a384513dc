"""The code of the README runs as it stands, on smaller data and fewer epochs."""

import pathlib
import re

import pytest

import keras_ssd as ssd

README = pathlib.Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_the_two_phases_of_the_readme(tmp_path, monkeypatch):
    use, pretext = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    smaller = {
        '"cifar100"': '"digits"',
        '"resnet8x4"': '"resnet8"',
        "epochs=240": "epochs=1",
        "epochs=60": "epochs=1",
    }
    for full, small in smaller.items():
        assert full in use + pretext
        use, pretext = use.replace(full, small), pretext.replace(full, small)
    monkeypatch.chdir(tmp_path)
    data = ssd.data.load("digits", batch_size=64)
    big_network = ssd.models.build("resnet14", data.info)
    exec(pretext, {"ssd": ssd, "data": data, "big_network": big_network})
    names = {}
    exec(use, names)
    assert (tmp_path / "student" / "saved_model.pb").is_file()
    assert names["distiller"].evaluate(data.test, verbose=0, return_dict=True).keys() == {
        "loss",
        "accuracy",
    }
