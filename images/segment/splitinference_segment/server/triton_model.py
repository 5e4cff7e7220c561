"""The Triton side: reads META and DATA, answers through response senders. Which engine computes is the settings' to say."""

import gc
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from splitinference_segment import logs
from splitinference_segment.meters import Meters, held
from splitinference_segment.peers.links import Measure
from splitinference_segment.settings import Settings


def _engine(name: str) -> Any:
    """The module of the engine that a segment's settings name. Only its own libraries are there: the image of llama.cpp has no torch."""
    if name == "llamacpp":
        from splitinference_segment.llamacpp import triton

        return triton
    from splitinference_segment.server import triton_torch

    return triton_torch


class TritonPythonModel:
    """What Triton calls. Each answer is sent by a response sender, so no request waits for another."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the layers and start the worker; Triton reports ready after this returns."""
        logs.configure(os.environ)
        settings = Settings.from_environment()
        if args["model_name"] != settings.model_name:
            raise pb_utils.TritonModelException(f"loaded as {args['model_name']}, but SI_MODEL_NAME is {settings.model_name}")
        engine = _engine(settings.engine)
        loaded = engine.load(settings)
        self._read, self._write = engine.read, engine.write
        self._meters = Meters(settings.segment, pb_utils, self._gauges)
        self._segment = loaded.start(self._meters)
        gc.collect()
        gc.freeze()  # what the libraries made stays for ever: the collector need not look at it during a step
        print(
            f"segment {settings.segment}: layers {settings.start}:{settings.end} of {loaded.count}, {settings.dtype}, {loaded.description}",
            file=sys.stderr,
            flush=True,
        )

    def execute(self, requests: Sequence[Any]) -> None:
        """Queue every request; the answers come later."""
        for request in requests:
            sender = request.get_response_sender()
            meta, data = self._read(request, "META"), self._read(request, "DATA")

            def send(meta: bytes, data: bytes, sender: Any = sender) -> None:
                # `send` works without the interpreter's lock and drops outputs that the client did not ask for. These references
                # keep them from being destroyed there: without them the stub crashes.
                outputs = [self._write("META", meta), self._write("DATA", data or b"\0")]
                sender.send(pb_utils.InferenceResponse(output_tensors=outputs), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                del outputs

            self._segment.handle(bytes(meta), data, send)  # as somebody on this pod's loopback, who may do little

    def finalize(self) -> None:
        """Triton unloads the model."""
        self._segment.stop()
        self._meters.stop()

    def _gauges(self) -> Iterable[Measure]:
        segment = getattr(self, "_segment", None)
        if segment is None:
            return ()
        segment.forget_idle()
        return [*held(segment.table.use(), segment.adapters.held), *segment.links.measures()]
