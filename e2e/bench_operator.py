"""`make bench-operator`: the operator's own cost, with a control plane and kwok that are built where they are missing."""

import os
import sys

from e2e.cluster import Settings
from e2e.cluster.offline import gobuild
from splitinference.cli.main import main


def run(arguments: list[str]) -> int:
    """Build what is missing, put it first on the PATH, and measure."""
    settings = Settings()
    builder = gobuild.Builder.here(settings)
    folders = [str(builder.build(module)) for module in (gobuild.KUBERNETES, gobuild.ETCD, gobuild.KWOK)]
    builder.clean()
    os.environ["PATH"] = os.pathsep.join([*folders, os.environ.get("PATH", "")])
    return main(["bench", "operator", *arguments])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
