"""The Triton side: reads META and DATA, answers through response senders. Tensors cross by DLPack alone.

Numpy arrays of other types than bytes come out wrong under numpy 2 in this backend, without an error; DLPack is right with any numpy.
"""

import gc
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from splitinference_segment.content import MismatchError, read_digests, tell
from splitinference_segment.layers import Layers
from splitinference_segment.links import Measure
from splitinference_segment.loading import is_stateless, load_layers
from splitinference_segment.meters import Meters
from splitinference_segment.segment import Segment
from splitinference_segment.settings import Settings
from splitinference_segment.tensor_segment import TensorSegment


class TritonPythonModel:
    """What Triton calls. Each answer is sent by a response sender, so no request waits for another."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the layers and start the worker; Triton reports ready after this returns."""
        settings = Settings.from_environment()
        if args["model_name"] != settings.model_name:
            raise pb_utils.TritonModelException(f"loaded as {args['model_name']}, but SI_MODEL_NAME is {settings.model_name}")
        torch.set_num_threads(settings.threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            digests = read_digests(settings.digests_file, settings.model_digest) if settings.model_digest else None
            dtype = getattr(torch, settings.dtype)
            layers = load_layers(settings.model_path, settings.start, settings.end, dtype, device=device, digests=digests)
        except MismatchError as error:
            tell(error)
            raise
        packed = " packed" if settings.weights == "packed" and isinstance(layers, Layers) and layers.pack() else ""
        self._meters = Meters(settings.segment, pb_utils, self._gauges)
        kind = TensorSegment if is_stateless(layers) else Segment
        self._segment = kind(settings, layers, self._meters)
        gc.collect()
        gc.freeze()  # what the libraries made stays for ever: the collector need not look at it during a step
        print(
            f"segment {settings.segment}: layers {settings.start}:{settings.end} of {layers.count}, {settings.dtype}, "
            f"{layers.weight_bytes() / 2**20:.1f} MiB of{packed} weights, {layers.kv_shape.bytes_per_token} KV bytes per token, {device}",
            file=sys.stderr,
            flush=True,
        )

    def execute(self, requests: Sequence[Any]) -> None:
        """Queue every request; the answers come later."""
        for request in requests:
            sender = request.get_response_sender()
            meta = _tensor(request, "META").numpy().tobytes()
            # A copy: the server's memory behind the request is gone once it is answered.
            data = _tensor(request, "DATA").clone()

            def send(meta: bytes, data: bytes, sender: Any = sender) -> None:
                # `send` works without the interpreter's lock and drops outputs that the client did not ask for. These references
                # keep them from being destroyed there: without them the stub crashes.
                outputs = [_output("META", meta), _output("DATA", data or b"\0")]
                sender.send(pb_utils.InferenceResponse(output_tensors=outputs), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                del outputs

            self._segment.handle(meta, data, send)  # as somebody on this pod's loopback, who may do little

    def finalize(self) -> None:
        """Triton unloads the model."""
        self._segment.stop()
        self._meters.stop()

    def _gauges(self) -> Iterable[Measure]:
        segment = getattr(self, "_segment", None)
        if segment is None:
            return ()
        segment.forget_idle()
        use = segment.table.use()
        own: list[Measure] = [
            ("kv_bytes", float(use.total_bytes), {}),
            ("sequences", float(use.sequences), {}),
            ("evicted_sequences", float(use.evicted), {}),
            ("prefix_bytes", float(use.kept_bytes), {}),
            ("prefix_reused_tokens", float(use.reused_tokens), {}),
        ]
        return [*own, *segment.links.measures()]


def _tensor(request: Any, name: str) -> torch.Tensor:
    tensor: torch.Tensor = torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack())
    return tensor


def _output(name: str, content: bytes) -> Any:
    return pb_utils.Tensor.from_dlpack(name, torch.frombuffer(bytearray(content), dtype=torch.uint8))
