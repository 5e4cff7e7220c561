"""llama.cpp beside the others in `bench serve`: runs inside a container of the segment image, by `python - '<settings>' < this file`.

The weights are those of a GGUF file, encoded anew in the precision of the run; they are served by xllamacpp, llama.cpp's own server as a
Python package. That package is mounted; the `gguf` package is the segment image's.
"""

import importlib
import json
import sys
import time
from typing import Any

CONVERT = "/opt/convert"
ENCODED = "/tmp/model.gguf"


def encode(source: str, target: str, dtype: str) -> None:
    """The same model with every matrix in `dtype` (bfloat16, float16, float32); vectors are float32, as llama.cpp wants them."""
    gguf: Any = importlib.import_module("gguf")
    kinds, quants = gguf.GGMLQuantizationType, gguf.quants
    kind = {"bfloat16": kinds.BF16, "float16": kinds.F16, "float32": kinds.F32}[dtype]
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    told = {"general.architecture", "general.file_type", "general.quantization_version"}
    for field in reader.fields.values():
        if field.name not in told and not field.name.startswith("GGUF."):
            array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=field.types[-1] if array else None)
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        into = kinds.F32 if values.ndim == 1 else kind
        writer.add_tensor(tensor.name, quants.quantize(values, into), raw_dtype=into)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(model: str, *, port: int, threads: int, clients: int, context: int) -> None:
    """OpenAI's API on loopback until the process is ended. Nothing is reused of earlier prompts."""
    llama: Any = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = model
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_parallel, params.n_ctx = clients, clients * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_prompt, params.cache_ram_mib = False, 0
    server = llama.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(3600)


def main(asked: dict[str, Any]) -> None:
    """Encode, then serve."""
    sys.path.append(CONVERT)
    encode(asked["source"], ENCODED, asked["dtype"])
    serve(ENCODED, port=asked["port"], threads=asked["threads"], clients=asked["clients"], context=asked["context"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
