"""Scripts that the operator hands to pods as text (`python3 -c`): standard library only, never imported by the operator.

A script may import from its siblings and from `splitinference_modelfiles` by name; their text then goes before its own.
"""

import re
from importlib.resources import files

_MODULE = r"(splitinference\.inpod|splitinference_modelfiles(?:\.\w+)*)\.(\w+)"
_IMPORT = re.compile(rf"^from {_MODULE} import (?:\([^)]*\)|[^\n(]*)\n", re.MULTILINE)


def script(name: str) -> str:
    """The text of `<name>.py` in this package, with what it imports from there."""
    return _with_siblings(__name__, name, set())


def _with_siblings(package: str, name: str, there: set[str]) -> str:
    text = files(package).joinpath(f"{name}.py").read_text(encoding="utf-8")
    before = []
    for where, sibling in _IMPORT.findall(text):
        if sibling not in there:
            there.add(sibling)
            before.append(_with_siblings(where, sibling, there))
    return "\n".join([*before, _IMPORT.sub("", text)])
