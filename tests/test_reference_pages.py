"""Pages of the reference that a command writes are as the command writes them now."""

from splitinference_modelfiles.reference import rendered as models
from tests import crd_reference, models_reference


def test_the_crd_page_is_current():
    assert crd_reference.PAGE.read_text() == crd_reference.rendered(), "python -m tests.crd_reference writes it anew"


def test_every_field_of_the_specification_has_a_description():
    rows = [line.split(" | ") for line in crd_reference.rendered().splitlines() if line.startswith("| `spec.")]
    assert [row[0] for row in rows if row[-1].strip(" |") == ""] == []


def test_the_page_of_models_is_current():
    assert models_reference.PAGE.read_text() == models(), "python -m tests.models_reference writes it anew"
