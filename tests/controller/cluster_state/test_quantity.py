"""Quantities: as the client's own parser reads them, and nothing else."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity

from splitinference.controller.kube_values.quantity import quantity

SUFFIXES = ("", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


@given(
    st.decimals(min_value=-(10**6), max_value=10**9, places=3, allow_nan=False).map(lambda d: f"{d:f}"),
    st.sampled_from(SUFFIXES),
)
def test_what_kubernetes_accepts_is_read_as_its_client_reads_it(number: str, suffix: str):
    found = quantity(number + suffix)
    assert found is not None
    assert abs(found - parse_quantity(number + suffix)) <= abs(found) * Decimal("1e-20")


@pytest.mark.parametrize("text", ["1e3", "12E2", "+5", ".5", "5.", "100e-3", "0"])
def test_exponents_and_short_forms(text: str):
    assert quantity(text) == parse_quantity(text)


@pytest.mark.parametrize("text", ["", "NaN", "Infinity", "1K", "1ki", "1mi", "1ni", "5 Mi", "x", "1e", "--1", "1.2.3", "0x10", "1_000"])
def test_what_is_no_quantity_is_none(text: str):
    """The client's parser takes several of these for numbers."""
    assert quantity(text) is None
