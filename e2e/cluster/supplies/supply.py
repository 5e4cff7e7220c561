"""Where the cluster's parts come from: public images where they can be pulled, else images built from packages and modules."""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from e2e.cluster.command import CommandError
from e2e.cluster.machine.engine import Engine
from e2e.cluster.offline import base as debian
from e2e.cluster.offline import gobuild, nodeimage
from e2e.cluster.progress import Progress, together
from e2e.cluster.settings import OFFLINE_BASE, PUBLIC_BASE, PUBLIC_NODE_IMAGE, Settings
from e2e.cluster.supplies import packages, tools

_REGISTRIES = ("https://registry-1.docker.io/v2/", "https://registry.k8s.io/v2/")


@dataclass(frozen=True)
class Supply:
    """The images to use, and whether they are the public ones."""

    public: bool
    node_image: str
    base: str


PUBLIC = Supply(True, PUBLIC_NODE_IMAGE, PUBLIC_BASE)


def offline() -> Supply:
    return Supply(False, nodeimage.tag(), OFFLINE_BASE)


def registries_answer(timeout: float = 4) -> bool:
    """Whether the public registries speak to us; 401 is how a registry greets a stranger."""
    for url in _REGISTRIES:
        try:
            urllib.request.urlopen(url, timeout=timeout).close()
        except urllib.error.HTTPError as answer:
            if answer.code != 401 or "registry/2.0" not in answer.headers.get("docker-distribution-api-version", ""):
                return False
        except (OSError, ValueError):
            return False
    return True


def choose(settings: Settings, engine: Engine | None) -> Supply:
    """What is there already wins, then the public images, then the offline way. `settings.images` decides when it is not `auto`."""
    if settings.images in {"public", "offline"}:
        return PUBLIC if settings.images == "public" else offline()
    if engine is not None:
        for supply in (offline(), PUBLIC):
            if engine.has_image(supply.node_image):
                return supply
    return PUBLIC if registries_answer() else offline()


def provide(settings: Settings, engine: Engine, progress: Progress, beside: Callable[[str], object] = lambda base: None) -> Supply:
    """Make everything be there that a cluster is made of: images in the engine, programs in the cache or on the PATH.

    `beside` is called once with the Debian base, when that is there: what it downloads comes while programs are compiled.
    """
    supply = choose(settings, engine)
    if supply.public:
        try:
            for image in (supply.node_image, supply.base):
                if not engine.has_image(image):
                    with progress.step(f"pull {image.partition('@')[0]}"):
                        engine.docker("pull", image)
        except CommandError:
            if settings.images == "public":
                raise
            progress.say("the public images cannot be pulled: they are built from Debian packages and Go modules")
            supply = offline()
    if supply.public or engine.has_image(supply.node_image):
        together([lambda: _build_tools(settings, progress), lambda: beside(base(settings, engine, progress))])
    else:
        _build(settings, engine, progress, beside)
    return supply


def base(settings: Settings, engine: Engine, progress: Progress) -> str:
    """The base for our images, there to be built on."""
    parts = choose(settings, engine)
    if not engine.has_image(parts.base):
        if parts.public:
            with progress.step("get the Debian base image"):
                engine.docker("pull", parts.base)
        else:
            _build_base(settings, engine, progress)
    return parts.base


def _build_base(settings: Settings, engine: Engine, progress: Progress) -> None:
    if absent := packages.missing(("debootstrap", "unshare")):
        with progress.step(f"install {', '.join(absent)}"):
            packages.install(absent, settings.logs / "apt.log")
    with progress.step("build the Debian base image"):
        debian.build_debian(settings, engine)


def missing(settings: Settings, engine: Engine | None, supply: Supply) -> tuple[list[gobuild.Module], bool]:
    """Go modules still to be built, and whether Debian images are still to be built."""
    modules = [tool.module for tool in tools.ALL if tool.find(settings) is None]
    if supply.public:
        return modules, False
    has_node = engine is not None and engine.has_image(supply.node_image)
    has_base = engine is not None and engine.has_image(supply.base)
    if not has_node:
        modules += [module for module in gobuild.NODE if not module.built(settings.cache) and module not in modules]
    return modules, not (has_node and has_base)


def _build(settings: Settings, engine: Engine, progress: Progress, beside: Callable[[str], object]) -> None:
    """The node image and what it is made from, and all programs."""
    builder = gobuild.Builder.here(settings)
    kind_built = threading.Event()
    failed: list[BaseException] = []

    def go() -> None:
        try:
            for module in (gobuild.KIND, *gobuild.NODE):
                if not module.built(settings.cache):
                    with progress.step(f"build {module.name} {module.version}"):
                        builder.build(module)
                kind_built.set()
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            kind_built.set()

    def images_beside() -> None:
        _build_base(settings, engine, progress)
        beside(OFFLINE_BASE)
        kind_built.wait()
        if not failed:
            with progress.step("build kind's node base"):
                debian.build_node_base(settings, engine, builder.source(gobuild.KIND))

    def downloads() -> None:
        """The network waits for nothing: the compiler has work of its own."""
        for module in (*gobuild.NODE[1:], *([] if tools.HELM.find(settings) else [gobuild.HELM])):
            builder.fetch(module)

    together([go, images_beside, downloads])

    def node_image() -> None:
        with progress.step("build the node image"):
            nodeimage.build(settings, engine, debian.node_base_tag())

    def helm() -> None:
        if tools.HELM.find(settings) is None:
            with progress.step(f"build {gobuild.HELM.name} {gobuild.HELM.version}"):
                builder.build(gobuild.HELM)

    together([node_image, helm])
    builder.clean()


def _build_tools(settings: Settings, progress: Progress) -> None:
    modules = [tool.module for tool in tools.ALL if tool.find(settings) is None]
    if not modules:
        return
    builder = gobuild.Builder.here(settings)
    for module in modules:
        with progress.step(f"build {module.name} {module.version}"):
            builder.build(module)
    builder.clean()
