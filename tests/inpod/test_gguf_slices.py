"""What the planner cuts and nodes fetch is what the llama.cpp engine of the segment image cuts and reads."""

from typing import Any

import pytest

from splitinference.inpod.fetch_gguf import Layers, needed_tensors, runs
from splitinference_modelfiles.gguf_files.gguf_models import GGUF_SERVED
from splitinference_modelfiles.stored.headers import ModelRefusedError
from tests.core.model_files.test_profile_gguf import profile
from tests.modelfiles.gguf_files import Gguf, llama

slices: Any = pytest.importorskip("splitinference_segment.llamacpp.slices")
architectures: Any = pytest.importorskip("splitinference_segment.llamacpp.architectures")


def cut(source: Any, start: int, end: int) -> Any:
    """The slice; None where the engine refuses it."""
    try:
        return slices.cut(source, start, end)
    except ModelRefusedError:
        return None


def models() -> list[Gguf]:
    small = [llama(blocks, arch=arch, tied=tied) for arch in GGUF_SERVED for blocks in (1, 5, 9) for tied in (True, False)]
    return [*small, llama(46, arch="gemma2"), llama(62, arch="gemma3")]


def test_the_same_architectures_are_served():
    assert set(architectures.ARCHITECTURES) == set(GGUF_SERVED)


@pytest.mark.parametrize("whole", models(), ids=lambda m: f"{m.metadata['general.architecture']}-{len(m.tensors)}")
def test_the_planner_cuts_where_the_engine_can(tmp_path, whole):
    source, found = slices.open_model(whole.write(tmp_path / "m.gguf")), profile(whole)
    count = len(found.layers)
    both = [point for point in range(1, count) if cut(source, 0, point) and cut(source, point, count)]
    assert both == list(found.split_points or ())


@pytest.mark.parametrize("whole", models(), ids=lambda m: f"{m.metadata['general.architecture']}-{len(m.tensors)}")
def test_every_byte_that_a_segment_reads_was_fetched(tmp_path, whole):
    source, found = slices.open_model(whole.write(tmp_path / "m.gguf")), profile(whole)
    edges = [0, *(found.split_points or ()), len(found.layers)]
    for start, end in ((a, b) for a in edges for b in edges if a < b):
        part = cut(source, start, end)
        assert part is not None
        fetched = runs(source.model, needed_tensors(source.model, Layers(start, end, len(found.layers))), "m.gguf")
        for offset, size in part.ranges()["m.gguf"]:
            assert any(first <= offset and offset + size <= last for first, last in fetched), (start, end, offset, size)
