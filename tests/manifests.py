"""config/base/operator.yaml, from the chart with its default values: `python -m tests.manifests` writes it."""

import sys

import yaml

from tests.chart.rendered import CHART, ROOT, run

TARGET = ROOT / "config" / "base" / "operator.yaml"
NAMESPACE = "splitinference-system"
HEAD = "# Written by `make manifests` from charts/splitinference with its default values.\n"
HELMS = {"helm.sh/chart", "app.kubernetes.io/managed-by"}
"""Labels that say what is not so here."""


def text() -> str:
    """The manifests, without the CRD (crds/ has it), Helm's labels and the pod of `helm test`."""
    done = run("template", "splitinference", str(CHART), "--namespace", NAMESPACE, "--set", "crds.install=false", "--no-hooks")
    if done.returncode:
        raise SystemExit(done.stderr)
    objects = [obj for obj in yaml.safe_load_all(done.stdout) if obj]
    for obj in objects:
        for about in (obj["metadata"], obj.get("spec", {}).get("template", {}).get("metadata", {})):
            about["labels"] = {key: value for key, value in about.get("labels", {}).items() if key not in HELMS}
            if not about["labels"]:
                del about["labels"]
    return HEAD + yaml.safe_dump_all(objects, sort_keys=False, width=140)


if __name__ == "__main__":
    TARGET.write_text(text())
    sys.exit(0)
