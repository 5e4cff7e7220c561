"""A model whose key comes from a key broker: it serves as the plain one does, and each thing that can be wrong has its reason."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jwcrypto import jwk
from key_broker import Agent, Broker, served
from quantized_checkpoints import quantized
from quantized_models import run
from safetensors import safe_open

from splitinference_modelfiles import sealed
from splitinference_modelfiles.sealing import encrypt
from splitinference_modelfiles.stored.headers import header_length
from splitinference_segment.torch_models.encrypted import model_key
from splitinference_segment.torch_models.encrypted.model_key import KeyBroker, ModelKeyError, key_of_model
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.weights import Weights

RESOURCE = "default/models/chat"
KEY = bytes(range(32))


@pytest.fixture
def broker() -> Broker:
    return Broker({RESOURCE: KEY})


@pytest.fixture
def agent(broker: Broker) -> Iterator[Agent]:
    made = Agent(broker)
    with served(broker, made):
        yield made


def asked(guest: Agent, **changes: object) -> KeyBroker:
    return KeyBroker(**{"url": guest.broker.url, "resource": RESOURCE, "agent": guest.url, **changes})  # type: ignore[arg-type]


def reason(broker: KeyBroker) -> str:
    with pytest.raises(ModelKeyError) as refused:
        broker.key()
    assert str(refused.value).startswith(f"{refused.value.reason}: "), "as the operator reads it"
    assert refused.value.reason in sealed.REASONS
    return refused.value.reason


@pytest.mark.parametrize(
    ("kind", "algorithm", "repeats"), [("EC", "ECDH-ES+A256KW", False), ("RSA", "RSA-OAEP-256", False), ("RSA", "RSA-OAEP-256", True)]
)
def test_an_attested_guest_gets_the_key(agent: Agent, kind: str, algorithm: str, repeats: bool) -> None:
    agent.kind, agent.broker.algorithm, agent.broker.repeats_header = kind, algorithm, repeats
    assert asked(agent).key() == KEY
    assert agent.broker.asked == ["POST /kbs/v0/auth", "POST /kbs/v0/attest", f"GET /kbs/v0/resource/{RESOURCE}"]


def test_a_guest_that_is_another_than_was_meant_gets_nothing(agent: Agent) -> None:
    agent.measurement = "another kernel"
    assert reason(asked(agent)) == "AttestationRefused"
    assert not any("resource" in line for line in agent.broker.asked)


def test_a_policy_may_keep_the_key_and_a_key_may_be_missing(agent: Agent) -> None:
    agent.broker.policy = {RESOURCE}
    assert reason(asked(agent)) == "ModelKeyNotReleased"
    assert reason(asked(agent, resource="default/models/other")) == "ModelKeyMissing"


def test_a_broker_that_is_down_and_a_guest_without_an_agent_are_told_apart(agent: Agent) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        assert reason(asked(agent, url=closed)) == "KeyBrokerUnreachable"
        assert reason(asked(agent, agent=closed)) == "AttestationUnavailable"


def test_a_broker_that_was_restarted_and_does_not_know_the_token(agent: Agent) -> None:
    agent.broker.signer, before = jwk.JWK.generate(kty="EC", crv="P-256"), agent.broker._attested
    other = jwk.JWK.generate(kty="EC", crv="P-256")

    def attested(*arguments: object) -> object:
        found = before(*arguments)  # type: ignore[arg-type]
        agent.broker.signer = other
        return found

    agent.broker._attested = attested  # type: ignore[method-assign, assignment]
    assert reason(asked(agent)) == "AttestationRefused"


def test_a_key_for_another_guest_cannot_be_opened_here(agent: Agent) -> None:
    """Whoever has the token, but not the key pair that the evidence vouches for."""
    agent.pair = jwk.JWK.generate(kty="EC", crv="P-256")
    assert reason(asked(agent)) == "ModelKeyNotReleased"


def test_the_token_goes_to_nobody_else(agent: Agent) -> None:
    other = Broker({RESOURCE: KEY})
    with served(other):
        found = asked(agent)
        token = found._attested()
        agent.broker.redirects = f"{other.url}/kbs/v0/resource/{RESOURCE}"
        object.__setattr__(found, "agent", agent.url)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KeyBroker, "_attested", lambda _: token)
            assert reason(found) == "KeyBrokerUnreachable"
    assert other.asked == []


def test_an_answer_without_end_is_not_read_to_its_end(agent: Agent) -> None:
    agent.broker.resources[RESOURCE] = bytes(2 << 20)
    assert reason(asked(agent)) == "KeyBrokerUnreachable"


# --- the weights -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(models: dict[str, Path], tmp_path: Path) -> Path:
    target = tmp_path / "locked"
    shutil.copytree(models["llama"], target)
    encrypt(models["llama"] / "model.safetensors", target / "model.safetensors", KEY)
    return target


@pytest.fixture
def with_key(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    for name, value in {"SI_KEY_BROKER_URL": agent.broker.url, "SI_KEY_RESOURCE": RESOURCE}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(KeyBroker.__init__, "__defaults__", (None, agent.url))
    key_of_model.cache_clear()
    yield agent
    key_of_model.cache_clear()


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    blocks = Layers(folder, 1, 4, torch.float32).blocks
    return {f"{number}.{name}": tensor for number, block in enumerate(blocks) for name, tensor in block.state_dict().items()}


def test_decrypted_layers_are_the_plain_ones_bit_for_bit(locked: Path, models: dict[str, Path], with_key: Agent) -> None:
    found = loaded(locked)
    monkey = pytest.MonkeyPatch()
    monkey.delenv("SI_KEY_BROKER_URL")
    key_of_model.cache_clear()
    plain = loaded(models["llama"])
    monkey.undo()
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert sum("resource" in line for line in with_key.broker.asked) == 1, "one key for all files"


def test_nothing_of_the_weights_is_on_the_disk(locked: Path, models: dict[str, Path]) -> None:
    plain = (models["llama"] / "model.safetensors").read_bytes()
    start = 8 + header_length(plain[:8], "model.safetensors")
    there = (locked / "model.safetensors").read_bytes()
    assert len(there) > len(plain)
    assert all(plain[at : at + 32] not in there for at in range(start, len(plain) - 32, 4096))


def refused(folder: Path) -> str:
    key_of_model.cache_clear()
    with pytest.raises(ModelKeyError) as found:
        Weights(folder).read(list(Weights(folder)._table), torch.float32, torch.device("cpu"))
    return str(found.value)


def test_another_key_says_so(locked: Path, with_key: Agent) -> None:
    with_key.broker.resources[RESOURCE] = bytes(32)
    assert refused(locked) == "WrongModelKey: model.safetensors was encrypted with another key"
    with_key.broker.resources[RESOURCE] = b"short"
    assert refused(locked).startswith("WrongModelKey: what the key broker gave is no key: a key has 32 bytes, this one has 5")


def test_one_changed_bit_is_found_and_named(locked: Path, with_key: Agent) -> None:
    path = locked / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "ModelTampered: model.safetensors: tensor " in refused(locked)


@pytest.mark.parametrize("what", ["tags", "shapes", "exchanged", "renamed"])
def test_a_changed_table_is_found(locked: Path, with_key: Agent, what: str) -> None:
    path = locked / "model.safetensors"
    content = path.read_bytes()
    size = header_length(content[:8], path.name)
    table = json.loads(content[8 : 8 + size])
    same = [name for name in table if name.endswith("input_layernorm.weight")][:2]
    tags = json.loads(table["__metadata__"]["encryption_tags"])
    if what == "tags":
        tags[same[0]] = tags[same[1]]
    elif what == "shapes":
        table[same[0]]["shape"] = [1, *table[same[0]]["shape"]]
    elif what == "exchanged":  # tensors of the same shape, with their tags
        table[same[0]], table[same[1]] = table[same[1]], table[same[0]]
        tags[same[0]], tags[same[1]] = tags[same[1]], tags[same[0]]
    else:
        with_key.broker.asked.clear()
        path.rename(locked / "other.safetensors")
        path = locked / "other.safetensors"
    table["__metadata__"]["encryption_tags"] = json.dumps(tags)
    header = json.dumps(table).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    assert "ModelTampered: " in refused(locked)


def test_plain_files_where_encrypted_ones_are_meant_are_refused_and_the_other_way_round(
    locked: Path, models: dict[str, Path], with_key: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write the folder could put a model of their own there."""
    assert refused(models["llama"]).startswith("ModelNotEncrypted: model.safetensors is not encrypted")
    monkeypatch.delenv("SI_KEY_BROKER_URL")
    assert refused(locked).startswith("ModelNotEncrypted: model.safetensors is encrypted")


