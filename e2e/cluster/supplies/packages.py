"""Debian packages that the private engine and the offline way need, installed without starting any service."""

import os
import shutil
from pathlib import Path

from e2e.cluster.command import CommandError, run

PACKAGES = {
    "dockerd": "docker.io",
    "jq": "jq",
    "ip": "iproute2",
    "iptables": "iptables",
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
}


def missing(programs: tuple[str, ...]) -> list[str]:
    """Debian packages to install so that `programs` are there."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin"
    return [PACKAGES[program] for program in programs if not shutil.which(program, path=path)]


def install(packages: list[str], log: Path) -> None:
    """apt-get install, without letting any of them start a service."""
    if not packages:
        return
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        words = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
        try:
            run(words, env=env, log=log)
        except CommandError:
            run(["apt-get", "update", "-qq"], env=env, log=log)
            run(words, env=env, log=log)
    finally:
        if ours:
            policy.unlink()
