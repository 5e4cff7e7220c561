"""What profiles need of a model's tensor table beside the shared rules: sizes of what is served, and a digest that names the content."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from splitinference.core.values.profile import Profile
from splitinference_modelfiles.stored.headers import TensorInfo

BYTES_PER_ELEMENT = {"float32": 4, "float16": 2, "bfloat16": 2}

Tensors = dict[str, TensorInfo]


def elements(tensors: Iterable[TensorInfo]) -> int:
    """Numbers in all of them."""
    return sum(tensor.elements for tensor in tensors)


def matrix_elements(tensors: Iterable[TensorInfo]) -> int:
    """Numbers in those that are multiplied with: of two and more dimensions."""
    return sum(tensor.elements for tensor in tensors if len(tensor.shape) >= 2)


def content_digest(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """What names the model's content: configuration and tensor table."""
    table = {name: [t.dtype, list(t.shape), t.bytes] for name, t in tensors.items()}
    content = json.dumps([dict(config), table], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def with_content(profile: Profile, content: str, commit: str) -> Profile:
    """The profile of a model whose content is known by a digest or a commit: its own digest then names that too, so that other weights of
    the same shape are another model."""
    if not content and not commit:
        return profile
    named = hashlib.sha256(f"{profile.digest} {content} {commit}".encode()).hexdigest()
    return profile.model_copy(update={"digest": named, "content": content, "commit": commit})
