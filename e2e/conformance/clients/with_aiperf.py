"""NVIDIA's AIPerf, the load generator that follows GenAI-Perf: a few requests at once, streamed."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from features import DECODER, DECODER_URL, ENCODER, ENCODER_URL, must, tried

REQUESTS = 6


def loaded(kind: str, model: str, url: str, *more: str) -> dict[str, dict[str, float]]:
    out = tempfile.mkdtemp()
    command = [str(Path(sys.executable).with_name("aiperf")), "profile", "--model", model, "--url", url, "--endpoint-type", kind]
    # Its own tokenizer: that of a folder it looks for in the hub once more. Texts then have other numbers of tokens, and that is all.
    command += [
        "--tokenizer",
        "builtin",
        "--concurrency",
        "2",
        "--request-count",
        str(REQUESTS),
        "--artifact-dir",
        out,
        "--ui",
        "none",
        *more,
    ]
    command += ["--synthetic-input-tokens-mean", "32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    must(done.returncode == 0, done.stdout[-200:] + done.stderr[-200:])
    (report,) = Path(out).rglob("profile_export_aiperf.json")
    made: dict[str, dict[str, float]] = json.loads(report.read_text())
    return made


@tried("load: chat, streamed")
def _() -> str:
    made = loaded("chat", DECODER, DECODER_URL, "--streaming", "--output-tokens-mean", "8")
    must(made["request_count"]["avg"] == REQUESTS, made["request_count"])
    must(not (made.get("error_request_count") or {}).get("avg"), made.get("error_request_count"))
    return f"{REQUESTS} requests"


@tried("load: embeddings")
def _() -> str:
    made = loaded("embeddings", ENCODER, ENCODER_URL)
    must(made["request_count"]["avg"] == REQUESTS, made["request_count"])
    return f"{REQUESTS} requests"
