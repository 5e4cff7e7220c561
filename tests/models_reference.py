"""docs/reference/models.md from the rules of models: `python -m tests.models_reference` writes it."""

from pathlib import Path

from splitinference_modelfiles.reference import rendered

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "models.md"

if __name__ == "__main__":
    PAGE.write_text(rendered())
