"""`kubectl split ui`: what it refuses, and that it serves until it is told to stop."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from splitinference.cli.main import main
from splitinference.controller.ports import UnavailableError
from splitinference.settings import Settings
from splitinference.ui.__main__ import main as in_cluster
from tests.controller.objects import a_body, a_node


def recorded(folder: Path) -> Path:
    path = folder / "cluster.json"
    items = [a_body(), {"kind": "Node", **a_node("a")}, {"kind": "Pod", "metadata": {"namespace": "x", "name": "p"}}]
    path.write_text(json.dumps({"kind": "List", "items": items}))
    return path


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["--recorded", "nowhere.json"], (2, "cannot be read")),
        (["--recorded", "bad.json"], (2, "is not JSON")),
        (["--recorded", "empty.json"], (2, "expected a list of objects")),
        (["--simulate", "nothing"], (2, "expected a file or one of mec-day-night")),
        (["--simulate", "empty.json"], (2, "empty.json")),
        (["--kubeconfig", "nowhere"], (1, "no usable kubeconfig")),
        (["--catalogue", "nowhere"], (2, "--catalogue: nowhere: No such file")),
        (["--catalogue", "."], (2, "bad.json")),
    ],
)
def test_bad_input_is_named_and_is_no_traceback(
    arguments: list[str], refused: tuple[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "empty.json").write_text('{"items": []}')
    status, words = refused
    assert main(["ui", "--no-browser", *arguments]) == status
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--port", "x"], ["--speed", "0"], ["--speed", "nan"], ["--speed", "1e9"]])
def test_numbers_that_cannot_be_are_refused(arguments: list[str]):
    try:
        status = main(["ui", *arguments])
    except SystemExit as ended:  # as argparse ends a program
        status = int(ended.code or 0)
    assert status == 2


def test_it_serves_a_recording_until_it_is_told_to_stop(tmp_path: Path):
    command = [sys.executable, "-m", "splitinference.cli.main", "ui", "--no-browser", "--recorded", str(recorded(tmp_path))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"(http://127\.0\.0\.1:\d+/)#token=(\S+)", process.stdout.readline())
        assert found
        url, token = found.groups()
        assert requests.get(url, timeout=30).status_code == 200
        assert requests.get(f"{url}api/events", timeout=30).status_code == 401
        with requests.get(f"{url}api/events", headers={"Authorization": f"Bearer {token}"}, stream=True, timeout=60) as stream:
            assert any(b'"team/chat"' in line for line in stream.iter_lines() if line.startswith(b"data"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_port_that_is_taken_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["ui", "--no-browser", "--port", str(port), "--recorded", str(recorded(tmp_path))]) == 1
    assert f"Port {port} cannot be used" in capsys.readouterr().err


def test_in_a_cluster_it_is_not_exposed_without_a_certificate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("SPLITINFERENCE_PAGE_EXPOSED", "true")
    assert in_cluster() == 2
    assert "SPLITINFERENCE_PAGE_TLS_FOLDER" in capsys.readouterr().err


def test_an_api_server_that_is_away_is_said_at_once(tmp_path: Path):
    """Not after half a minute of waiting for the first list."""
    from splitinference.adapters.kubernetes.client import connect
    from splitinference.ui.origins.kube import LiveCluster

    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {"token": "t"}}],
        "clusters": [{"name": "k", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }  # fmt: skip
    path = tmp_path / "config"
    path.write_text(json.dumps(config))
    source = LiveCluster(connect(str(path)), Settings())
    with pytest.raises(UnavailableError, match="selfsubjectaccessreviews"):
        source.read()
    source.close()
