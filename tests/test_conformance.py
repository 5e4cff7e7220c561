"""What `make conformance` reads and prints; the clients themselves need real segments."""

import re
from pathlib import Path

import pytest

from e2e.cluster.settings import REPOSITORY
from e2e.conformance import corpus
from e2e.conformance.clients import CLIENTS, NODE, Client
from e2e.conformance.environments import PROGRAMS, REQUIREMENTS, Command, NotInstalledError, run_words
from e2e.conformance.report import Outcome, page, table
from e2e.conformance.run import outcomes, read
from tests.modelfiles.corpus import CORPUS, LLAMA_LIKE, REFUSED


def test_each_client_has_a_program_and_a_list_of_packages_with_hashes() -> None:
    for client in CLIENTS:
        assert (PROGRAMS / f"{client.program}.{'mjs' if client.kind == NODE else 'py'}").is_file()
        if client.requirements:
            text = (REQUIREMENTS / f"{client.requirements}.txt").read_text()
            assert re.search(rf"^{re.escape(client.package)}==", text, re.MULTILINE), client
            assert text.count("--hash=sha256:") >= len(re.findall(r"^[a-z0-9][^ ]*==", text, re.MULTILINE))
            assert "://" not in re.sub(r"#.*", "", text)


@pytest.mark.parametrize(
    ("line", "result"),
    [
        ('{"feature": "chat", "ok": true, "remark": ""}', "ok"),
        ('{"feature": "tools", "ok": true, "remark": "400: no tools"}', "refused"),
        ('{"feature": "chat", "ok": false, "remark": "400: it broke"}', "failed"),
        ('{"feature": "chat"}', None),
        ("a library says hello", None),
        ("[]", None),
    ],
)
def test_a_line_of_a_program_is_a_result_or_noise(line: str, result: str | None) -> None:
    found = read("x", "1", line)
    assert (found and found.result) == result


def test_a_program_that_ends_early_is_a_failure_and_keeps_what_it_said(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text('print(\'{"feature": "chat", "ok": true, "remark": ""}\'); raise SystemExit("no more")')
    found = outcomes(Client("x", "program"), Command(("python3", str(script)), {}, "1"), {})
    assert [(outcome.feature, outcome.result) for outcome in found] == [("chat", "ok"), ("its program", "failed")]
    assert found[1].remark == "no more"


def test_what_cannot_be_installed_is_said_in_one_line() -> None:
    with pytest.raises(NotInstalledError, match="no such thing"):
        run_words(["sh", "-c", "echo first >&2; echo no such thing >&2; exit 3"])
    with pytest.raises(NotInstalledError, match="not-a-program"):
        run_words(["not-a-program"])


def test_a_cell_cannot_break_the_table() -> None:
    made = table([Outcome("a|b", "1", "chat", "failed", "two\nlines | of words")])
    assert made.splitlines()[-1] == r"| a\|b | 1 | chat | failed | two lines \| of words |"
    assert made in page([Outcome("a|b", "1", "chat", "failed", "two\nlines | of words")])


def test_what_pytest_prints_of_the_small_models_is_read() -> None:
    test = "segment/test_public_models.py::test_a_model"
    printed = (
        f"..F\nPASSED {test}[Qwen2.5-7B with YaRN]\nFAILED {test}[GPT-2] - AssertionError: [1]\nERROR {test}[Phi-4]\n2 failed, 1 passed"
    )
    assert corpus.read(printed) == {"Qwen2.5-7B with YaRN": "equal", "GPT-2": "differ", "Phi-4": "differ"}


def test_each_model_has_its_fate() -> None:
    served, refused = LLAMA_LIKE[0], REFUSED[0]
    found = {ran: corpus.fates({served.name: ran}, (served, refused)) for ran in ("equal", "differ")}
    assert [(fate.result, fate.logits) for fate in found["equal"]] == [("served", "equal"), ("refused", "-")]
    assert [(fate.result, fate.logits) for fate in found["differ"]] == [("failed", "differ"), ("refused", "-")]
    assert corpus.fates({}, (served,))[0].logits == "not run"
    assert refused.refused in found["equal"][1].remark


def test_the_page_has_every_model_of_the_corpus() -> None:
    rows = [line.split(" | ") for line in (REPOSITORY / "docs/reference/corpus.md").read_text().splitlines() if line.startswith("| ")][4:]
    found = sorted((row[0].removeprefix("| "), row[2] == "refused") for row in rows)
    assert found == sorted((case.name, bool(case.refused)) for case in CORPUS)
