"""Encrypted weights: a safetensors file whose table is as it was, and whose tensors are AES-256-GCM ciphertext of the same length.

The planner reads the table without any key, and a segment decrypts its own tensors alone. Of each file:

- its key is HKDF-SHA256 of the model's key with 32 random bytes as salt, so no two files share a key, and nonces may be counted;
- each tensor is cut into pieces of PIECE bytes; the nonce of one is the number of its tensor in the order of names, and its own;
- the associated data of a piece is the file's name, and the tensor's name, dtype, shape and piece: nothing can be exchanged or renamed;
- the tags of all pieces stand in the table's `__metadata__`, with the salt, and a value that only the right key gives.

The text needs `cryptography` only where something is encrypted or decrypted.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo

FORMAT = "splitinference-aes-256-gcm-1"
KEY_BYTES = 32
PIECE = 8 << 20
TAG = 16
REASONS = (
    "KeyBrokerUnreachable",
    "ModelKeyMissing",
    "ModelKeyNotReleased",
    "AttestationUnavailable",
    "AttestationRefused",
    "WrongModelKey",
    "ModelTampered",
    "ModelNotEncrypted",
)
"""Why a segment cannot decrypt its weights: what its last message begins with, and the reason of a condition."""
UNREACHABLE, NO_KEY, NOT_RELEASED, NO_AGENT, REFUSED, WRONG_KEY, TAMPERED, NOT_ENCRYPTED = REASONS
_FIELD, _SALT, _CHECK, _TAGS = "encryption", "encryption_salt", "encryption_check", "encryption_tags"
_MOST_TENSORS = 1 << 24


class WrongKeyError(Exception):
    """The key is another than the one that the file was encrypted with."""


class TamperedError(Exception):
    """Ciphertext, table or tags are not as they were written; the message names file and tensor."""


@dataclass(frozen=True)
class Seal:
    """What a file's table says of its encryption. `tags`: of each tensor in the order of names, 16 bytes for each piece."""

    salt: bytes
    check: bytes
    tags: Mapping[str, bytes]


def seal_of(header: bytes, file: str) -> Seal | None:
    """The encryption of a file with this table (what follows the first eight bytes); None where it is not encrypted.

    Raises:
        ModelRefusedError: it says that it is, and not how, or in a form that is not known.
    """
    metadata = json.loads(header).get("__metadata__") or {}
    if _FIELD not in metadata:
        return None
    if metadata[_FIELD] != FORMAT:
        raise ModelRefusedError(f"{file} is encrypted as {str(metadata[_FIELD])[:40]!r}; known is {FORMAT}")
    try:
        tags = {str(name): base64.b64decode(tag, validate=True) for name, tag in json.loads(metadata[_TAGS]).items()}
        salt, check = (base64.b64decode(metadata[name], validate=True) for name in (_SALT, _CHECK))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelRefusedError(f"{file} has damaged fields of its encryption: {str(error)[:100]}") from error
    return Seal(salt, check, tags)


class FileKey:
    """The key of one file, and what is made with it."""

    def __init__(self, key: bytes, salt: bytes, file: str, names: Sequence[str]) -> None:
        """`key`: the model's, 32 bytes. `names`: those of all tensors of the file. ValueError for a key of another length."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, this one has {len(key)}")
        derived = HKDF(algorithm=SHA256(), length=2 * KEY_BYTES, salt=salt, info=FORMAT.encode()).derive(key)
        self._aead, self._check = AESGCM(derived[:KEY_BYTES]), derived[KEY_BYTES:]
        self._file, self._number = file, {name: number for number, name in enumerate(sorted(names))}

    @property
    def check(self) -> bytes:
        """What tells this key from others and says nothing about it."""
        return hmac.digest(self._check, b"check", hashlib.sha256)[:TAG]

    def encrypted(self, name: str, info: TensorInfo, index: int, plain: bytes) -> tuple[bytes, bytes]:
        """Ciphertext of one piece, as long as the piece, and its tag."""
        both = self._aead.encrypt(self._nonce(name, index), plain, self._about(name, info, index))
        return both[:-TAG], both[-TAG:]

    def decrypted(self, name: str, info: TensorInfo, index: int, piece: bytes, tag: bytes) -> bytes:
        """The piece. TamperedError where it is not as it was written."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(self._nonce(name, index), piece + tag, self._about(name, info, index))
        except InvalidTag:
            raise TamperedError(f"{self._file}: tensor {name} is not what was encrypted (piece {index})") from None

    def _nonce(self, name: str, index: int) -> bytes:
        return self._number[name].to_bytes(4, "big") + index.to_bytes(4, "big") + bytes(4)

    def _about(self, name: str, info: TensorInfo, index: int) -> bytes:
        return json.dumps([FORMAT, self._file, name, info.dtype, list(info.shape), info.bytes, index]).encode()


def opened(key: bytes, seal: Seal, file: str, table: Mapping[str, TensorInfo]) -> FileKey:
    """The key of a file that is there.

    Raises:
        WrongKeyError: the model's key is another.
        TamperedError: tensors have no tags, or too few.
        ValueError: the key has another length.
    """
    made = FileKey(key, seal.salt, file, list(table))
    if not hmac.compare_digest(made.check, seal.check):
        raise WrongKeyError(f"{file} was encrypted with another key")
    if wrong := next((name for name, info in table.items() if len(seal.tags.get(name, b"")) != TAG * pieces(info)), None):
        raise TamperedError(f"{file}: tensor {wrong} does not have the tags of its pieces")
    return made


def pieces(info: TensorInfo) -> int:
    """Into how many pieces a tensor is cut; an empty one has one, so that it is authentic, too."""
    return max(1, -(-info.bytes // PIECE))


def bounds(info: TensorInfo) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each piece, in bytes of the tensor."""
    for index in range(pieces(info)):
        yield index, index * PIECE, min(info.bytes, (index + 1) * PIECE)


def sealed_header(header: bytes, salt: bytes, check: bytes, tags: Mapping[str, bytes]) -> bytes:
    """The table with what says how the tensors are encrypted, padded to eight bytes as the library writes it."""
    if len(tags) > _MOST_TENSORS:
        raise ModelRefusedError(f"{len(tags)} tensors in one file; at most {_MOST_TENSORS} can be encrypted")
    fields: dict[str, Any] = json.loads(header)
    text = {name: base64.b64encode(tag).decode() for name, tag in sorted(tags.items())}
    fields["__metadata__"] = {
        **(fields.get("__metadata__") or {}),
        _FIELD: FORMAT,
        _SALT: base64.b64encode(salt).decode(),
        _CHECK: base64.b64encode(check).decode(),
        _TAGS: json.dumps(text, separators=(",", ":")),
    }
    made = json.dumps(fields, separators=(",", ":")).encode()
    return made + b" " * (-len(made) % 8)
