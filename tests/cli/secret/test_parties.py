"""Parties over mutual TLS: material is used once, and what goes wrong is said: used-up material, wrong shapes, strangers, a lost party."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from splitinference.cli.main import main
from splitinference.cli.secret import store
from splitinference.cli.secret.ask import ask
from splitinference.cli.secret.chain import plain, read_chain
from splitinference.cli.secret.link import Link, LinkError, connect
from splitinference.cli.secret.serve import Server, serve_in_thread
from splitinference.cli.secret.store import NoMaterialError, deal, left, read_plan, take
from tests.cli.secret.chains import model

COUNT = 3
ROW = np.array([[1.0, -2.0, 3.0, 0.5, 0.0, -8.0]])


class Pair:
    """A dealt model, and both parties serving it."""

    def __init__(self, folder: Path, seconds: float = 10.0) -> None:
        self.model, self.dealt = model(folder / "model", "dense"), folder / "dealt"
        self.plan = deal(self.model, self.dealt, count=COUNT, rows=2, largest=8.0)
        self.first = Server(self.dealt / "party-0", 0, ("127.0.0.1", 0), None, seconds)
        self.second = Server(self.dealt / "party-1", 1, ("127.0.0.1", 0), self.first.address, seconds)
        self.threads = [serve_in_thread(server) for server in (self.first, self.second)]
        self.addresses = (self.first.address, self.second.address)

    def ask(self, rows: object) -> np.ndarray:
        return ask(self.dealt / "client", self.addresses, rows).outputs

    def stop(self) -> None:
        for server in (self.first, self.second):
            server.stop()
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.stop()


def test_rows_are_answered_until_the_material_is_used(pair: Pair) -> None:
    rows = np.concatenate((ROW, -ROW))
    for number in range(COUNT):
        given = rows[: 1 + number % 2]
        found = pair.ask(given)
        assert found.shape == (len(given), 3)
        np.testing.assert_allclose(found, plain(read_chain(pair.model), given), atol=0.002)
    assert left(pair.dealt / "party-0") == left(pair.dealt / "party-1") == []
    with pytest.raises(NoMaterialError, match=r"0 and 0 are left\. Deal more"):
        pair.ask(ROW)


def test_clients_at_once_never_share_material(pair: Pair) -> None:
    expected, found, failed = plain(read_chain(pair.model), ROW), [], []

    def one() -> None:
        try:
            found.append(pair.ask(ROW))
        except (NoMaterialError, LinkError) as error:
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) + len(failed) == 4
    assert len(found) <= COUNT
    for outputs in found:
        np.testing.assert_allclose(outputs, expected, atol=0.002)


def test_material_is_gone_before_it_is_used(tmp_path: Path) -> None:
    deal(model(tmp_path / "model", "dense"), tmp_path / "dealt", count=1, rows=1, largest=8.0)
    party = tmp_path / "dealt" / "party-0"
    assert take(party, "000000")
    assert not list((party / "material").iterdir())
    for name in ("000000", "../weights", "1", ""):
        with pytest.raises(NoMaterialError):
            take(party, name)
    assert (party / "weights.npz").exists()


def test_a_crash_while_material_is_read_uses_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deal(model(tmp_path / "model", "dense"), tmp_path / "dealt", count=1, rows=1, largest=8.0)
    party = tmp_path / "dealt" / "party-0"

    def breaks(file: Path) -> None:
        assert not file.with_suffix(".npz").exists()
        raise OSError("the disk is gone")

    monkeypatch.setattr(store, "_load", breaks)
    with pytest.raises(OSError, match="disk"):
        take(party, "000000")
    assert left(party) == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((1, 5)), r"shape \[1, 5\], expected 1 to 2 rows of \[6\]"),
        (np.zeros((3, 6)), "1 to 2 rows"),
        (np.zeros((0, 6)), "1 to 2 rows"),
        (np.zeros(6), "1 to 2 rows"),
        (np.full((1, 6), np.nan), "not finite"),
        (np.full((1, 6), 9.0), "above 8"),
        (np.array([["a"] * 6]), "not numbers"),
    ],
)
def test_wrong_inputs_are_refused_before_material_is_used(rows: np.ndarray, words: str, pair: Pair) -> None:
    with pytest.raises(ValueError, match=words):
        pair.ask(rows)
    assert len(left(pair.dealt / "party-0")) == COUNT


def test_a_party_that_is_not_there_is_named(pair: Pair) -> None:
    pair.second.stop()
    pair.threads[1].join(10)
    with pytest.raises(LinkError, match=r"party-1 at .* cannot be reached"):
        pair.ask(ROW)
    assert len(left(pair.dealt / "party-0")) == COUNT


def test_a_party_that_disappears_during_an_inference_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(tmp_path, seconds=1.0)
    try:
        monkeypatch.setattr(pair.second, "_infer", lambda name, share: (_ for _ in ()).throw(LinkError("it was ended")))
        with pytest.raises(LinkError, match=r"party-1 did not connect within 1 s|it was ended"):
            pair.ask(ROW)
        assert len(left(pair.dealt / "party-0")) == COUNT - 1, "what was begun is not used again"
        monkeypatch.undo()
        np.testing.assert_allclose(pair.ask(ROW), plain(read_chain(pair.model), ROW), atol=0.002)
    finally:
        pair.stop()


def told(link: Link, messages: list[bytes]) -> None:
    """Say all of this, and hear the answer."""
    try:
        for message in messages:
            link.send(message)
        link.hear()
    finally:
        link.close()


def test_a_party_whose_client_does_not_come_is_let_go(tmp_path: Path) -> None:
    pair = Pair(tmp_path, seconds=0.2)
    try:
        link = connect(pair.first.address, pair.dealt / "party-1", pair.plan.deal, "party-0", 10)
        with pytest.raises(LinkError):
            told(link, [b'{"material": "000000"}'])
        assert len(left(pair.dealt / "party-0")) == COUNT
    finally:
        pair.stop()


def test_strangers_and_wrong_roles_get_nothing(pair: Pair, tmp_path: Path) -> None:
    other = tmp_path / "other"
    deal(pair.model, other, count=1, rows=1, largest=8.0)
    with pytest.raises(LinkError):
        ask(other / "client", pair.addresses, ROW)
    with pytest.raises(LinkError, match="is not party-1"):
        ask(pair.dealt / "client", (pair.first.address, pair.first.address), ROW)
    link = connect(pair.second.address, pair.dealt / "party-0", pair.plan.deal, "party-1", 10)
    with pytest.raises(LinkError):  # party 0 has nothing to ask of party 1
        told(link, [b'{"do": "list"}'])
    with socket.create_connection(pair.first.address, timeout=20) as plainly:
        plainly.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with suppress(ConnectionResetError):
            assert plainly.recv(100)[:1] in (b"", b"\x15"), "an alert of TLS, or the end"
    assert len(left(pair.dealt / "party-0")) == COUNT


def test_a_client_without_sense_costs_no_material(pair: Pair) -> None:
    for messages in ([b"{"], [b"[]"], [b"x" * 20_000], [b'{"do": "infer", "material": "000000"}', b"short"]):
        link = connect(pair.first.address, pair.dealt / "client", pair.plan.deal, "party-0", 10)
        with pytest.raises(LinkError):
            told(link, messages)
    assert len(left(pair.dealt / "party-0")) == COUNT


def test_no_folder_has_what_another_one_keeps(pair: Pair) -> None:
    names = {folder.name: sorted(file.name for file in folder.iterdir()) for folder in pair.dealt.iterdir()}
    keys = ["ca.crt", "plan.json", "tls.crt", "tls.key"]
    assert names["client"] == keys
    assert names["party-0"] == names["party-1"] == sorted([*keys, "material", "weights.npz"])
    for file in pair.dealt.rglob("*"):
        assert file.stat().st_mode & 0o077 == 0, file


def test_the_commands_deal_and_ask(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["secret", "deal", str(pair.model), str(tmp_path / "again"), "--count", "2"]) == 0
    assert "material for 2 inferences of up to 1 rows" in capsys.readouterr().out
    assert len(left(tmp_path / "again" / "party-1")) == 2
    assert read_plan(tmp_path / "again" / "client").largest == 16
    assert main(["secret", "deal", str(pair.model), str(tmp_path / "again")]) == 2
    assert main(["secret", "deal", str(pair.model), str(tmp_path / "none"), "--count", "0"]) == 2
    np.save(tmp_path / "in.npy", ROW)
    parties = [f"{host}:{port}" for host, port in pair.addresses]
    command = ["secret", "ask", str(pair.dealt / "client"), "--parties", *parties, "--input", str(tmp_path / "in.npy"), "-o"]
    assert main([*command, str(tmp_path / "out.npy")]) == 0
    assert "2 more inferences" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), plain(read_chain(pair.model), ROW), atol=0.002)
    for party in ("party-0", "party-1"):
        shutil.rmtree(pair.dealt / party / "material")
    assert main([*command, str(tmp_path / "out.npy")]) == 1
    assert "Deal more" in capsys.readouterr().err


def test_a_party_says_what_it_needs(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["party-0", "--party-0", "127.0.0.1:1"], ["party-1"], ["client"], ["party-0", "--listen", "here"]):
        assert main(["secret", "party", str(pair.dealt / arguments[0]), *arguments[1:]]) == 2
        assert capsys.readouterr().err


def test_the_bench_prints_time_bytes_and_error(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "secret", "--model", str(pair.model), "--inferences", "2"]) == 0
    told = capsys.readouterr().out
    assert "in 13 rounds" in told
    assert "bytes: " in told
    assert main(["bench", "secret", "--model", str(pair.model), "--inferences", "0"]) == 2
