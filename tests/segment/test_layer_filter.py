"""A filter over layers in the first segment: rows that it skips go no further, and the others get what the unsplit model gives.

Fewer rows run together, so last bits may differ.
"""

import itertools
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import test_encoder
import test_sequential
import torch
from host import free_ports
from in_process import Nothing

from splitinference_protocol.wire import answers
from splitinference_protocol.wire import meta as protocol
from splitinference_protocol.wire.request import AskedFilter, Hop, Request, TensorMeta
from splitinference_segment.programs.features import WrongInputError, made, main
from splitinference_segment.settings import Settings
from splitinference_segment.tensor_segment import TensorSegment
from splitinference_segment.torch_models.loading import load_layers

DIGEST = "abcd1234"


class World:
    """Segments of a model in one process, with wires between them."""

    def __init__(self, segments: list[TensorSegment], route: tuple[Hop, ...]) -> None:
        self.segments, self.route = segments, route

    def infer(self, values: torch.Tensor, sample: float | None = 0.0, **more: Any) -> tuple[dict[str, Any], torch.Tensor]:
        """Fields of the answer, and its one tensor; `sample` None: no filter is asked for."""
        asked = None if sample is None else AskedFilter("filter.json", sample)
        tensor = TensorMeta(str(values.dtype).removeprefix("torch."), tuple(values.shape))
        request = Request("infer", tensor=tensor, route=self.route, filter=asked, **more)
        told: SimpleQueue[tuple[bytes, bytes]] = SimpleQueue()
        data = memoryview(values.contiguous().numpy().tobytes())
        self.segments[0].handle(protocol.encoded(request), data, lambda meta, data: told.put((meta, data)), "")
        meta, content = told.get(timeout=60)
        fields, timings = answers.read(meta)
        self.stages = [timing.segment for timing in timings]
        shape = fields["tensors"][0]["shape"] if "tensors" in fields else [0]
        return fields, torch.frombuffer(bytearray(content) or bytearray(4), dtype=torch.float32)[: torch.Size(shape).numel()].reshape(shape)


