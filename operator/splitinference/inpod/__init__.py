"""Scripts that the operator hands to pods as text (`python3 -c`): standard library only, never imported by the operator.

A script may import from its siblings by name; their text then goes before its own.
"""

import re
from importlib.resources import files

_IMPORT = re.compile(r"^from splitinference\.inpod\.(\w+) import (?:\([^)]*\)|[^\n(]*)\n", re.MULTILINE)


def script(name: str) -> str:
    """The text of `<name>.py` in this package, with what it imports from there."""
    return _with_siblings(name, set())


def _with_siblings(name: str, there: set[str]) -> str:
    text = files(__name__).joinpath(f"{name}.py").read_text(encoding="utf-8")
    before = []
    for sibling in _IMPORT.findall(text):
        if sibling not in there:
            there.add(sibling)
            before.append(_with_siblings(sibling, there))
    return "\n".join([*before, _IMPORT.sub("", text)])
