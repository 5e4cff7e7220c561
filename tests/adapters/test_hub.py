"""Reading a model's shape from a hub: tables by range, never the weights, and the token for the hub alone."""

import pytest

from splitinference.adapters.hub import FIRST_BYTES, Hub, HubError
from splitinference.controller.resource import HuggingFaceSource
from tests.inpod.hub import a_hub
from tests.inpod.test_read_model import safetensors

SOURCE = HuggingFaceSource(repository="owner/model")
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "a.safetensors": safetensors({"model.embed_tokens.weight": ("BF16", [8, 2], 32)}) + bytes(4 * FIRST_BYTES),
    "b.safetensors": safetensors({f"model.layers.{i}.w": ("F32", [2], 8) for i in range(4000)}),
}


def test_configuration_and_tables_are_read_without_the_weights():
    with a_hub(FILES) as hub:
        config, tensors = Hub(hub.url).read(SOURCE, None)
        assert sum(int(r.headers["range"].split("-")[1]) + 1 for r in hub.stored) < 4 * FIRST_BYTES
    assert config == {"model_type": "llama"}
    assert tensors["model.embed_tokens.weight"].shape == (8, 2)
    assert len(tensors) == 4001, "a table longer than the first request is read to its end"


def test_the_token_does_not_follow_redirects():
    with a_hub(FILES, token="hf_secret") as hub:
        Hub(hub.url).read(SOURCE, "hf_secret")
        assert all(request.headers["authorization"] == "Bearer hf_secret" for request in hub.asked)
        assert not any("authorization" in request.headers for request in hub.stored)


def test_a_wrong_token_is_said_without_it():
    with a_hub(FILES, token="hf_secret") as hub, pytest.raises(HubError, match="is the token right") as caught:
        Hub(hub.url).read(SOURCE, "hf_wrong")
    assert "hf_wrong" not in str(caught.value)


@pytest.mark.parametrize("missing", ["config.json", "a.safetensors"])
def test_a_repository_without_a_model_is_said(missing):
    with a_hub({missing: b"{}"}) as hub, pytest.raises(HubError, match=r"no config\.json or no"):
        Hub(hub.url).read(SOURCE, None)


def test_a_revision_that_is_not_there_is_said():
    with a_hub(FILES) as hub, pytest.raises(HubError, match="404"):
        Hub(hub.url).read(HuggingFaceSource(repository="owner/model", revision="v2"), None)


def test_a_hub_that_is_not_there_is_said():
    with a_hub(FILES) as hub:
        pass
    with pytest.raises(HubError, match="cannot be reached"):
        Hub(hub.url).read(SOURCE, None)
