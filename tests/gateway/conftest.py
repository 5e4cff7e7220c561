"""What all of the gateway's tests share."""

from pathlib import Path

import pytest

from tests.gateway.model_folder import write_model


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))
