"""The operator's settings: documented, frozen, and refused by name."""

import pytest
from pydantic import ValidationError

from splitinference.settings import Settings
from tests.settings_reference import PAGE, rendered


def test_the_reference_page_is_that_of_the_settings():
    assert PAGE.read_text() == rendered(), "python -m tests.settings_reference writes it anew"


def test_every_setting_says_what_it_means():
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_settings_are_read_from_the_environment_and_frozen(monkeypatch):
    monkeypatch.setenv("SPLITINFERENCE_RESYNC_SECONDS", "2.5")
    monkeypatch.setenv("SPLITINFERENCE_NAMESPACES", "a, b,")
    settings = Settings()
    assert settings.resync_seconds == 2.5
    assert settings.watched_namespaces == ("a", "b")
    with pytest.raises(ValidationError):
        settings.resync_seconds = 1


@pytest.mark.parametrize(
    ("name", "value"), [("RESYNC_SECONDS", "0"), ("QUERY_SET", "guess"), ("POD_USER", "0"), ("SEGMENT_CPU_LIMIT", " 1")]
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(f"SPLITINFERENCE_{name}", value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert [error["loc"][-1] for error in refused.value.errors()] == [name.lower()]
