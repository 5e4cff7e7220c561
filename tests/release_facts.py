"""Whether a tag fits the tree: `python -m tests.release_facts v0.1.0`. Package, chart and tag must have one version."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def versions() -> dict[str, str]:
    """The versions that the tree states, by where."""
    package = re.search(r'^__version__ = "(.+)"$', (ROOT / "operator/splitinference/__init__.py").read_text(), re.MULTILINE)
    chart = (ROOT / "charts/splitinference/Chart.yaml").read_text()
    found = {key: re.search(rf'^{key}: "?([^"\s]+)"?$', chart, re.MULTILINE) for key in ("version", "appVersion")} | {"package": package}
    return {where: match.group(1) if match else "none" for where, match in found.items()}


def main(tag: str) -> int:
    """Exit status 1 and a sentence where they differ."""
    wrong = {where: version for where, version in versions().items() if f"v{version}" != tag}
    if wrong:
        print(f"the tag is {tag}, but " + ", ".join(f"{where} is {version}" for where, version in wrong.items()), file=sys.stderr)  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
