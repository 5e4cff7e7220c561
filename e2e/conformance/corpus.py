"""What became of each model of the corpus: what planner and segments say of its folder, and whether a small one of its kind gives
transformers' logits at every split point. The first is asked here, the second is a test in the segment image."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from e2e import data_plane
from e2e.cluster import Cluster
from e2e.cluster.settings import REPOSITORY
from e2e.cluster.supplies import images
from splitinference.core.model_files.config import profile_from_model
from splitinference_modelfiles.rules.families import DECODERS
from splitinference_modelfiles.stored.folder import CONFIG, file_names, read_json, tensor_tables
from splitinference_modelfiles.stored.headers import ModelRefusedError
from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.families import UnsupportedModelError
from tests.modelfiles import tables
from tests.modelfiles.case import Case
from tests.modelfiles.corpus import CORPUS

SERVED, REFUSED, FAILED = "served", "refused", "failed"
EQUAL, DIFFER, NOT_RUN, NONE = "equal", "differ", "not run", "-"
TEST = "segment/test_public_models.py"
_RESULT = re.compile(r"^(PASSED|FAILED|ERROR) \S*test_public_models\.py::\w+\[(.*?)\](?: - .*)?$", re.MULTILINE)


class Fate(NamedTuple):
    """Of one model. `logits`: of the small model beside transformers' own."""

    model: str
    kind: str
    result: str
    logits: str
    remark: str


def compared(cluster: Cluster) -> Mapping[str, str]:
    """Runs the comparison in the segment image; model → result."""
    dockerfile = str(images.sources()["segment"].dockerfile.relative_to(REPOSITORY))
    image = data_plane.built(cluster, "segment", dockerfile, "--target", "test", "--build-arg", f"BASE={cluster.base()}")
    engine = cluster.images_engine()
    words = ["python", "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", "--tb=line", TEST]
    options = ["--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--entrypoint", ""]
    done = subprocess.run(
        [engine.client, "run", *options, image, *words],
        env={**os.environ, **engine.env()},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    (cluster.settings.logs / "conformance-models.log").write_text(done.stdout + done.stderr)
    return read(done.stdout)


def read(printed: str) -> dict[str, str]:
    """Model → result, from what pytest prints with `-rA`."""
    return {name: EQUAL if result == "PASSED" else DIFFER for result, name in _RESULT.findall(printed)}


def fates(ran: Mapping[str, str], corpus: Sequence[Case] = CORPUS) -> list[Fate]:
    """One for each model, by family. `ran`: what `compared` found."""
    with TemporaryDirectory() as root:
        found = [_fate(case, Path(root) / str(number), ran) for number, case in enumerate(corpus)]
    return sorted(found, key=lambda fate: ((FAILED, SERVED, REFUSED).index(fate.result), fate.kind, fate.model))


def _fate(case: Case, folder: Path, ran: Mapping[str, str]) -> Fate:
    kind = str(case.config["model_type"])
    tables.model(folder, case.config, case.shapes, files=2 if len(case.shapes) > 100 else 1)
    planner = segment = ""
    try:
        profile_from_model(read_json(str(folder), CONFIG), tensor_tables(str(folder))[1], "bfloat16", files=file_names(str(folder)))
    except ModelRefusedError as error:
        planner = str(error)
    try:
        accepted(folder)
    except UnsupportedModelError as error:
        segment = str(error)
    if planner != segment:
        return Fate(case.name, kind, FAILED, NONE, f"the planner says {planner or 'served'!r}, segments say {segment or 'served'!r}")
    if planner:
        return Fate(case.name, kind, REFUSED, NONE, planner.partition(". Served are ")[0])
    logits = ran.get(case.name, NOT_RUN) if kind in DECODERS else NONE
    return Fate(case.name, kind, FAILED if logits == DIFFER else SERVED, logits, "")


_PAGE = """\
# What became of public models

`make conformance` writes this page. A row is the `config.json` of a public model, with a tensor table of its names and shapes.
Rows whose name begins with "a" or "an" are made up, each for one reason to refuse a model.
Each folder is given to the planner and to the loader of segments. Both must give the same answer.

| column | meaning |
|---|---|
| result | `served`; `refused` with the reason that a user sees; `failed` where planner and segments disagree, or logits differ |
| logits | `equal`: a small model with the same settings, cut at each split point, gives the logits of transformers' unsplit model (float32, 2e-4). `-`: not a decoder, or refused. Encoders are compared in `tests/segment/test_encoder.py` |

The weights of these models were not downloaded. [Models](models.md) has the rules.

{table}
"""  # noqa: E501


def table(found: Sequence[Fate]) -> str:
    """In Markdown."""
    lines = ["| model | `model_type` | result | logits | reason |", "|---|---|---|---|---|"]
    cells = ([" ".join(value.replace("|", "\\|").replace("<", "&lt;").split()) for value in fate] for fate in found)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])


def page(found: Sequence[Fate]) -> str:
    """The page of the documentation."""
    return _PAGE.format(table=table(found))
