"""Capabilities that this machine cannot give, and the OCI runtime in front of runc that does not ask for them.

`docker run --privileged` asks for every capability the kernel knows. Where the bounding set lacks one (inside many
sandboxes CAP_SYS_RESOURCE), runc refuses to start the container. Asking for the rest is enough for a node.
"""

from pathlib import Path

# Linux' numbering, include/uapi/linux/capability.h
NAMES = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
]


def missing(status: str, last: int) -> tuple[str, ...]:
    """Names of capabilities 0..last that the bounding set in `status` (the text of /proc/self/status) lacks."""
    bounding = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapBnd:")), 0)
    return tuple(f"CAP_{name}" for bit, name in enumerate(NAMES) if bit <= last and not bounding >> bit & 1)


def missing_here() -> tuple[str, ...]:
    """Capabilities that the kernel knows and this process can never have; none outside Linux."""
    try:
        last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
        return missing(Path("/proc/self/status").read_text(), last)
    except OSError:
        return ()


def runtime_script(real: str, without: tuple[str, ...]) -> str:
    """A shell script to be used as an OCI runtime: `real`, with `without` taken out of what containers and execs ask for. Needs jq."""
    names = "[" + ",".join(f'\\"{name}\\"' for name in without) + "]"
    return f"""#!/bin/sh
# In front of {real}: this machine cannot give {" ".join(without)}, so nobody may ask for it.
expect=
forgo() {{
  [ -s "$1" ] || return 0
  kept=$(jq -c "(.process // .).capabilities |= (if . then map_values(. - {names}) else . end)" "$1") && printf %s "$kept" > "$1"
}}
for word in "$@"; do
  case $expect in
    bundle) forgo "$word/config.json" ;;
    process) forgo "$word" ;;
  esac
  expect=
  case $word in
    -b | --bundle) expect=bundle ;;
    -p | --process) expect=process ;;
    --bundle=*) forgo "${{word#*=}}/config.json" ;;
    --process=*) forgo "${{word#*=}}" ;;
  esac
done
exec {real} "$@"
"""
