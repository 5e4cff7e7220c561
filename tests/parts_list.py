"""What an image's Python is made of, as CycloneDX: `python -m tests.parts_list operator FILE`. From the pinned requirements and hashes.

The parts that come from the base and from Debian are in the list that BuildKit adds to the image.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
REQUIREMENTS = {
    "operator": ("operator/requirements.txt",),
    "gateway": ("gateway/requirements.txt",),
    "segment": ("segment/requirements.txt", "segment/requirements-convert.txt", "segment/requirements-triton.txt"),
    "segment-llamacpp": ("segment/requirements-triton.txt", "segment/requirements-libllama.txt"),
}


def main(image: str, target: str) -> None:
    """Write the list of `image` to `target`."""
    text = "\n".join((ROOT / "images" / name).read_text() for name in REQUIREMENTS[image])
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        words = ["requirements", file.name, "--output-reproducible", "--of", "JSON", "--sv", "1.6", "-o", target]
        subprocess.run([sys.executable, "-m", "cyclonedx_py", *words], check=True)
    parts = json.loads(Path(target).read_text())["components"]
    without = [part["name"] for part in parts if not part.get("version") or not part.get("externalReferences")]
    if not parts or without:
        raise SystemExit(f"the list of {image} has {len(parts)} parts; without version or hashes: {', '.join(without)}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
