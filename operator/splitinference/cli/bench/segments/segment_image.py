"""Programs of the segment image that measure a model: on this machine, in a container without a network."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from splitinference.cli.bench.serving.containers import Docker, MeasurementError
from splitinference.core.values.value import Value

SEGMENT_IMAGE = "localhost/splitinference/segment:dev"
Report = TypeVar("Report", bound=Value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every such command takes: the model, the image, the data type and torch's threads."""
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="config.json, tokenizer.json and safetensors")
    parser.add_argument("--segment-image", default=SEGMENT_IMAGE, metavar="IMAGE")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float16"))
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")


def needed(args: argparse.Namespace) -> Docker:
    """The engine. MeasurementError: there is no engine, image or model."""
    if not (args.model / "config.json").is_file():
        raise MeasurementError(f"{args.model} has no config.json: --model names the folder of a model.")
    docker = Docker.find()
    docker.needs(args.segment_image)
    return docker


def report_of(
    docker: Docker,
    args: argparse.Namespace,
    program: str,
    words: Sequence[str],
    *,
    kind: type[Report],
    what: str,
    mounts: Sequence[str] = (),
) -> Report:
    """What the program says of the model, read as `kind`. `mounts`: options of further folders; `what`: what it is said to answer with.

    Raises:
        MeasurementError: the image says why it cannot, or its answer is no such report.
    """
    options = ["--rm", "--network", "none", "--entrypoint", program, "-v", f"{args.model.resolve()}:/model:ro", *mounts]
    common = ["--model", "/model", "--dtype", args.dtype, "--threads", str(args.threads)]
    said = docker.run("run", *options, args.segment_image, *common, *words)
    try:
        return kind.model_validate(json.loads(said))
    except (ValidationError, ValueError) as wrong:
        raise MeasurementError(f"the image {args.segment_image} answered with no {what}: {wrong}") from wrong
