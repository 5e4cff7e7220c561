"""A real language model, where SI_TEST_MODEL names its folder: cut in three, in bfloat16. The gateway's tests do it in float32."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from servers import Chains

MODEL = os.environ.get("SI_TEST_MODEL", "")
pytestmark = pytest.mark.skipif(not MODEL, reason="SI_TEST_MODEL names no folder")


def test_a_real_model_in_three_segments_says_what_the_unsplit_one_says(chains: Chains) -> None:
    count, dtype = 40, "bfloat16"
    reference = json.loads(
        subprocess.run(
            [
                "segment-reference", "--model", MODEL, "--dtype", dtype, "--chat",
                "--prompt", "Name three colours.", "--max-new-tokens", str(count),
            ],
            capture_output=True, text=True, check=True, timeout=300,
        ).stdout
    )  # fmt: skip
    config = json.loads((Path(MODEL) / "config.json").read_text())
    layers = config["num_hidden_layers"] + 2
    chain = chains.start(Path(MODEL), [0, layers // 3, 2 * layers // 3, layers], dtype, SI_MAX_CONTEXT_TOKENS="512")
    tokens = chain.client().generate(reference["prompt_tokens"], count, end_token=config["eos_token_id"])
    assert tokens == reference["tokens"]
    chain.close()
