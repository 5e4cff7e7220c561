"""Settings of how models are read, kept on nodes and checked."""

from pydantic import Field
from pydantic_settings import BaseSettings


class ModelSettings(BaseSettings):
    """Where models come from, and how long reading one may take."""

    model_cache_path: str = Field(
        default="",
        description=(
            "Folder on every node, writable for the pods' user, that keeps models of the Hugging Face hub between pods. Empty, the "
            "default: each pod fetches its files again, into its own volume."
        ),
    )
    model_cache_gib: float = Field(
        default=200.0,
        ge=0,
        description=(
            "Largest size of that folder on each node, in GiB. Weights that were used least lately go first, but never those of a running "
            "segment. 0: no limit. 200: a few models of 70 GB in parts."
        ),
    )
    hugging_face_endpoint: str = Field(default="https://huggingface.co", description="Address of the Hugging Face hub, or of a mirror.")
    profile_seconds: int = Field(
        default=60,
        ge=10,
        description="Time limit for a pod that reads a model's configuration, image pull included. After that, the next node is tried.",
    )
    digest_seconds: float = Field(
        default=20.0,
        ge=0,
        description=(
            "How long the digests of a model's tensors may take when the model is read from a folder. Segments check them. A model "
            "that takes longer has none, unless `spec.model.digest` asks for it. 0: never without. Twenty seconds: 20 GB from a local "
            "disk."
        ),
    )
    expected_digest_seconds: int = Field(
        default=3600,
        ge=60,
        description=(
            "Additional time limit for a pod that reads a model with `spec.model.digest`: it reads all of the model once. One hour: "
            "400 GB at 1 Gbit/s."
        ),
    )
    profile_retry_seconds: int = Field(
        default=120, ge=10, description="If no node could read the model, all are tried again after this time."
    )
