"""The cost model on measured rows: what it is held to, and that figures come back from rows that were made with them."""

import math
import random

import pytest

from splitinference import catalogue
from splitinference.core.cost.fitting.errors import Errors, errors
from splitinference.core.cost.fitting.fit import fitted
from splitinference.core.cost.fitting.rows import Row, place_of, predicted_ms
from splitinference.core.values.efficiency import Efficiency, PhaseEfficiency
from tests.catalogue_priors import PRIORS, text

MADE = Efficiency(
    prefill=PhaseEfficiency(compute=0.45, bandwidth=0.85, attention=0.1, launch_ms=0.02),
    decode=PhaseEfficiency(compute=0.7, bandwidth=0.85, attention=0.3, launch_ms=0.05),
    dequantized_per_s=5e11,
)
MODELS = ("llama-3-8b/f16", "llama-3-8b/q4_k_m", "qwen3-1.7b/layer")


@pytest.fixture(scope="module")
def found() -> list[Errors]:
    return errors(catalogue.rows(), catalogue.models(), catalogue.built_in(), by=lambda row: row.source)


def test_fitted_to_one_half_of_the_rows_the_other_half_is_within_a_tenth_in_the_median_and_40_percent_at_worst(found: list[Errors]) -> None:
    held_out = [each for each in found if each.method == "other half"]
    assert {each.group for each in held_out} == set(catalogue.sources())
    assert [each for each in held_out if each.median > 0.10 or each.worst > 0.40] == []


def test_the_priors_alone_are_within_a_quarter_in_the_median(found: list[Errors]) -> None:
    priors = [each for each in found if each.method == "catalogue"]
    assert len(priors) >= 7
    assert [each for each in priors if each.median > 0.25] == []


def test_every_source_and_phase_is_better_predicted_than_before(found: list[Errors]) -> None:
    by = {(each.group, each.phase, each.method): each for each in found}
    for (group, phase, method), each in by.items():
        if method == "other half":
            before = by[group, phase, "data sheet"]
            assert each.median < before.median / 2
            assert each.worst < before.worst


def test_the_catalogues_entries_are_what_its_rows_say() -> None:
    assert PRIORS.read_text("utf-8") == text()


def made_rows(noise: float) -> list[Row]:
    dice = random.Random(7)
    site = place_of(catalogue.built_in().processors["NVIDIA-GeForce-RTX-4090"], MADE)
    rows = []
    for model in MODELS:
        for phase, batches, lengths in (("decode", (1, 8, 64, 256), (128, 2048, 8192)), ("prefill", (1,), (64, 512, 2048, 8192))):
            for batch in batches:
                for tokens in lengths:
                    row = Row(processor="p", engine="e", model=model, phase=phase, batch=batch, tokens=tokens, ms=1.0)
                    exact = predicted_ms(row, catalogue.models(), site)
                    rows.append(row.model_copy(update={"ms": exact * math.exp(dice.gauss(0, noise))}))
    return rows


def test_figures_that_made_the_rows_are_found_again() -> None:
    nominal = catalogue.built_in().processors["NVIDIA-GeForce-RTX-4090"]
    again = fitted(made_rows(0.0), catalogue.models(), nominal)
    for phase in ("prefill", "decode"):
        for figure in ("compute", "bandwidth", "attention"):
            assert getattr(getattr(again, phase), figure) == pytest.approx(getattr(getattr(MADE, phase), figure), rel=0.1), (phase, figure)
    assert again.decode.launch_ms == pytest.approx(MADE.decode.launch_ms, rel=0.1)
    assert again.dequantized_per_s == pytest.approx(MADE.dequantized_per_s, rel=0.1)
    assert again.decode.spread == pytest.approx(0.0, abs=0.02)


def test_the_spread_covers_nine_of_ten_rows() -> None:
    nominal = catalogue.built_in().processors["NVIDIA-GeForce-RTX-4090"]
    rows = made_rows(0.1)
    again = fitted(rows, catalogue.models(), nominal)
    site = place_of(nominal, again)
    assert again.decode.spread is not None
    ratios = [predicted_ms(row, catalogue.models(), site) / row.ms for row in rows if row.phase == "decode"]
    within = sum(1 / (1 + again.decode.spread) <= ratio <= 1 + again.decode.spread for ratio in ratios) / len(ratios)
    assert 0.85 <= within <= 0.95


def test_a_phase_with_too_few_rows_keeps_its_figures_and_has_no_spread() -> None:
    nominal = catalogue.built_in().processors["NVIDIA-GeForce-RTX-4090"]
    again = fitted([row for row in made_rows(0.0) if row.phase == "decode"], catalogue.models(), nominal)
    assert again.prefill == PhaseEfficiency()
    with pytest.raises(ValueError, match="too few"):
        fitted(made_rows(0.0)[:1], catalogue.models(), nominal)
