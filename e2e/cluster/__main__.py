"""`python -m e2e.cluster`: the test cluster from the command line."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

from e2e.cluster.cluster import OURS, Cluster, NotUpError
from e2e.cluster.command import CommandError
from e2e.cluster.faults import NotPossibleError
from e2e.cluster.machine import engine as engines
from e2e.cluster.machine import preflight
from e2e.cluster.machine.engine import EngineUnavailableError
from e2e.cluster.progress import shown
from e2e.cluster.settings import SIZES, Settings
from e2e.cluster.supplies import images


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m e2e.cluster", description="A kind cluster of unequal, changing workers.")
    top.add_argument("--name", default="splitinference", help="the cluster's name")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        each = verbs.add_parser(name, help=text, description=text)
        each.add_argument("--name", default=argparse.SUPPRESS, help="the cluster's name")
        return each

    up = verb("up", "start the cluster, or do nothing when it is up")
    up.add_argument("--workers", type=int, default=len(SIZES), help=f"how many (default {len(SIZES)})")
    verb("prepare", "build all that it and our images are made of, into the cache; nothing is left running that did not run before")
    verb("down", "remove it and all that it left outside the cache").add_argument(
        "--verify", action="store_true", help="say what is left; 1 if anything is"
    )
    verb("status", "what runs").add_argument("--json", action="store_true")
    verb("usage", "how many cores the cluster's own programs take").add_argument("--seconds", type=float, default=60.0)
    verb("kubeconfig", "print the kubeconfig's path")
    verb("check", "what is missing to start; 1 if anything is")
    for name, text in (("build-images", "build the images whose sources changed"), ("load-images", "the same, and give them to the nodes")):
        verb(name, text).add_argument(
            "images", nargs="*", metavar="IMAGE", help=f"of {', '.join(images.sources())} (default {' '.join(OURS)})"
        )
    for name, what, kind in (("cpu", "cores", float), ("memory", "mib", int)):
        each = verb(name, f"give a worker other {'cores' if name == 'cpu' else 'memory (MiB)'}")
        each.add_argument("node")
        each.add_argument(what, type=kind)
        each.add_argument("--hidden", action="store_true", help="do not tell the cluster: allocatable and labels stay")
    link = verb("link", "limit what leaves a node")
    link.add_argument("node")
    link.add_argument("--mbit", type=float)
    link.add_argument("--latency-ms", type=float, default=0.0)
    link.add_argument("--clear", action="store_true", help="lift the limit")
    for name, text in (("stop", "switch a node off at once"), ("start", "switch it on again")):
        verb(name, text).add_argument("node")
    burn = verb("burn", "a pod of another tenant burns CPU on a node")
    burn.add_argument("node")
    burn.add_argument("--cores", type=float, help="default: all that the node has")
    burn.add_argument("--stop", action="store_true", help="end it")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    words = parser().parse_args(arguments)
    settings = Settings(name=words.name)
    if words.verb == "up":
        if words.workers < 1:
            print("--workers must be at least 1", file=sys.stderr)
            return 2
        settings = settings.with_workers(words.workers)
    try:
        with shown() as progress:
            return _do(Cluster(settings, progress), words)
    except (CommandError, EngineUnavailableError, FileNotFoundError, NotPossibleError, NotUpError, TimeoutError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.TimeoutExpired as error:
        print(f"`{' '.join(map(str, error.cmd))[:200]}` did not end within {error.timeout:.0f} s", file=sys.stderr)
        return 1


def _do(cluster: Cluster, words: argparse.Namespace) -> int:
    match words.verb:
        case "up" | "prepare":
            if said := preflight.problems(preflight.observe(cluster.settings)):
                print("\n".join(said), file=sys.stderr)
                return 1
            if words.verb == "up":
                cluster.up()
            else:
                _prepare(cluster)
        case "down":
            left = cluster.down()
            if words.verify and left:
                print("Left behind:\n" + "\n".join(f"  {each}" for each in left), file=sys.stderr)
                return 1
        case "check":
            said = preflight.problems(preflight.observe(cluster.settings))
            print("\n".join(said) if said else "Nothing is missing.")
            return 1 if said else 0
        case "status":
            return _status(cluster, as_json=words.json)
        case "usage":
            print(cluster.usage(words.seconds))
        case "kubeconfig":
            cluster.engine()
            print(cluster.settings.kubeconfig)
        case "build-images" | "load-images":
            names = words.images or OURS
            built = cluster.build_images(names) if words.verb == "build-images" else cluster.load_images(names)
            for name in names:
                print(built[name])
        case "cpu":
            cluster.cpu(words.node, words.cores, hidden=words.hidden)
        case "memory":
            cluster.memory(words.node, words.mib, hidden=words.hidden)
        case "link":
            if not words.clear and words.mbit is None and words.latency_ms == 0:
                raise ValueError("link needs --mbit, --latency-ms or --clear")
            cluster.link(words.node, None if words.clear else words.mbit, 0 if words.clear else words.latency_ms)
        case "stop":
            cluster.stop(words.node)
        case "start":
            cluster.start(words.node)
        case "burn":
            if words.stop:
                cluster.stop_burning(words.node)
            else:
                cluster.burn(words.node, words.cores)
    return 0


def _prepare(cluster: Cluster) -> None:
    ran = engines.find(cluster.settings) is not None
    try:
        cluster.prepare()
    finally:
        if not ran:
            cluster.down()


def _status(cluster: Cluster, *, as_json: bool) -> int:
    found = cluster.status()
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['name']}: {'running' if found['running'] else 'not running'}")
    for node in found["nodes"]:
        cores = f"{node['cores']:g} cores" if node["cores"] else "all cores"
        memory = f"{node['memoryMib']:.0f} MiB" if node["memoryMib"] else "all memory"
        print(f"  {node['name']:32} {node['state']:10} {node['address']:16} {cores}, {memory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
