"""A device plugin over the kubelet's own API, for devices that do not exist: the kubelet counts and allocates them as it does real ones.

It runs here, beside the nodes' containers, and reaches a kubelet's socket through `/proc/<pid>/root`. So it needs root, and an engine on
this machine. The messages are those of the kubelet's API `v1beta1`, as far as the plugin needs them.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

from e2e.cluster.faults import NotPossibleError

FOLDER = Path("var/lib/kubelet/device-plugins")
KUBELET = "kubelet.sock"
VERSION = "v1beta1"
HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"
ENVIRONMENT = "E2E_DEVICES"
"""Variable of a container that says which devices it was given."""
CALL_SECONDS = 10.0
LOOK_SECONDS = 1.0
_PACKAGE = "splitinference.e2e.deviceplugin"
_TEXT, _FLAG, _MESSAGE = Field.TYPE_STRING, Field.TYPE_BOOL, Field.TYPE_MESSAGE
_FIELDS: Mapping[str, tuple[tuple[str, int, int, bool, str], ...]] = {
    "Empty": (),
    "Options": (("pre_start_required", 1, _FLAG, False, ""), ("get_preferred_allocation_available", 2, _FLAG, False, "")),
    "RegisterRequest": (
        ("version", 1, _TEXT, False, ""),
        ("endpoint", 2, _TEXT, False, ""),
        ("resource_name", 3, _TEXT, False, ""),
        ("options", 4, _MESSAGE, False, "Options"),
    ),
    "Device": (("id", 1, _TEXT, False, ""), ("health", 2, _TEXT, False, "")),
    "ListAndWatchResponse": (("devices", 1, _MESSAGE, True, "Device"),),
    "ContainerAllocateRequest": (("devices_ids", 1, _TEXT, True, ""),),
    "AllocateRequest": (("container_requests", 1, _MESSAGE, True, "ContainerAllocateRequest"),),
    "Variable": (("key", 1, _TEXT, False, ""), ("value", 2, _TEXT, False, "")),  # an entry of a map<string, string>
    "ContainerAllocateResponse": (("envs", 1, _MESSAGE, True, "Variable"),),
    "AllocateResponse": (("container_responses", 1, _MESSAGE, True, "ContainerAllocateResponse"),),
}


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="e2e/deviceplugin.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _FIELDS.items():
        made = file.message_type.add(name=name)
        for field, number, kind, repeated, of in fields:
            label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            made.field.add(name=field, number=number, type=kind, label=label, type_name=f".{_PACKAGE}.{of}" if of else None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _FIELDS}


MESSAGES = _messages()
"""The kubelet's messages, by name."""


def kubelet_root(node: str) -> Path:
    """The root folder of a node's container, as its kubelet sees it. NotPossibleError if the engine is elsewhere, or this is not root."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "comm").read_text().strip() == "kubelet" and (process / "root/etc/hostname").read_text().strip() == node:
                return process / "root"
    who = "" if os.geteuid() == 0 else " This process is not root."
    raise NotPossibleError(f"no kubelet of {node} can be reached from here: a device plugin needs root and an engine on this machine.{who}")


class DevicePlugin:
    """`count` devices of one resource on one node. `healthy` changes them; a kubelet that was started anew is registered with again."""

    def __init__(
        self, node: str, resource: str, count: int, *, root: Callable[[str], Path] = kubelet_root, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._node, self.resource, self._root, self._look_seconds = node, resource, root, look_seconds
        self._health = {f"{resource.rpartition('/')[2]}-{number}": HEALTHY for number in range(count)}
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._server: grpc.Server | None = None
        self._thread = threading.Thread(target=self._watch, name=f"device plugin of {node}", daemon=True)
        self.allocated: list[str] = []
        self.problem = ""

    def __enter__(self) -> "DevicePlugin":
        self._root(self._node)  # says at once where it cannot be
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    @property
    def devices(self) -> tuple[str, ...]:
        """Their IDs."""
        return tuple(self._health)

    def healthy(self, *devices: str) -> None:
        """These are healthy from now on, and no others."""
        with self._changed:
            self._health = {device: HEALTHY if device in devices else UNHEALTHY for device in self._health}
            self._changed.notify_all()

    def _watch(self) -> None:
        """Serve and register; again whenever the kubelet was started anew, which removes all sockets."""
        try:
            while not self._ended.is_set():
                with suppress(RuntimeError, grpc.RpcError, OSError):
                    if not self._socket().exists():
                        self._serve()
                self._ended.wait(self._look_seconds)
        finally:
            self._stop()

    def _socket(self) -> Path:
        return self._root(self._node) / FOLDER / f"{self.resource.replace('/', '_')}.sock"

    def _serve(self) -> None:
        self._stop()
        socket = self._socket()
        server = grpc.server(ThreadPoolExecutor(8))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"{VERSION}.DevicePlugin", self._handlers()),))
        server.add_insecure_port(f"unix:{socket}")
        server.start()
        self._server = server
        with grpc.insecure_channel(f"unix:{socket.parent / KUBELET}") as channel:
            call = channel.unary_unary(
                f"/{VERSION}.Registration/Register",
                request_serializer=MESSAGES["RegisterRequest"].SerializeToString,
                response_deserializer=MESSAGES["Empty"].FromString,
            )
            try:
                call(
                    MESSAGES["RegisterRequest"](
                        version=VERSION, endpoint=socket.name, resource_name=self.resource, options=MESSAGES["Options"]()
                    ),
                    timeout=CALL_SECONDS,
                    wait_for_ready=True,
                )
            except grpc.RpcError as error:
                self.problem = str(error)
                self._stop()
                raise

    def _stop(self) -> None:
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None
        with suppress(NotPossibleError, OSError):
            self._socket().unlink(missing_ok=True)

    def _handlers(self) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
        def one(name: str, method: Any, asks: str = "Empty", *, streams: bool = False) -> "tuple[str, grpc.RpcMethodHandler[Any, Any]]":
            make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
            return name, make(
                method, request_deserializer=MESSAGES[asks].FromString, response_serializer=lambda found: found.SerializeToString()
            )

        return dict(
            (
                one("GetDevicePluginOptions", lambda _, __: MESSAGES["Options"]()),
                one("ListAndWatch", self._list, streams=True),
                one("Allocate", self._allocate, "AllocateRequest"),
            )
        )

    def _list(self, _: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        """All devices, and again after each change, for as long as the kubelet listens."""
        told: dict[str, str] = {}
        while context.is_active() and not self._ended.is_set():
            with self._changed:
                if told == self._health:
                    self._changed.wait(self._look_seconds)
                now = dict(self._health)
            if now != told:
                told = now
                yield MESSAGES["ListAndWatchResponse"](devices=[MESSAGES["Device"](id=name, health=health) for name, health in now.items()])

    def _allocate(self, request: Any, _: grpc.ServicerContext) -> Any:
        """Nothing is mounted: the devices do not exist. The container is told which ones it has."""
        answers = []
        for container in request.container_requests:
            given = list(container.devices_ids)
            self.allocated += given
            variable = MESSAGES["Variable"](key=ENVIRONMENT, value=",".join(given))
            answers.append(MESSAGES["ContainerAllocateResponse"](envs=[variable]))
        return MESSAGES["AllocateResponse"](container_responses=answers)


@contextmanager
def offered(node: str, resource: str, count: int) -> Iterator[DevicePlugin]:
    """A node's devices, for as long as the block runs."""
    with DevicePlugin(node, resource, count) as plugin:
        yield plugin
