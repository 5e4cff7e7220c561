"""docs/tutorial.md's commands, run one after the other, and what they print put into the page: `python -m e2e.tutorial`.

The cluster is that of `make demo`. It is removed by the last command.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
KUBECONFIG = "export KUBECONFIG=$(.venv/bin/python -m e2e.cluster kubeconfig)"
COMMANDS = (
    "make demo",
    f"{KUBECONFIG} PATH=$PWD/.venv/bin:$PATH",
    "kubectl get si chat",
    "kubectl split status chat",
    "make demo-down",
)
"""At most five, in one shell."""
BEGIN, END = "<!-- transcript: python -m e2e.tutorial -->", "<!-- end of the transcript -->"
_MARK = "--- command ends with "
_PATHS = ((str(ROOT), "."), (str(Path.home()), "~"))
"""Of this machine, and what stands for them."""


def played() -> list[tuple[str, str, float]]:
    """Each command, what it printed, and how many seconds it took. Raises SystemExit where one fails."""
    tools = os.environ.get("TUTORIAL_TOOLS", "")
    environment = {
        **os.environ,
        "COLUMNS": "120",
        "NO_COLOR": "1",
        "PATH": f"{tools}:{os.environ['PATH']}" if tools else os.environ["PATH"],
    }
    shell = subprocess.Popen(
        ["bash"], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert shell.stdin is not None
    assert shell.stdout is not None
    found = []
    for command in COMMANDS:
        begun = time.monotonic()
        printed: list[str] = []
        shell.stdin.write(f"{command}\necho '{_MARK}'$?\n")
        shell.stdin.flush()
        while not (line := shell.stdout.readline()).startswith(_MARK):
            if not line:
                raise SystemExit(f"{command}: the shell ended\n{''.join(printed)}")
            sys.stderr.write(line)
            printed.append(line)
        if (status := line.removeprefix(_MARK).strip()) != "0":
            raise SystemExit(f"{command} ended with {status}:\n{''.join(printed)}")
        found.append((command, "".join(printed), time.monotonic() - begun))
    shell.stdin.close()
    shell.wait()
    return found


def transcript(steps: list[tuple[str, str, float]]) -> str:
    """As a block of a page, without this machine's paths."""
    lines = []
    for command, printed, seconds in steps:
        lines += [f"$ {command}", *(_without_paths(line.rstrip()) for line in printed.splitlines())]
        if seconds > 5:
            lines.append(f"# {seconds:.0f} s")
    return "\n".join(["```console", *lines, "```"])


def _without_paths(line: str) -> str:
    for path, instead in _PATHS:
        line = line.replace(path, instead)
    return line


def put(page: str, block: str) -> str:
    """The page with the block between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main() -> int:
    """Play, and write the page."""
    PAGE.write_text(put(PAGE.read_text(), transcript(played())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
