"""Pages of the reference that a command writes are as the command writes them now."""

from splitinference.settings.devices import DeviceRule
from splitinference_modelfiles.reference import rendered as models
from tests import cli_reference, crd_reference, devices_reference, models_reference


def test_the_crd_page_is_current():
    assert crd_reference.PAGE.read_text() == crd_reference.rendered(), "python -m tests.crd_reference writes it anew"


def test_every_field_of_the_specification_has_a_description():
    rows = [line.split(" | ") for line in crd_reference.rendered().splitlines() if line.startswith("| `spec.")]
    assert [row[0] for row in rows if row[-1].strip(" |") == ""] == []


def test_the_page_of_models_is_current():
    assert models_reference.PAGE.read_text() == models(), "python -m tests.models_reference writes it anew"


def test_the_page_of_devices_is_current():
    assert devices_reference.PAGE.read_text() == devices_reference.rendered(), "python -m tests.devices_reference writes it anew"


def test_the_page_of_devices_has_every_field_of_a_rule():
    fields = {field.alias or name for name, field in DeviceRule.model_fields.items()}
    assert set(devices_reference.FIELDS) == fields


def test_the_page_of_the_command_line_is_current():
    assert cli_reference.PAGE.read_text() == cli_reference.rendered(), "python -m tests.cli_reference writes it anew"


def test_the_page_of_the_command_line_has_every_verb_and_option_of_the_plugin():
    page = cli_reference.rendered()
    for option in ("--watch", "--all-namespaces", "--context", "--kubeconfig", "--undo", "--follow", "--revision"):
        assert option in page
    assert "{" not in page.partition("## plan")[0], "no template is left over"
