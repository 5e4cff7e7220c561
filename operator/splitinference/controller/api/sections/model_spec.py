"""`spec.model`: which model, where its files are, and what computes it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from splitinference.controller.api.sections.spec_value import SpecValue


class SecretKey(SpecValue):
    """A key of a Secret in the resource's namespace."""

    name: str
    key: str = "token"


class ClaimSource(SpecValue):
    """A folder in a PersistentVolumeClaim."""

    claim_name: str
    path: str = ""


class HostPathSource(SpecValue):
    """A folder on every node that may run a segment."""

    path: str


class HuggingFaceSource(SpecValue):
    """A repository of the Hugging Face hub."""

    repository: str
    revision: str = "main"
    token_secret_ref: SecretKey | None = None


class ModelSource(SpecValue):
    """Where the model's files are: exactly one."""

    persistent_volume_claim: ClaimSource | None = None
    host_path: HostPathSource | None = None
    hugging_face: HuggingFaceSource | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in ("persistent_volume_claim", "host_path", "hugging_face") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("must have exactly one of persistentVolumeClaim, hostPath and huggingFace")
        return self

    @property
    def gguf(self) -> str | None:
        """The name of the GGUF file that the path names; None where it names a folder."""
        path = (self.host_path and self.host_path.path) or (self.persistent_volume_claim and self.persistent_volume_claim.path) or ""
        return path.rstrip("/").rpartition("/")[2] if path.rstrip("/").endswith(".gguf") else None

    def describe(self) -> str:
        """In words, for messages."""
        what = "file" if self.gguf else "folder"
        if self.host_path:
            return f"the {what} {self.host_path.path} on the nodes"
        if claim := self.persistent_volume_claim:
            return f"the {what} {claim.path or '/'} of the claim {claim.claim_name}"
        assert self.hugging_face is not None  # noqa: S101 - what the validator above ensures
        return f"{self.hugging_face.repository} at {self.hugging_face.revision} on the Hugging Face hub"


class ConfigMapKey(SpecValue):
    """A key of a ConfigMap in the resource's namespace."""

    name: str
    key: str = "ca.crt"


class KeyBroker(SpecValue):
    """A key broker service, and the resource in it that is the model's key: repository/type/tag."""

    url: Annotated[str, Field(max_length=512, pattern=r"^https://[A-Za-z0-9.:\-]+(/[A-Za-z0-9._~/\-]*)?$")]
    resource: Annotated[str, Field(max_length=256, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._]*(/[A-Za-z0-9][-A-Za-z0-9._]*){2}$")]
    ca_config_map_ref: ConfigMapKey | None = None


class Encryption(SpecValue):
    """The weights are encrypted; segments get the key from a key broker, after the attestation of where they run."""

    key_broker: KeyBroker


GgufName = Annotated[str, Field(max_length=512, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._+]*(/[A-Za-z0-9][-A-Za-z0-9._+]*)*\.gguf$")]


class Model(SpecValue):
    """The model and how it is held. `file`: the GGUF file, where the source has several."""

    id: str = Field(min_length=1, max_length=128)
    source: ModelSource
    engine: Literal["Auto", "Torch", "LlamaCpp"] = "Auto"
    file: GgufName | None = None
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    encryption: Encryption | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_context_tokens: int = Field(default=2048, ge=16)
    max_concurrent_sequences: int = Field(default=4, ge=1, le=1024)

    @property
    def gguf(self) -> str | None:
        """The GGUF file that the source or `file` names; None where neither does."""
        return self.file or self.source.gguf

    @property
    def may_be_gguf(self) -> bool:
        """Whether llama.cpp may be what computes it, as far as the spec says."""
        return self.engine == "LlamaCpp" or (self.engine == "Auto" and self.gguf is not None)

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        if self.engine == "Torch" and self.gguf is not None:
            raise ValueError(
                f"engine Torch does not read {self.gguf}: it needs engine Auto or LlamaCpp, or convert it with segment-convert"
            )
        if self.file is not None and self.source.gguf is not None:
            raise ValueError("file must not be set where source names a GGUF file itself")
        if self.digest is not None and self.may_be_gguf:
            raise ValueError("digest is available for safetensors alone: segments with llama.cpp do not check their tensors")
        if self.encryption is not None and self.may_be_gguf:
            raise ValueError("encryption is available for safetensors alone: llama.cpp does not read encrypted files")
        if self.encryption is not None and self.digest is not None:
            raise ValueError("digest must not be set with encryption: the encryption proves the content, with a key for each model")
        return self

    @property
    def max_running_sequences(self) -> int:
        """How many may run where they are short: the KV planned for is what bounds them, and this what a segment keeps account of."""
        return 4 * self.max_concurrent_sequences
