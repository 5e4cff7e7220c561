"""Scripts that the operator hands to pods as text (`python3 -c`): standard library only, never imported by the operator."""

from importlib.resources import files


def script(name: str) -> str:
    """The text of `<name>.py` in this package."""
    return files(__name__).joinpath(f"{name}.py").read_text(encoding="utf-8")