@contextmanager
def segments_of(folder: Path, cuts: list[int]) -> Iterator[World]:
    ranges = list(itertools.pairwise(cuts))
    names = [f"chat-{start}" for start, _ in ranges]
    ports = free_ports(len(names))
    addresses = {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
    made = []
    for name, port, (start, end) in zip(names, ports, ranges, strict=True):
        settings = Settings(
            name, f"seg-{DIGEST}-{start}-{end}", folder, start, end, dtype="float32", max_context_tokens=64, wire_port=port,
            peer_prefix="chat-", peer_addresses=addresses,
        )  # fmt: skip
        made.append(TensorSegment(settings, load_layers(folder, start, end, torch.float32), Nothing()))
    hops = tuple(Hop(name, f"seg-{DIGEST}-{start}-{end}") for name, (start, end) in zip(names, ranges, strict=True))
    try:
        yield World(made, hops[1:])
    finally:
        for segment in made:
            segment.stop()


def write_filter(folder: Path, features: Any, layers: int, classes: int, threshold: float = 0.5, **changes: Any) -> Any:
    """A filter whose one weight splits these rows in halves by their first feature; which rows it skips."""
    middle = float(np.median(features[:, 0]))
    weight = [0.0] * features.shape[1]
    weight[0] = 100.0
    told = {
        "form": 1, "mode": "Skip", "of": "layers", "layers": layers, "inputs": features.shape[1], "mean": [0.0] * features.shape[1],
        "scale": [1.0] * features.shape[1], "hidden": [], "hiddenBias": [], "weight": weight, "bias": -100.0 * middle,
        "threshold": threshold, "uselessClass": 0, "answer": [9.0, *[0.5] * (classes - 1)],
    }  # fmt: skip
    (folder / "filter.json").write_text(json.dumps({**told, **changes}))
    return features[:, 0] >= middle


@pytest.mark.parametrize("cuts", [[0, 10], [0, 5, 10], [0, 6, 8, 10]])
def test_a_generic_chain(tmp_path: Path, cuts: list[int]) -> None:
    model, rows = test_sequential.written(tmp_path), torch.randn(9, 2, 8, 8)
    features, outputs = made(load_layers(tmp_path, 0, 10, torch.float32), 3, {"x": rows.numpy()})
    with torch.inference_mode():
        assert np.array_equal(features, model[:3](rows).flatten(1).numpy())
        expected = model(rows)
    assert np.array_equal(outputs, expected.numpy())
    away = write_filter(tmp_path, features, 3, 3)
    assert 0 < away.sum() < len(rows)
    with segments_of(tmp_path, cuts) as world:
        fields, said = world.infer(rows)
        assert fields["filtered"] == {"skipped": int(away.sum()), "compared": 0, "agreed": 0}
        torch.testing.assert_close(said[~away], expected[~away])
        assert (said[away] == torch.tensor([9.0, 0.5, 0.5])).all()
        assert len(world.stages) == len(cuts) - 1
        fields, said = world.infer(rows[away])
        assert fields["filtered"]["skipped"] == len(said) == away.sum()
        assert world.stages == ["chat-0"], "no other segment heard of it"
        fields, said = world.infer(rows, sample=1.0)
        agreed = int((expected[away].argmax(dim=1) == 0).sum())
        assert fields["filtered"] == {"skipped": 0, "compared": int(away.sum()), "agreed": agreed}
        torch.testing.assert_close(said, expected)
        fields, said = world.infer(rows, sample=None)
        assert "filtered" not in fields
        torch.testing.assert_close(said, expected)


@pytest.mark.parametrize("cuts", [[0, 6], [0, 2, 4, 6]])
def test_an_encoder(tmp_path: Path, cuts: list[int]) -> None:
    folder = test_encoder.written("BertForSequenceClassification", tmp_path)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 200, (8, 6), generator=generator)
    features, outputs = made(load_layers(folder, 0, 6, torch.float32), 2, {"input_ids": ids.numpy()})
    expected = test_encoder.unsplit("BertForSequenceClassification", folder, ids.tolist(), torch.zeros_like(ids).tolist())["logits"]
    np.testing.assert_allclose(outputs, expected.numpy(), atol=1e-5)
    assert features.shape == (8, 64)
    away = write_filter(folder, features, 2, 3)
    with segments_of(folder, cuts) as world:
        fields, said = world.infer(ids[None], outputs=("logits",))
        assert fields["filtered"]["skipped"] == away.sum()
        np.testing.assert_allclose(said[~away].numpy(), expected[~away].numpy(), atol=1e-5)
        assert (said[away] == torch.tensor([9.0, 0.5, 0.5])).all()
        assert fields["tensors"][0]["name"] == "logits"


def test_why_a_filter_is_not_used_is_told_and_every_row_runs(tmp_path: Path) -> None:
    model, rows = test_sequential.written(tmp_path), torch.randn(4, 2, 8, 8)
    features, _ = made(load_layers(tmp_path, 0, 10, torch.float32), 3, {"x": rows.numpy()})
    with torch.inference_mode():
        expected = model(rows)
    with segments_of(tmp_path, [0, 5, 10]) as world:
        for changes, why in (
            (None, "cannot be read"),
            ({"layers": 7}, "over 7 layers; this segment has 5 of 10"),
            ({"layers": 5}, "5 layers give 64"),
            ({"of": "values", "layers": 0}, "is no filter of mode Skip over layers"),
            ({"threshold": 7}, "the threshold is 7"),
        ):
            if changes is not None:
                write_filter(tmp_path, features, 3, 3)
                told = json.loads((tmp_path / "filter.json").read_text())
                (tmp_path / "filter.json").write_text(json.dumps({**told, **changes}) + " " * len(why))  # of another size, so read again
            fields, said = world.infer(rows)
            assert why in fields["filtered"]["problem"]
            torch.testing.assert_close(said, expected)
        away = write_filter(tmp_path, features, 3, 3)
        assert world.infer(rows)[0]["filtered"]["skipped"] == away.sum(), "a mended file is read"


