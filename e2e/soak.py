"""`make soak`: a long run of gateway and segments under load, with cancels, cutovers and kills; one line of figures at its end.

No cluster is needed: all of it is processes in one container. Fails when a request failed, a text changed, or anything leaked.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from e2e import data_plane, stack
from e2e.cluster import Cluster, Settings
from e2e.cluster.progress import shown


def main() -> int:
    """Exit status of the soak."""
    parser = argparse.ArgumentParser(prog="python -m e2e.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0, help="of load, 1800 if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with shown() as progress:
            cluster = Cluster(Settings(), progress)
            image = data_plane.gateway_with_segments(cluster)
            stack.put_model(cluster)
            with progress.step(f"{options.seconds:g} s of load"):
                output = Path(folder) / "soak.txt"
                run = data_plane.started(cluster, image, "SI_TEST_MODEL_PATH", output, data_plane.soak_command(options.seconds))
                try:
                    code = run.process.wait()
                finally:
                    data_plane.ended(cluster, run)
        sys.stdout.write(output.read_text())
    return code


if __name__ == "__main__":
    sys.exit(main())
