"""The harness's device plugin against a kubelet's side of the API, in this process: it registers, lists, tells changes, and comes back."""

import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from e2e.cluster.device_plugin import FOLDER, KUBELET, MESSAGES, DevicePlugin, kubelet_root
from e2e.cluster.faults import NotPossibleError
from tests.waiting import until

RESOURCE = "example.com/gpu"


class Kubelet:
    """What a kubelet does: it takes registrations on its socket, and calls the plugin back on the socket that was named."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registered: list[Any] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        server = grpc.server(ThreadPoolExecutor(2))

        def register(request: Any, _: Any) -> Any:
            self.registered.append(request)
            return MESSAGES["Empty"]()

        handler = grpc.unary_unary_rpc_method_handler(
            register,
            request_deserializer=MESSAGES["RegisterRequest"].FromString,
            response_serializer=lambda found: found.SerializeToString(),
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1beta1.Registration", {"Register": handler}),))
        server.add_insecure_port(f"unix:{self.folder / KUBELET}")
        server.start()
        try:
            yield
        finally:
            server.stop(grace=None).wait()

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"unix:{self.folder / self.registered[-1].endpoint}")


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    """In a folder with a short name: a socket's path has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="si-") as root:
        (Path(root) / FOLDER).mkdir(parents=True)
        yield Kubelet(Path(root) / FOLDER)


def plugin_of(kubelet: Kubelet, count: int) -> DevicePlugin:
    root = kubelet.folder.parents[len(FOLDER.parts) - 1]
    return DevicePlugin("a", RESOURCE, count, root=lambda _: root, look_seconds=0.05)


def test_it_registers_lists_its_devices_and_tells_which_turned_unhealthy(kubelet: Kubelet) -> None:
    with kubelet.running(), plugin_of(kubelet, 2) as plugin:
        until(lambda: kubelet.registered, 10, "the plugin did it")
        asked = kubelet.registered[0]
        assert (asked.version, asked.resource_name) == ("v1beta1", RESOURCE)
        seen: list[dict[str, str]] = []
        with kubelet.channel() as channel:
            listing = channel.unary_stream(
                "/v1beta1.DevicePlugin/ListAndWatch",
                request_serializer=MESSAGES["Empty"].SerializeToString,
                response_deserializer=MESSAGES["ListAndWatchResponse"].FromString,
            )(MESSAGES["Empty"](), wait_for_ready=True)

            def listen() -> None:
                try:
                    seen.extend({device.id: device.health for device in answer.devices} for answer in listing)
                except grpc.RpcError:
                    return

            thread = threading.Thread(target=listen, daemon=True)
            thread.start()
            until(lambda: seen, 10, "the plugin did it")
            assert seen == [{"gpu-0": "Healthy", "gpu-1": "Healthy"}]
            plugin.healthy("gpu-1")
            until(lambda: len(seen) == 2, 10, "the plugin did it")
            assert seen[1] == {"gpu-0": "Unhealthy", "gpu-1": "Healthy"}
            allocate = channel.unary_unary(
                "/v1beta1.DevicePlugin/Allocate",
                request_serializer=MESSAGES["AllocateRequest"].SerializeToString,
                response_deserializer=MESSAGES["AllocateResponse"].FromString,
            )
            wanted = MESSAGES["AllocateRequest"](container_requests=[MESSAGES["ContainerAllocateRequest"](devices_ids=["gpu-1"])])
            (answer,) = allocate(wanted).container_responses
            assert [(variable.key, variable.value) for variable in answer.envs] == [("E2E_DEVICES", "gpu-1")]
            listing.cancel()
            thread.join()


def test_a_kubelet_that_starts_anew_is_registered_with_again(kubelet: Kubelet) -> None:
    with plugin_of(kubelet, 1), kubelet.running():
        until(lambda: len(kubelet.registered) == 1, 10, "the plugin did it")
        for socket in kubelet.folder.iterdir():  # as a kubelet does when it starts
            if socket.name != KUBELET:
                socket.unlink()
        until(lambda: len(kubelet.registered) >= 2, 10, "the plugin did it")


def test_where_no_kubelet_can_be_reached_it_says_what_it_needs() -> None:
    with pytest.raises(NotPossibleError, match="a device plugin needs root and an engine on this machine"):
        kubelet_root("no-such-node")
