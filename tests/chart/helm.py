"""Where helm is: the cluster harness finds it in its cache or on the PATH, and builds it where there is none."""

from functools import cache

from e2e.cluster.offline import gobuild
from e2e.cluster.settings import Settings
from e2e.cluster.supplies.tools import HELM


@cache
def helm() -> str:
    """Path of the program."""
    settings = Settings()
    if (found := HELM.find(settings)) is None:
        gobuild.Builder.here(settings).build(HELM.module)
        found = HELM.find(settings)
    assert found is not None
    return found
