"""The figure of `make mutants`: shares of samples with their interval, and what fails."""

import pytest

from tests import mutants
from tests.mutants import Tried, interval, report


@pytest.mark.parametrize(
    ("noticed", "of", "low", "high"),
    [(0, 0, 0.0, 1.0), (9, 10, 0.5958, 0.9821), (90, 100, 0.8256, 0.9448), (10, 10, 0.7225, 1.0), (0, 10, 0.0, 0.2775)],
)
def test_the_interval_is_wilsons(noticed: int, of: int, low: float, high: float) -> None:
    assert interval(noticed, of) == pytest.approx((low, high), abs=1e-4)


def found(noticed: int, survived: int, of: int) -> Tried:
    states = {
        f"splitinference.core.decide.decide.x_f__mutmut_{n}": "killed" if n < noticed else "survived" for n in range(noticed + survived)
    }
    return Tried(states, of, seed=7)


@pytest.mark.parametrize(
    ("tried", "status"),
    [
        (found(90, 10, of=100), 0),
        (found(89, 11, of=100), 1),
        (found(89, 11, of=1000), 0),  # a sample: the share may well be 90 %
        (found(80, 20, of=1000), 1),
        (found(0, 0, of=1000), 1),
    ],
)
def test_too_few_noticed_fail_and_of_a_sample_only_where_chance_does_not_explain_it(
    tried: Tried, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mutants, "changed", lambda fault: ("a", "b"))
    monkeypatch.setattr(mutants, "listed", list)
    assert report(["decide"], tried) == status
    said = capsys.readouterr().out
    assert f"{len(tried.outcome)} of {tried.of} faults tried, seed 7" in said
    assert ("95 % confidence interval" in said) is not tried.whole


def test_every_module_of_both_folders_is_tried() -> None:
    assert {"scaling", "base/triggers", "feasibility/restrict", "../transition/steps"} <= set(mutants.MODULES)
    assert [name for name in mutants.MODULES if not (mutants.CORE / "decide" / f"{name}.py").is_file()] == []
