"""The official client, loaded lazily: the same names, few modules, and the usual import where a package does more than list imports."""

import json
import subprocess
import sys

import pytest

from splitinference.adapters.kubernetes.lazy_client import listed

PROGRAM = """
import json, sys
import splitinference.__main__
from kubernetes import client
early = [name for name in sys.modules if name.startswith("kubernetes.client.")]
named = [client.CoreV1Api.__name__, client.models.V1Pod.__name__, client.__version__, client.ApiException.__name__]
made = client.ApiClient().deserialize(type("Answer", (), {"data": '{"metadata": {"name": "a"}}'})(), "V1Pod").metadata.name
try:
    client.Nothing
except AttributeError as error:
    missing = str(error)
print(json.dumps([len(early), named, made, missing, "V1Pod" in dir(client)]))
"""


def test_the_operator_loads_a_handful_of_the_clients_modules_and_every_name_still_works() -> None:
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, check=True)
    early, named, made, missing, in_dir = json.loads(ended.stdout)
    assert early < 30  # nearly 800 without
    assert named[:2] + named[3:] == ["CoreV1Api", "V1Pod", "ApiException"]
    assert named[2][0].isdigit()
    assert (made, in_dir) == ("a", True)
    assert missing == "module 'kubernetes.client' has no attribute 'Nothing'"


def test_names_and_constants_are_read_from_a_list_of_imports() -> None:
    source = '"""Text."""\nfrom __future__ import absolute_import\n__version__ = "1"\nfrom a.b import C, D as E\n'
    assert listed(source) == ({"C": "a.b:C", "E": "a.b:D"}, {"__version__": "1"})


@pytest.mark.parametrize(
    "line", ["import a", "from . import b", "from a import *", "VALUE = made()", "class A: ...", "if True:\n    from a import b"]
)
def test_a_package_that_does_anything_else_is_imported_as_usual(line: str) -> None:
    assert listed(f"from a.b import C\n{line}\n") is None
