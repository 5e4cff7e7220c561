"""The command line as a whole: quick to start, completed by shells, the same help everywhere."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from splitinference.cli.completion import kubectl_main
from splitinference.cli.main import COMPLETE, VERBS, cli, main
from tests.cli.pretend_api import GROUP, api_server, items

SLOW = (
    "kubernetes",
    "ortools",
    "pydantic",
    "rich",
    "yaml",
    "requests",
    "kopf",
    "numpy",
    "matplotlib",
    "splitinference.controller",
    "splitinference.core",
)
"""Each takes from 0.05 to 2 s of processor time to load."""


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["statsu"], ["completion", "bash"]])
def test_what_needs_no_cluster_loads_nothing_that_is_slow(argv: list[str]):
    script = (
        "import sys, json, contextlib, io\nfrom splitinference.cli.main import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n    main({argv!r})\n"
        f"print(json.dumps([name for name in {SLOW!r} if name in sys.modules]))"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert json.loads(ran.stdout) == []


@pytest.mark.parametrize("verb", ["plan", "status", "logs", "drain", "doctor"])
def test_the_help_of_a_verb_needs_no_kubernetes_client_and_no_solver(verb: str):
    script = f"import sys\nfrom splitinference.cli.main import main\ntry:\n    main([{verb!r}, '--help'])\nexcept SystemExit:\n    pass\n"
    script += "assert 'kubernetes' not in sys.modules and 'ortools' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]):
    try:
        assert main([verb, "--help"]) == 0
    except SystemExit as ended:  # argparse
        assert ended.code == 0  # noqa: PT017 - both ways to end are right
    assert len(capsys.readouterr().out) > 50


def completed(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """As kubectl asks; the words, without their help."""
    assert kubectl_main(words) == 0
    *found, directive = capsys.readouterr().out.splitlines()
    assert directive == ":4"
    return [line.partition("\t")[0] for line in found]


def test_kubectl_completes_verbs_options_and_parts(capsys: pytest.CaptureFixture[str]):
    assert completed(["sta"], capsys) == ["status"]
    assert set(completed([""], capsys)) == set(VERBS)
    assert "--watch" in completed(["status", "--w"], capsys)
    assert completed(["status", "-o", "j"], capsys) == ["json"]
    assert "--prometheus" in completed(["plan", "--p"], capsys)
    assert "planner" in completed(["bench", "p"], capsys)


def test_kubectl_completes_names_and_nodes_of_the_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    resources = items(*({"metadata": {"name": name, "namespace": "team"}} for name in ("chat", "search")))
    answers = {f"{GROUP}/namespaces/team/splitinferences": resources, "/api/v1/nodes": items({"metadata": {"name": "edge-1"}})}
    with api_server(tmp_path, answers) as (path, _):
        monkeypatch.setenv("KUBECONFIG", path)
        assert completed(["status", "--kubeconfig", path, "c"], capsys) == ["chat"]
        assert completed(["drain", "--kubeconfig", path, ""], capsys) == ["edge-1"]
        assert completed(["status", "--kubeconfig", path, "--context", ""], capsys) == ["x"]
    assert completed(["status", "--kubeconfig", path, "c"], capsys) == [], "without a cluster there is nothing to complete, and no error"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_for_both_programs(shell: str, capsys: pytest.CaptureFixture[str]):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert COMPLETE in script
    assert "kubectl-split" in script
    assert "splitinference" in script


def test_bash_takes_the_script():
    ran = subprocess.run(
        [sys.executable, "-m", "splitinference.cli.main", "completion", "bash"], check=True, capture_output=True, text=True
    )
    subprocess.run(["bash", "-n"], input=ran.stdout, text=True, check=True)


def test_the_list_of_verbs_has_no_help_cut_short(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert all(verb.help in words for verb in VERBS.values())
    assert "…" not in words
    assert list(cli.list_commands(None)) == list(VERBS)  # type: ignore[arg-type]
