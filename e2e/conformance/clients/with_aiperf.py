"""NVIDIA's AIPerf, the load generator that follows GenAI-Perf: a few requests at once, streamed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from features import DECODER, DECODER_FOLDER, DECODER_URL, ENCODER, ENCODER_FOLDER, ENCODER_URL, must, tried

REQUESTS = 6


def hub_cache(folder: Path) -> str:
    """The tokenizer as a download from the hub would lie there: AIPerf takes no folder without asking the hub about its name."""
    home, commit = Path(tempfile.mkdtemp()), "0" * 40
    cached = home / "hub/models--local--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    for file in folder.glob("*.json"):
        shutil.copy(file, cached / "snapshots" / commit / file.name)
    return str(home)


def loaded(kind: str, model: str, folder: str, url: str, *more: str) -> dict[str, dict[str, float]]:
    out = tempfile.mkdtemp()
    command = [str(Path(sys.executable).with_name("aiperf")), "profile", "--model", model, "--url", url, "--endpoint-type", kind]
    command += ["--tokenizer", "local/model", "--concurrency", "2", "--request-count", str(REQUESTS), "--artifact-dir", out]
    command += ["--ui", "none", "--synthetic-input-tokens-mean", "32", *more]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": hub_cache(Path(folder))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    must(done.returncode == 0, done.stdout[-200:] + done.stderr[-200:])
    (report,) = Path(out).rglob("profile_export_aiperf.json")
    made: dict[str, dict[str, float]] = json.loads(report.read_text())
    return made


@tried("load: chat, streamed")
def _() -> str:
    made = loaded("chat", DECODER, DECODER_FOLDER, DECODER_URL, "--streaming", "--output-tokens-mean", "8")
    must(made["request_count"]["avg"] == REQUESTS, made["request_count"])
    must(not (made.get("error_request_count") or {}).get("avg"), made.get("error_request_count"))
    return f"{REQUESTS} requests"


@tried("load: embeddings")
def _() -> str:
    made = loaded("embeddings", ENCODER, ENCODER_FOLDER, ENCODER_URL)
    must(made["request_count"]["avg"] == REQUESTS, made["request_count"])
    return f"{REQUESTS} requests"
