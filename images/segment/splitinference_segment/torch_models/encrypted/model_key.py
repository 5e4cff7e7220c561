"""The key of an encrypted model, from a key broker that releases it to attested guests (Trustee's KBS).

The attestation agent of the guest proves to the broker where it runs, as only it can speak to the hardware (`/kbs/v0/auth` and
`/kbs/v0/attest`). It gives us the broker's token and the key pair that the evidence vouches for. With the token we ask the broker for the
resource; the answer is a JWE for that key pair, so nobody on the way can read it. The key is held in this process' memory alone.
"""

import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from splitinference_modelfiles.sealed import NO_AGENT, NO_KEY, NOT_RELEASED, REFUSED, UNREACHABLE

AGENT = "http://127.0.0.1:8006"
"""Where a guest of Confidential Containers has its API; it listens on the guest's loopback alone."""
_SECONDS = 20.0
_MOST = 1 << 20
_ALGORITHMS = ("RSA-OAEP-256", "RSA-OAEP", "ECDH-ES", "ECDH-ES+A128KW", "ECDH-ES+A256KW", "A128GCM", "A192GCM", "A256GCM")


class ModelKeyError(Exception):
    """The model cannot be decrypted. `reason` is that of the condition; the message says what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class KeyBroker:
    """Where the key is. `resource`: repository/type/tag; `authority`: PEM of who certifies the broker (None: the system's)."""

    url: str
    resource: str
    authority: Path | None = None
    agent: str = AGENT

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "KeyBroker | None":
        """As the pod's variables say; None where the model is not encrypted."""
        if not (url := environment.get("SI_KEY_BROKER_URL", "")):
            return None
        authority = environment.get("SI_KEY_BROKER_CA", "")
        return cls(url.rstrip("/"), environment.get("SI_KEY_RESOURCE", ""), Path(authority) if authority else None)

    def key(self) -> bytes:
        """The resource's content.

        Raises:
            ModelKeyError: agent or broker cannot be reached, or one of them refuses.
        """
        token, pair = self._attested()
        try:
            answer = _get(f"{self.url}/kbs/v0/resource/{self.resource}", {"Authorization": f"Bearer {token}"}, self._context())
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from error
        except (OSError, ValueError) as error:
            raise ModelKeyError(UNREACHABLE, f"{self.url} does not answer: {_short(error)}") from error
        return _opened(answer, pair)

    def _attested(self) -> tuple[str, str]:
        """The broker's token, and the key pair of it in PEM."""
        try:
            told = json.loads(_get(f"{self.agent}/aa/token?token_type=kbs", {}, None))
            return str(told["token"]), str(told["tee_keypair"])
        except urllib.error.HTTPError as error:
            said = _short(error.read(2000).decode(errors="replace"))
            raise ModelKeyError(REFUSED, f"the guest's agent got no token of the key broker ({error.code}): {said}") from error
        except OSError as error:
            message = f"no attestation agent at {self.agent} ({_short(error)}): the pod needs a RuntimeClass of confidential containers"
            raise ModelKeyError(NO_AGENT, message) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ModelKeyError(NO_AGENT, f"{self.agent} does not speak as an attestation agent: {_short(error)}") from error

    def _refusal(self, error: urllib.error.HTTPError) -> ModelKeyError:
        said = _short(error.read(2000).decode(errors="replace"))
        if error.code == 401:
            return ModelKeyError(REFUSED, f"{self.url} does not accept the guest's token: {said}")
        if error.code == 403:
            return ModelKeyError(NOT_RELEASED, f"the broker's policy keeps {self.resource} from this guest: {said}")
        if error.code == 404:
            return ModelKeyError(NO_KEY, f"{self.url} has no resource {self.resource}: {said}")
        return ModelKeyError(UNREACHABLE, f"{self.url} answers {error.code}: {said}")

    def _context(self) -> ssl.SSLContext | None:
        if not self.url.startswith("https://"):
            return None
        return ssl.create_default_context(cafile=str(self.authority) if self.authority is not None else None)


@cache
def key_of_model() -> bytes | None:
    """The key that this process' variables lead to, asked for once; None where the model is not encrypted. Raises ModelKeyError."""
    broker = KeyBroker.of()
    return broker.key() if broker is not None else None


def _get(url: str, headers: Mapping[str, str], context: ssl.SSLContext | None) -> bytes:
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=_SECONDS) as answer:
        content: bytes = answer.read(_MOST + 1)
    if len(content) > _MOST:
        raise ValueError(f"the answer is longer than {_MOST} bytes")
    return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token goes to the broker that was named, and to nobody else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """None: the answer is an error."""
        return None  # noqa: RET501 - what urllib asks for


def _opened(answer: bytes, pair: str) -> bytes:
    """The content of a JWE for this key pair."""
    from jwcrypto import jwe, jwk
    from jwcrypto.common import JWException

    try:
        fields = json.loads(answer)
        if fields.get("aad") == fields.get("protected"):  # older brokers say so what the header is by itself
            fields.pop("aad", None)
        message = jwe.JWE(algs=list(_ALGORITHMS))
        message.deserialize(json.dumps(fields))
        message.decrypt(jwk.JWK.from_pem(pair.encode()))
        return bytes(message.payload)
    except (JWException, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelKeyError(NOT_RELEASED, f"what the broker gave cannot be opened with the guest's key: {_short(error)}") from error


def _short(error: object) -> str:
    return str(error).replace("\n", " ")[:300] or type(error).__name__
