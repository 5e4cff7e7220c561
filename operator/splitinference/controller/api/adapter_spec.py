"""`spec.adapters`: LoRA adapters that clients name as the model."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from splitinference.controller.api.sections.model_spec import ModelSource
from splitinference.controller.api.sections.spec_value import SpecValue

MOST_ADAPTERS = 32
AdapterName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._/]*[A-Za-z0-9])?$")]


class AdapterSpec(SpecValue):
    """One adapter: what clients call it, and the folder in PEFT's format."""

    name: AdapterName
    source: ModelSource

    @model_validator(mode="after")
    def _is_a_folder(self) -> Self:
        if self.source.gguf is not None:
            raise ValueError(f"source names {self.source.gguf}: an adapter is a folder in PEFT's format, and GGUF adapters are not served")
        return self
