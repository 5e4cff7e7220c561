"""These tests run inside the segment image (`docker build --target test`), which has torch and Triton; elsewhere none is collected."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("torch") is None or find_spec("splitinference_segment") is None:
    collect_ignore_glob = ["*.py"]
else:
    from random_models import CONFIGS, write_model
    from servers import Chain, Chains

    @pytest.fixture(scope="session")
    def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        root = tmp_path_factory.mktemp("models")
        return {name: write_model(config, root / name) for name, config in CONFIGS.items()}

    @pytest.fixture(scope="session")
    def prompt() -> list[int]:
        return [5, 99, 17, 3, 150, 42, 42, 8, 201, 77, 30, 12, 64, 9, 110, 23, 7, 181, 55, 2]

    @pytest.fixture(scope="session")
    def chains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chains]:
        made = Chains(tmp_path_factory.mktemp("logs"))
        yield made
        made.close()

    @pytest.fixture(scope="session")
    def halves(chains: Chains, models: dict[str, Path]) -> Chain:
        """A Llama in two segments, for tests that leave it as it was but for what one sequence "s" holds."""
        return chains.start(models["llama"], [0, 3, 7])