def test_an_answer_of_another_width_is_an_error_and_the_segment_lives(tmp_path: Path) -> None:
    test_sequential.written(tmp_path)
    rows = torch.randn(4, 2, 8, 8)
    features, _ = made(load_layers(tmp_path, 0, 10, torch.float32), 3, {"x": rows.numpy()})
    write_filter(tmp_path, features, 3, 2)
    for cuts in ([0, 10], [0, 5, 10]):
        with segments_of(tmp_path, cuts) as world:
            assert "the filter's answer has 2 values" in world.infer(rows)[0]["error"]["message"]
            assert "tensors" in world.infer(rows, sample=None)[0]


def test_rows_that_are_not_finite_are_not_skipped(tmp_path: Path) -> None:
    test_sequential.written(tmp_path)
    rows = torch.randn(4, 2, 8, 8)
    features, _ = made(load_layers(tmp_path, 0, 10, torch.float32), 3, {"x": rows.numpy()})
    write_filter(tmp_path, features, 3, 3, bias=1e6)
    rows[1] = float("nan")
    with segments_of(tmp_path, [0, 5, 10]) as world:
        assert world.infer(rows)[0]["error"]["code"] == "internal", "as without a filter"


@pytest.mark.parametrize("wrong", [{"file": "../x.json", "sample": 0}, {"file": "a.pt", "sample": 0}, {"file": "a.json", "sample": 2}, 5])
def test_what_names_no_file_of_the_folder_is_refused(tmp_path: Path, wrong: Any) -> None:
    test_sequential.written(tmp_path)
    with segments_of(tmp_path, [0, 10]) as world:
        told: SimpleQueue[bytes] = SimpleQueue()
        asked = {"v": 1, "op": "infer", "tensor": {"dtype": "float32", "shape": [1, 2, 8, 8]}, "route": [], "filter": wrong}
        data = memoryview(struct.pack("<128f", *[0.0] * 128))
        world.segments[0].handle(json.dumps(asked).encode(), data, lambda meta, _: told.put(meta), "")
        assert "filter" in json.loads(told.get(timeout=30))["error"]["message"]


def test_the_program_writes_what_is_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test_sequential.written(tmp_path)
    rows = np.random.default_rng(0).normal(size=(5, 2, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=rows)
    given = ["--model", str(tmp_path), "--data", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz")]
    assert main([*given, "--layers", "5"]) == 0
    found = np.load(tmp_path / "out.npz")
    assert (found["features"].shape, found["outputs"].shape, int(found["layers"])) == ((5, 64), (5, 3), 5)
    assert main([*given, "--layers", "10"]) == 2
    assert "--layers must be 1 to 9" in capsys.readouterr().err
    np.savez(tmp_path / "in.npz", input_ids=np.ones((2, 2), dtype=np.int64))
    assert main([*given, "--layers", "5"]) == 2
    assert "this model takes x" in capsys.readouterr().err


def test_rows_of_unequal_length_keep_their_order(tmp_path: Path) -> None:
    folder = test_encoder.written("BertForSequenceClassification", tmp_path)
    layers = load_layers(folder, 0, 6, torch.float32)
    ids = np.array([[5, 9, 7, 0], [8, 2, 7, 4], [30, 12, 0, 0], [6, 6, 6, 0]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    together = made(layers, 3, {"input_ids": ids, "attention_mask": mask})
    for row in range(4):
        alone = made(layers, 3, {"input_ids": ids[row : row + 1, : mask[row].sum()]})
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], other[row], atol=1e-5)
    with pytest.raises(WrongInputError, match="a filter needs one value a class"):
        made(load_layers(test_encoder.written("BertForMaskedLM", tmp_path / "b"), 0, 6, torch.float32), 3, {"input_ids": ids})
