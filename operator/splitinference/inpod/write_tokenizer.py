"""Write what the gateway reads of a GGUF model, from its metadata: tokenizer, chat template, tokens that end an answer, positions.

Runs as init container of the gateway. What is wrong goes to stderr in one line, exit 1.

Usage: write_tokenizer.py <folder to write> <file> <folder of the model>
       write_tokenizer.py <folder to write> <file> <endpoint> <repository> <revision>, and HF_TOKEN.
"""

import json
import os
import sys
from typing import Any

from splitinference.inpod.hub_client import FAULTS, in_words, listing, patiently, token_of_the_environment
from splitinference.inpod.hub_gguf import hub_gguf
from splitinference.inpod.packed import complain
from splitinference_modelfiles.gguf_files.gguf import GgufModel
from splitinference_modelfiles.gguf_files.gguf_folder import described, gguf_model, gguf_names
from splitinference_modelfiles.gguf_files.gguf_models import gguf_sizes
from splitinference_modelfiles.gguf_files.gguf_tokenizer import tokenizer_files


def gateway_files(model: GgufModel) -> dict[str, Any]:
    """Name → content as JSON. ModelRefusedError where the model is not served."""
    sizes = gguf_sizes(described(model), model.tensors)
    config = {"model_type": sizes.architecture, "max_position_embeddings": sizes.positions, "vocab_size": sizes.vocabulary}
    return {**tokenizer_files(model.metadata), "config.json": config}


def main(out: str, file: str, *source: str) -> int:
    """Write the files; return the exit status."""
    try:
        if len(source) == 1:
            model = gguf_model(source[0], gguf_names(source[0], file), file)
        else:
            endpoint, repository, revision = source
            token = token_of_the_environment()
            commit, files = patiently(listing, endpoint, repository, revision, token)
            model = hub_gguf(f"{endpoint}/{repository}/resolve/{commit}/", files, file, token)
        for name, content in gateway_files(model).items():
            part = os.path.join(out, f"{name}.part")
            with open(part, "w", encoding="utf-8") as written:
                json.dump(content, written)
            os.replace(part, os.path.join(out, name))
    except (*FAULTS, KeyError, TypeError) as error:
        complain(in_words(error, file))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:6]))
