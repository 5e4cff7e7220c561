"""These tests need libllama as the image builds it (SI_LIBLLAMA names its folder); without it none is collected.

Servers and clients are those of the torch engine's tests.
"""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob: list[str] = []
if find_spec("numpy") is None or find_spec("splitinference_segment") is None:
    collect_ignore_glob = ["*.py"]
else:
    from splitinference_segment.llamacpp.library import FOLDER, NAME

    if (FOLDER / NAME).exists():
        sys.path.insert(0, str(Path(__file__).parent.parent / "segment"))
        from servers import Chains

        @pytest.fixture(scope="session")
        def chains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chains]:
            made = Chains(tmp_path_factory.mktemp("servers"))
            yield made
            made.close()
    else:
        collect_ignore_glob = ["*.py"]
