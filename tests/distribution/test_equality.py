"""Every objective and preset: one replica = two = four = two workers over gRPC."""

import concurrent.futures
import pathlib
import sys

import numpy as np
import pytest

from keras_ssd import objectives, presets

TESTS = pathlib.Path(__file__).parent.parent
sys.path.append(str(TESTS.parent / "examples"))

from processes import Configuration, run  # noqa: E402

from .cases import CASES, OBJECTIVES, REFUSED  # noqa: E402

ONE = Configuration()
OTHERS = {
    "2 replicas": Configuration(replicas=2),
    "4 replicas": Configuration(replicas=4),
    "worker 0 of 2": Configuration(workers=2),
    "worker 1 of 2": Configuration(workers=2),
}
SECONDS = 2400  # a step that waits for another worker for ever is ended after this
BOUNDS = {  # largest relative difference of what a step shows, and of a variable
    "float64": (1e-10, 1e-10),
    "float32": (1e-4, 1e-3),
    # Each replica rounds its part of a gradient: eight roundings, of 2^-8 and of 2^-11.
    "mixed_bfloat16": (2**-5, 2**-5),
    "mixed_float16": (2**-8, 2**-8),
}


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """What each configuration found, by the name of the case."""
    folder = tmp_path_factory.mktemp("equality")

    def found(configuration):
        name = configuration.name.replace(" ", "_")
        paths = [folder / f"{name}_{k}.npz" for k in range(max(1, configuration.workers))]
        runner = TESTS / "distribution" / "runner.py"
        commands = [[sys.executable, str(runner), str(path)] for path in paths]
        failure = run(configuration, commands, folder / f"{name}.log", SECONDS)
        assert failure is None, f"{configuration.name}: {failure}"
        return [_by_case(path) for path in paths]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        asked = [OTHERS["4 replicas"], OTHERS["worker 0 of 2"], OTHERS["2 replicas"], ONE]
        four, workers, two, one = pool.map(found, asked)
    names = ["1 replica", *OTHERS]
    return dict(zip(names, [one[0], two[0], four[0], *workers], strict=True))


def _by_case(path):
    cases = {}
    with np.load(path) as arrays:
        for key, value in arrays.items():
            case, kind, name = key.split("/", 2)
            cases.setdefault(case, {}).setdefault(kind, {})[name] = value
    return cases


def difference(value, reference):
    """Norm of the difference over norm; 0 where both are 0."""
    value, reference = np.float64(value), np.float64(reference)
    distance = np.linalg.norm(value - reference)
    return distance / max(np.linalg.norm(reference), np.finfo(float).tiny) if distance else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("configuration", OTHERS)
@pytest.mark.parametrize("case", CASES)
def test_equal(results, case, configuration):
    expected, found = (results[name][case] for name in ("1 replica", configuration))
    losses, weights = BOUNDS[CASES[case].floats]
    assert found["shown"].keys() == expected["shown"].keys()
    assert found["after"].keys() == expected["after"].keys()
    for name, value in expected["shown"].items():
        np.testing.assert_allclose(found["shown"][name], value, rtol=losses, err_msg=name)
    for name, value in expected["after"].items():
        np.testing.assert_array_equal(found["before"][name], expected["before"][name])
        assert difference(found["after"][name], value) <= weights, name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_workers_hold_the_same(results, case):
    first, second = (results[f"worker {index} of 2"][case]["after"] for index in (0, 1))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_five_steps_move_the_student(results, case):
    """Far more than the bounds: weights that stay where they are would be equal, too."""
    one = results["1 replica"][case]
    assert len(one["shown"]["loss"]) == 5
    assert (np.abs(one["shown"]["loss"]) > 1e-3).all()
    starts = {name: value for name, value in one["before"].items() if value.any()}
    moved = [difference(one["after"][name], value) for name, value in starts.items()]
    assert max(moved) > 10 * BOUNDS[CASES[case].floats][1]


@pytest.mark.slow
@pytest.mark.parametrize("configuration", OTHERS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_equal_is_refused_untouched(results, case, configuration):
    found = results[configuration][case]
    assert "use drop_remainder=True, or build" in str(found["told"]["sentence"])
    for name, value in found["before"].items():
        np.testing.assert_array_equal(found["after"][name], value)
    assert str(results["1 replica"][case]["told"]["sentence"]) == ""


def test_every_objective_and_every_preset_is_a_case():
    abstract = {"Objective"}
    assert set(OBJECTIVES) == set(objectives.__all__) - abstract
    assert set(presets.__all__) | set(OBJECTIVES) <= set(CASES)
    for name, make in OBJECTIVES.items():
        assert type(make()) is getattr(objectives, name)


def test_every_objective_is_in_a_case_of_float32():
    cases = [case for case in CASES.values() if case.floats == "float32"]
    terms = [term for case in cases for term in case.terms()["objectives"]]
    assert {type(term) for term in terms} == {
        getattr(objectives, name) for name in objectives.__all__ if name != "Objective"
    }
