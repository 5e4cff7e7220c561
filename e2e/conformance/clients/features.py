"""What all programs of this folder share: features that are tried one after the other, and what became of each, as JSON lines.

These programs run in virtual environments of their own, so they import nothing of the project but this file.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable

DECODER_URL = os.environ["CONFORMANCE_DECODER_URL"]
ENCODER_URL = os.environ["CONFORMANCE_ENCODER_URL"]
DECODER = os.environ["CONFORMANCE_DECODER"]
ENCODER = os.environ["CONFORMANCE_ENCODER"]
DECODER_GRPC = os.environ["CONFORMANCE_DECODER_GRPC"]
ENCODER_GRPC = os.environ["CONFORMANCE_ENCODER_GRPC"]
DECODER_FOLDER = os.environ["CONFORMANCE_DECODER_FOLDER"]
ENCODER_FOLDER = os.environ["CONFORMANCE_ENCODER_FOLDER"]
QUESTION = "What is the capital of France?"
PARIS = "Paris"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "river": {"type": "string", "maxLength": 20}},
    "required": ["city", "river"],
    "additionalProperties": False,
}


def tried(feature: str) -> Callable[[Callable[[], object]], None]:
    """Run a function at once and print what became of it: it fails by raising, and what it returns is a remark."""

    def run(function: Callable[[], object]) -> None:
        try:
            remark, ok = function(), True
        except BaseException as error:  # whatever it is, it is this feature's result
            remark, ok = f"{type(error).__name__}: {error}"[:300], False
            traceback.print_exc()
        sys.stdout.write(json.dumps({"feature": feature, "ok": ok, "remark": remark if isinstance(remark, str) else ""}) + "\n")
        sys.stdout.flush()

    return run


def must(holds: object, said: object = "") -> None:
    """Raise where it does not hold; `assert` would not run with -O."""
    if not holds:
        raise ValueError(f"not as expected: {said!r}"[:250])
