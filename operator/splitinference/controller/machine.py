"""Which machines our images run on: operating system and architecture, by the labels that every kubelet gives its node."""

from collections.abc import Mapping

from splitinference.settings import Settings

OS, ARCH, LINUX = "kubernetes.io/os", "kubernetes.io/arch", "linux"


def foreign(labels: Mapping[str, str], settings: Settings) -> str:
    """Why our images do not run on a node with these labels; empty where they do, or where its kubelet has not said what it is."""
    system = labels.get(OS, LINUX)
    if system != LINUX:
        return f"its operating system is {system}, the images are for {LINUX}"
    architecture, known = labels.get(ARCH, ""), settings.architectures
    if architecture and known and architecture not in known:
        return f"its architecture is {architecture}, the images are for {', '.join(known)}"
    return ""
