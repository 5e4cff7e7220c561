"""docs/reference/settings.md from the settings themselves: `python -m tests.settings_reference` writes it."""

from pathlib import Path

from splitinference.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"

_HEAD = """# Settings of the operator

The operator reads these environment variables once, when it starts.
The chart's `values.yaml` covers the usual ones. Its value `extraSettings` sets any of them.
`python -m tests.settings_reference` writes this page.

| variable | default | meaning |
|---|---|---|
"""


def rendered() -> str:
    """The whole page."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default == "" else f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
        rows.append(f"| `SPLITINFERENCE_{name.upper()}` | {default} | {(field.description or '').replace('|', chr(92) + '|')} |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(rendered())
