"""`tritonclient` against the gateway sees one model: its metadata, its readiness, and tensors with names, types and shapes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http
from tritonclient.utils import InferenceServerException

from tests.gateway.model_folder import write_model
from tests.gateway.serving import MODEL, Serving, serving
from tests.gateway.toy_chain import toy_segments
from tests.gateway.toy_model import toy_logits

pytestmark = pytest.mark.anyio

BERT = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 2, "vocab_size": 300}
CHAIN = {"model_type": "sequential", "input": {"name": "image", "shape": [2, 3]}, "output": {"name": "scores"}, "layers": []}
IDS = np.array([[5, 6, 7, 0], [1, 2, 3, 4], [9, 8, 0, 0]], dtype=np.int64)
MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]], dtype=np.int64)


def written(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@asynccontextmanager
async def tensors(folder: Path, config: dict[str, Any], *names: str, **settings: Any) -> AsyncIterator[Serving]:
    segments = await toy_segments(*(names or ("a", "b")))
    async with serving(folder, written(folder / "model", config), segments, kserve_port=0, **settings) as world:
        yield world


@asynccontextmanager
async def http(world: Serving) -> AsyncIterator[Any]:
    client = triton_http.InferenceServerClient(world.url.removeprefix("http://"))
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def grpc(world: Serving) -> AsyncIterator[Any]:
    client = triton_grpc.InferenceServerClient(f"127.0.0.1:{world.kserve_port}")
    try:
        yield client
    finally:
        await client.close()


def given(kind: Any, **arrays: np.ndarray[Any, Any]) -> list[Any]:
    """Inputs of one of the two clients."""
    types = {np.dtype(np.int64): "INT64", np.dtype(np.int32): "INT32", np.dtype(np.float32): "FP32", np.dtype(np.float64): "FP64"}
    made = []
    for name, values in arrays.items():
        made.append(kind.InferInput(name, list(values.shape), types[values.dtype]))
        made[-1].set_data_from_numpy(values)
    return made


CLIENTS = pytest.mark.parametrize(("client", "kind"), [(http, triton_http), (grpc, triton_grpc)], ids=["http", "grpc"])


@CLIENTS
async def test_the_server_is_live_and_ready_and_knows_one_model(client: Any, kind: Any, tmp_path: Path) -> None:
    async with tensors(tmp_path, BERT) as world, client(world) as triton:
        assert await triton.is_server_live()
        assert await triton.is_server_ready()
        assert await triton.is_model_ready(MODEL)
        assert await triton.is_model_ready(MODEL, "1")
        told = await triton.get_server_metadata(**({"as_json": True} if client is grpc else {}))
        assert told["name"] == "splitinference"
        told = await triton.get_model_metadata(MODEL, **({"as_json": True} if client is grpc else {}))
        shapes = {tensor["name"]: (tensor["datatype"], [int(n) for n in tensor["shape"]]) for tensor in told["inputs"] + told["outputs"]}
        assert shapes == {
            "input_ids": ("INT64", [-1, -1]),
            "attention_mask": ("INT64", [-1, -1]),
            "token_type_ids": ("INT64", [-1, -1]),
            "last_hidden_state": ("FP32", [-1, -1, 2]),
            "pooler_output": ("FP32", [-1, 2]),
        }


async def test_without_a_route_the_model_is_not_ready(tmp_path: Path) -> None:
    segments = await toy_segments("a")
    folder = written(tmp_path / "model", BERT)
    async with serving(tmp_path, folder, segments, routed=False, kserve_port=0) as world, http(world) as one, grpc(world) as two:
        for triton, kind in ((one, triton_http), (two, triton_grpc)):
            assert await triton.is_server_live()
            assert not await triton.is_server_ready()
            assert not await triton.is_model_ready(MODEL)
            with pytest.raises(InferenceServerException, match="not being served yet"):
                await triton.infer(MODEL, given(kind, input_ids=IDS))


@CLIENTS
async def test_an_encoders_padding_is_taken_off_and_its_outputs_are_typed(client: Any, kind: Any, tmp_path: Path) -> None:
    async with tensors(tmp_path, BERT) as world, client(world) as triton:
        answer = await triton.infer(MODEL, given(kind, input_ids=IDS, attention_mask=MASK, token_type_ids=IDS * 10 * MASK))
        hidden, pooled = answer.as_numpy("last_hidden_state"), answer.as_numpy("pooler_output")
        assert (hidden.dtype, hidden.shape, pooled.shape) == (np.float32, (3, 4, 2), (3, 2))
        assert np.array_equal(hidden, np.stack([IDS * MASK, IDS * 10 * MASK], axis=-1))
        assert np.array_equal(pooled, [[18, 3], [10, 4], [17, 2]])
        assert sorted(world.segments[0].shapes) == [[2, 1, 2], [2, 1, 3], [2, 1, 4]]


@CLIENTS
async def test_only_the_outputs_that_are_asked_for_are_sent(client: Any, kind: Any, tmp_path: Path) -> None:
    async with tensors(tmp_path, BERT) as world, client(world) as triton:
        answer = await triton.infer(
            MODEL, given(kind, input_ids=IDS.astype(np.int32)), outputs=[kind.InferRequestedOutput("pooler_output")]
        )
        assert np.array_equal(answer.as_numpy("pooler_output"), [[18, 4], [10, 4], [17, 4]])
        assert answer.as_numpy("last_hidden_state") is None
        with pytest.raises(InferenceServerException, match="Unexpected output 'logits'"):
            await triton.infer(MODEL, given(kind, input_ids=IDS), outputs=[kind.InferRequestedOutput("logits")])


@CLIENTS
async def test_a_generic_chain_takes_and_gives_numbers_of_its_own_shape(client: Any, kind: Any, tmp_path: Path) -> None:
    async with tensors(tmp_path, CHAIN) as world, client(world) as triton:
        image = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
        answer = await triton.infer(MODEL, given(kind, image=image))
        assert np.array_equal(answer.as_numpy("scores"), 4 * image)


async def test_the_operator_hears_how_long_inferences_take(tmp_path: Path) -> None:
    async with tensors(tmp_path, CHAIN) as world, http(world) as triton:
        await triton.infer(MODEL, given(triton_http, image=np.ones((1, 2, 3), dtype=np.float32)))
        observed = (await world.get("/internal/routes"))["observed"]
        assert (observed["requests"], observed["failed"]) == (1, 0)
        assert observed["timeToFirstTokenMs"]["p50"] > 0
        assert await world.metric('splitinference_gateway_time_to_first_token_seconds_count{revision="r1"}') == 1


async def test_many_rows_go_in_several_requests_and_come_back_in_order(tmp_path: Path) -> None:
    async with tensors(tmp_path, BERT, prefill_chunk_tokens=8) as world, http(world) as triton:
        rows = np.arange(40, dtype=np.int64).reshape(10, 4)
        answer = await triton.infer(MODEL, given(triton_http, input_ids=rows))
        assert np.array_equal(answer.as_numpy("last_hidden_state")[:, :, 0], rows)
        assert world.segments[0].shapes == [[1, 2, 4]] * 5


@CLIENTS
async def test_a_decoder_gives_the_logits_of_each_rows_last_token(client: Any, kind: Any, tmp_path: Path) -> None:
    segments = await toy_segments("a", "b")
    (tmp_path / "model").mkdir()
    folder = write_model(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 3}))
    async with serving(tmp_path, folder, segments, kserve_port=0, prefill_chunk_tokens=2) as world, client(world) as triton:
        answer = await triton.infer(MODEL, given(kind, input_ids=IDS, attention_mask=MASK))
        assert np.array_equal(answer.as_numpy("logits"), np.array([toy_logits(row) for row in ([5, 6, 7], [1, 2, 3, 4], [9, 8])]))
        assert segments[0].chunks.count(2) == 4
        await world.idle()
        assert await world.complete("and text", 4)


async def test_plain_json_is_enough(tmp_path: Path) -> None:
    async with tensors(tmp_path, CHAIN) as world:
        inputs = [{"name": "image", "datatype": "FP32", "shape": [1, 2, 3], "data": [[[1, 2, 3], [4, 5, 6.5]]]}]
        status, body, _ = await world.post(f"/v2/models/{MODEL}/infer", {"id": "7", "inputs": inputs})
        assert status == 200
        assert body == {
            "model_name": MODEL,
            "model_version": "1",
            "id": "7",
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [1, 2, 3], "data": [4.0, 8.0, 12.0, 16.0, 20.0, 26.0]}],
        }
        async with http(world) as triton:
            config = await triton.get_model_config(MODEL)
        assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [-1, 2, 3]}]


async def test_a_broken_stage_is_a_pause_not_an_error(tmp_path: Path) -> None:
    async with tensors(tmp_path, BERT) as world, http(world) as triton:
        world.segments[1].errors.extend(["next_hop_failed", "internal", "overloaded"])
        await world.segments[0].die()

        async def return_later() -> None:
            await asyncio.sleep(0.3)
            await world.segments[0].start()

        returning = asyncio.create_task(return_later())
        answer = await triton.infer(MODEL, given(triton_http, input_ids=IDS))
        assert np.array_equal(answer.as_numpy("last_hidden_state")[:, :, 0], IDS)
        await returning
        assert (await world.get("/internal/routes"))["routes"] == {"r1": {"inFlight": 0, "state": "serving"}}
        assert await world.metric('splitinference_gateway_replays_total{reason="internal"}') == 1


async def test_a_fault_in_the_numbers_is_given_up_with_a_clear_error(tmp_path: Path) -> None:
    async with tensors(tmp_path, BERT) as world, http(world) as triton:
        world.segments[1].errors.extend(["internal"] * 8)
        with pytest.raises(InferenceServerException, match="chain of segments is broken"):
            await triton.infer(MODEL, given(triton_http, input_ids=IDS[:1]))


async def test_the_openai_endpoints_say_how_to_ask_a_model_that_writes_no_text(tmp_path: Path) -> None:
    async with tensors(tmp_path, BERT) as world:
        for path, body in (("chat/completions", {"messages": [{"role": "user", "content": "x"}]}), ("completions", {"prompt": "x"})):
            status, answer, _ = await world.post(f"/v1/{path}", {"model": MODEL, **body})
            assert status == 400
            assert f"/v2/models/{MODEL}/infer" in answer["error"]["message"]


def one(name: str = "input_ids", datatype: Any = "INT64", shape: Any = (1, 2), data: Any = (1, 2), **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "could not parse"),
        ([], "must be a JSON object"),
        ({"inputs": {}}, "list of inputs"),
        ({"inputs": [1]}, "Each of 'inputs'"),
        ({"inputs": []}, "Missing input 'input_ids'"),
        ({"inputs": [one("text")]}, "Unexpected input 'text'; the model takes input_ids"),
        ({"inputs": [one(), one()]}, "Unexpected input 'input_ids'"),
        ({"inputs": [one(datatype="FP32")]}, "Input 'input_ids' is FP32, expected INT64 or INT32"),
        ({"inputs": [one(datatype="BYTES")]}, "'BYTES'"),
        ({"inputs": [one(datatype=None)]}, "has no datatype"),
        ({"inputs": [one(shape=[2], data=[1, 2])]}, "has shape [2], expected [-1, -1]"),
        ({"inputs": [one(shape=[1, 0], data=[])]}, "has shape [1, 0]"),
        ({"inputs": [one(shape=[1, -2])]}, "expected a list of whole numbers"),
        ({"inputs": [one(shape="12")]}, "expected a list of whole numbers"),
        ({"inputs": [one(shape=[1, 3])]}, "has 16 bytes; INT64 [1, 3] needs 24"),
        ({"inputs": [one(shape=[1, 2**60])]}, "needs"),
        ({"inputs": [one(data=["a", 2])]}, "a value that is no INT64"),
        ({"inputs": [one(data=[True, 2])]}, "a value that is no INT64"),
        ({"inputs": [one(data=[2**70, 2])]}, "a value that is no INT64"),
        ({"inputs": [one(data=None)]}, "a value that is no INT64"),
        ({"inputs": [one(shape=[1, 5000], data=[1] * 5000)]}, "Row 0 of 'input_ids' has 5000 tokens; at most 4096 fit"),
        ({"inputs": [one(), one("attention_mask", data=[0, 1])]}, "ones followed by zeros"),
        ({"inputs": [one(), one("attention_mask", data=[0, 0])]}, "ones followed by zeros"),
        ({"inputs": [one(), one("attention_mask", shape=[1, 1], data=[1])]}, "'attention_mask' has shape [1, 1], 'input_ids' has [1, 2]"),
        ({"inputs": [one(parameters={"shared_memory_region": "r"})]}, "Input parameters are not supported: shared_memory_region"),
        ({"inputs": [one(parameters={"binary_data_size": 16})]}, "says 16 bytes, 0 are there"),
        ({"inputs": [one()], "outputs": [{"name": "logits"}]}, "Unexpected output 'logits'"),
        ({"inputs": [one()], "outputs": [{"name": "x", "parameters": {"classification": 3}}]}, "not supported: classification"),
        ({"inputs": [one()], "outputs": 3}, "'outputs' must be a list"),
    ],
)
async def test_bad_input_is_refused_in_kserves_shape(body: Any, said: str, tmp_path: Path) -> None:
    async with tensors(tmp_path, BERT, "a", max_body_bytes=1 << 20) as world:
        status, answer, _ = await world.post(f"/v2/models/{MODEL}/infer", body)
        assert status == 400
        assert list(answer) == ["error"]
        assert said in answer["error"]
        assert not world.segments[0].shapes


async def test_unknown_models_versions_and_paths_are_404_and_too_much_is_413(tmp_path: Path) -> None:
    async with tensors(tmp_path, BERT, "a", max_body_bytes=1000) as world:
        for path in ("other/infer", f"{MODEL}/versions/2/infer"):
            status, answer, _ = await world.post(f"/v2/models/{path}", {"inputs": [one()]})
            assert (status, list(answer)) == (404, ["error"])
        assert (await world.post(f"/v2/models/{MODEL}/infer", b"x" * 1001))[0] == 413
        headers = {"Content-Encoding": "gzip"}
        assert (await world.post(f"/v2/models/{MODEL}/infer", {"inputs": [one()]}, headers=headers))[0] == 400
        headers = {"Inference-Header-Content-Length": "5000"}
        assert (await world.post(f"/v2/models/{MODEL}/infer", {"inputs": [one()]}, headers=headers))[0] == 400
        async with grpc(world) as triton:
            with pytest.raises(InferenceServerException, match="does not exist"):
                await triton.infer("other", given(triton_grpc, input_ids=IDS))


async def test_a_key_is_asked_for_over_both(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\n")
    async with tensors(tmp_path, BERT, "a", api_keys_file=tmp_path / "keys") as world, http(world) as one, grpc(world) as two:
        for triton, kind in ((one, triton_http), (two, triton_grpc)):
            with pytest.raises(InferenceServerException, match="API key"):
                await triton.infer(MODEL, given(kind, input_ids=IDS))
            headers = {"authorization": "Bearer sk-one"}
            assert (await triton.infer(MODEL, given(kind, input_ids=IDS), headers=headers)).as_numpy("pooler_output").shape == (3, 2)


async def test_a_client_that_leaves_frees_its_place(tmp_path: Path) -> None:
    async with tensors(tmp_path, BERT, "a", max_concurrent_sequences=1) as world:
        world.segments[0].seconds = 30
        async with aiohttp.ClientSession() as session:
            with pytest.raises(TimeoutError):
                await session.post(
                    f"{world.url}/v2/models/{MODEL}/infer", json={"inputs": [one()]}, timeout=aiohttp.ClientTimeout(total=0.3)
                )
        while not await world.metric('splitinference_gateway_requests_total{code="499"}'):
            await asyncio.sleep(0.02)
        assert not await world.metric("splitinference_gateway_running_sequences")
        world.segments[0].seconds = 0
        assert (await world.post(f"/v2/models/{MODEL}/infer", {"inputs": [one()]}))[0] == 200
