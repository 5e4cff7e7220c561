"""SmolLM2-135M as a GGUF file (SI_TEST_GGUF, BF16), and quantized: chains against the unsplit model, over real widths and many tokens."""

import os
from pathlib import Path

import numpy as np
import pytest
from chains import Chain, cuts
from unsplit import Unsplit, same

from splitinference_segment.llamacpp.library import library

MODEL = Path(os.environ.get("SI_TEST_GGUF", "/nowhere"))
BLOCKS, VOCABULARY = 30, 49152
FTYPES = {"Q8_0": 7, "Q4_K_M": 15}
PROMPT = [(7919 * i * i + 104729 * i + 1) % VOCABULARY for i in range(90)]
TEXT = [504, 1767, 282, 260, 2451, 282, 5888, 5254, 351]
"""The history of the city of Paris begins with"""

pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason="SI_TEST_GGUF names no file")


@pytest.fixture(scope="module", params=["BF16", *FTYPES])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "BF16":
        return MODEL
    made = tmp_path_factory.mktemp("quantized") / f"{request.param}.gguf"
    assert library().si_quantize(str(MODEL).encode(), str(made).encode(), FTYPES[request.param], 1) == 0
    return made


@pytest.mark.parametrize("segments", [1, 2, 3, 5])
def test_chains_give_the_unsplit_models_logits(model: Path, segments: int) -> None:
    chain, unsplit = Chain(model, cuts(BLOCKS, segments)), Unsplit(model)
    tokens, held = list(PROMPT), 0
    for count in (64, 26, *[1] * 8):
        expected = unsplit.last(tokens[held : held + count], held)
        same(chain.logits(tokens[held : held + count], held), expected)
        held += count
        if held >= len(PROMPT):
            tokens.append(int(expected.argmax()))
    chain.close()
    unsplit.model.close()


@pytest.mark.parametrize(("dtype", "encoding"), [("bfloat16", "none"), ("float16", "none"), ("bfloat16", "int8")])
def test_links_that_round(model: Path, dtype: str, encoding: str) -> None:
    """Over a text that the unsplit model writes. The bounds are those of docs/reference/llamacpp.md: of the middle one of the errors
    (root mean square over the spread of the logits), and of tokens that differ."""
    bound = 0.15 if encoding == "int8" else 0.03 if model == MODEL else 0.1
    chain, unsplit = Chain(model, cuts(BLOCKS, 3), dtype=dtype, encoding=encoding), Unsplit(model)
    tokens, held, errors, agreed = list(TEXT), 0, [], 0
    while len(tokens) < len(TEXT) + 40:
        given = tokens[held:]
        found, expected = chain.logits(given, held), unsplit.last(given, held)
        errors.append(float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std()))
        agreed += int(found.argmax() == expected.argmax())
        held = len(tokens)
        tokens.append(int(expected.argmax()))
    assert 0 < float(np.median(errors)) < bound, errors
    assert agreed >= 0.85 * len(errors), agreed
    chain.close()
    unsplit.model.close()
