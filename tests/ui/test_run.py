"""The whole process: with the cluster's tokens and a certificate on all addresses, until it is told to stop."""

import subprocess
import sys
from pathlib import Path

import pytest
import requests

CODE = """
import asyncio, sys
from pathlib import Path
from splitinference.ui.access import Identity, ReviewedAccess
from splitinference.ui.run import EVERYWHERE, Listen, serve
from tests.ui.pages import Told
from tests.ui.test_access import Cluster
cluster = Cluster({"good": Identity("alice")}, {("alice", "splitinferences", "")})
listen = Listen(EVERYWHERE, 0, Path(sys.argv[1]), frozenset({"split.example.com"}))
told = lambda ready: print(ready.url, flush=True)
asyncio.run(serve(Told(), listen, ReviewedAccess(cluster, "page"), told=told))
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
               "-subj", "/CN=split.example.com", "-addext", "subjectAltName=DNS:split.example.com,IP:127.0.0.1",
               "-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_exposed_it_speaks_tls_to_its_own_names_and_wants_a_token(certificate: Path):
    with subprocess.Popen([sys.executable, "-c", CODE, str(certificate)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            assert url.startswith("https://127.0.0.1:")
            assert "token" not in url
            session = requests.Session()
            session.trust_env = False  # the machine may name another CA
            session.verify = str(certificate / "tls.crt")
            assert session.get(f"{url}api/about", timeout=30).json() == {"signIn": True, "whatIf": False}
            assert session.get(url, headers={"Host": "split.example.com"}, timeout=30).status_code == 200
            assert session.get(url, headers={"Host": "other.example.com"}, timeout=30).status_code == 403
            for token, status in (("guess", 401), ("good", 200)):
                answer = session.get(f"{url}api/history?resource=a/b", headers={"Authorization": f"Bearer {token}"}, timeout=30)
                assert answer.status_code == status
        finally:
            process.terminate()
        assert process.wait(60) == 0