def test_pieces_larger_than_one_and_empty_tensors(tmp_path: Path, with_key: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    from splitinference_segment.torch_models.encrypted.sealed import open_tensors

    monkeypatch.setattr(sealed, "PIECE", 100)
    made = {"a": torch.arange(333, dtype=torch.int64), "b": torch.zeros(0), "c": torch.randn(7, 5).bfloat16()}
    save_file(made, tmp_path / "plain.safetensors")
    encrypt(tmp_path / "plain.safetensors", tmp_path / "m.safetensors", KEY)
    with open_tensors(str(tmp_path / "m.safetensors")) as found:
        assert all(torch.equal(found.get_tensor(name), tensor) for name, tensor in made.items())
    with safe_open(tmp_path / "m.safetensors", framework="pt") as stored:
        assert not torch.equal(stored.get_tensor("a"), made["a"])


def test_each_encryption_of_the_same_file_is_another(tmp_path: Path, models: dict[str, Path]) -> None:
    for name in ("one", "two"):
        encrypt(models["llama"] / "model.safetensors", tmp_path / name, KEY)
    one, two = ((tmp_path / name).read_bytes()[-4096:] for name in ("one", "two"))
    assert one != two


def test_without_variables_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SI_KEY_BROKER_URL", raising=False)
    assert KeyBroker.of({}) is None
    found = KeyBroker.of({"SI_KEY_BROKER_URL": "https://kbs/", "SI_KEY_RESOURCE": "a/b/c", "SI_KEY_BROKER_CA": "/ca.crt"})
    assert found == KeyBroker("https://kbs", "a/b/c", Path("/ca.crt"), model_key.AGENT)


@pytest.mark.parametrize(
    "case",
    [("llama", "Int8", ""), ("llama-tied", "Int4", ""), ("gpt2", "Int4", ""), ("llama", "AsStored", "GPTQ"),
     ("llama", "AsStored", "FP8 in blocks")],
)  # fmt: skip
def test_codes_of_an_encrypted_model_are_those_of_the_plain_one(
    case: tuple[str, str, str], models: dict[str, Path], tmp_path: Path, with_key: Agent
) -> None:
    """Encrypted bytes would make codes, too: of numbers that mean nothing."""
    name, weights, form = case
    plain = quantized(models[name], tmp_path / "plain", form) if form else models[name]
    shutil.copytree(plain, tmp_path / "locked")
    encrypt(plain / "model.safetensors", tmp_path / "locked" / "model.safetensors", KEY)
    found = logits(tmp_path / "locked", weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SI_KEY_BROKER_URL")
        key_of_model.cache_clear()
        assert torch.equal(found, logits(plain, weights))
        with pytest.raises(ModelKeyError, match="name the key broker"):
            logits(tmp_path / "locked", weights)


@pytest.mark.parametrize("weights", ["Int8", "Int4"])
def test_a_changed_bit_is_found_while_weights_are_quantized(weights: str, locked: Path, with_key: Agent) -> None:
    path = locked / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelKeyError, match="ModelTampered: "):
        logits(locked, weights)


def logits(folder: Path, weights: str) -> torch.Tensor:
    return run([Layers(folder, 0, 3, torch.float32, weights=weights), Layers(folder, 3, 7, torch.float32, weights=weights)], [5, 99, 17, 3])
