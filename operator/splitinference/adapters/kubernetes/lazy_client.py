"""The official client without its 900 classes: each is loaded when it is named. To be imported before anything that imports the client.

`kubernetes.client` and its packages `api` and `models` import every API and every model. The operator asks by paths and reads plain
objects, so it needs a handful of them. Here those three packages find a name's module in their own `__init__.py`, which only lists
imports, and import it at the name's first use (PEP 562). What it saves: docs/decisions/0065-lazy-client.md.
"""

import ast
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = frozenset({"kubernetes.client", "kubernetes.client.api", "kubernetes.client.models"})


def listed(source: str) -> tuple[dict[str, str], dict[str, object]] | None:
    """Names that a package imports with their modules, and its constants; None if its source does anything else."""
    names, constants = dict[str, str](), dict[str, object]()
    for node in ast.parse(source).body:
        match node:
            case ast.ImportFrom(module="__future__") | ast.Expr(value=ast.Constant()):
                continue
            case ast.ImportFrom(module=str(module), level=0, names=found) if all(one.name != "*" for one in found):
                names |= {one.asname or one.name: f"{module}:{one.name}" for one in found}
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                constants[name] = value
            case _:
                return None
    return names, constants


class LazyLoader(Loader):
    """Makes a package whose names are imported when they are used."""

    def __init__(self, names: Mapping[str, str], constants: Mapping[str, object]) -> None:
        """`names`: each with `module:attribute`."""
        self._names, self._constants = names, constants

    def create_module(self, spec: ModuleSpec) -> None:
        """As usual."""

    def exec_module(self, module: ModuleType) -> None:
        """Give it its constants, and a way to the rest."""

        def found(name: str) -> object:
            where = self._names.get(name)
            if where is None:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            home, _, attribute = where.partition(":")
            value: object = getattr(import_module(home), attribute)
            setattr(module, name, value)
            return value

        vars(module).update(self._constants, __getattr__=found, __dir__=lambda: sorted({*vars(module), *self._names}))


class LazyFinder(MetaPathFinder):
    """Finds the client's packages; whatever does not look as expected is left to the usual import."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The package with LazyLoader, or None."""
        if fullname not in PACKAGES:
            return None
        usual = PathFinder.find_spec(fullname, path)
        if usual is None or usual.origin is None or usual.submodule_search_locations is None:
            return None
        read = listed(Path(usual.origin).read_text("utf-8"))
        if read is None:
            return None
        return importlib.util.spec_from_file_location(
            fullname, usual.origin, loader=LazyLoader(*read), submodule_search_locations=usual.submodule_search_locations
        )


def install() -> None:
    """From now on; nothing if the client is loaded already, or this was called before."""
    if "kubernetes.client" not in sys.modules and not any(isinstance(finder, LazyFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, LazyFinder())


install()
