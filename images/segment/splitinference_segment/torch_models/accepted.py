"""Whether the model in a folder is served, by the rules that the planner has accepted it by. Without torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitinference_modelfiles.models import Model, served_model
from splitinference_modelfiles.stored.folder import CONFIG, file_names, read_json, tensor_tables
from splitinference_modelfiles.stored.headers import ModelRefusedError
from splitinference_segment.torch_models.families import UnsupportedModelError


def accepted(folder: Path) -> tuple[Mapping[str, Any], Model]:
    """The configuration and what the model is. UnsupportedModelError with the planner's own words where it is not served.

    Of weight files that the index names only those of this segment's layers need be here. The tokenizer is the gateway's.
    """
    try:
        config = read_json(str(folder), CONFIG)
        file_of, table = tensor_tables(str(folder), partial=True)
        return config, served_model(config, {name: table.get(name) for name in file_of}, file_names(str(folder)), tokenizer=False)
    except ModelRefusedError as error:
        raise UnsupportedModelError(str(error)) from error
