"""Writes minilm.json: what sentence-transformers makes of some texts with all-MiniLM-L6-v2, and the versions of what made it.

    python tests/gateway/sentence_transformers_answers.py <folder of the model> > tests/gateway/minilm.json

It needs torch, transformers and sentence-transformers, which the project does not.
"""

import json
import sys
from importlib.metadata import version
from typing import Any

TEXTS = [
    "The cat sits outside.",
    "A man is playing guitar.",
    "hi",
    "Ein Satz mit Umlauten: äöü, und 日本語.",
    "UPPER lower MiXeD, émigré naïve café",
    "Split inference over unequal nodes: where should the model be cut?",
    "I love pasta. " * 40,
    "word " * 600,  # longer than the model reads: cut
]


def main(folder: str) -> None:
    """Print the file."""
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(folder, device="cpu")
    vectors = model.encode(TEXTS)
    tokens = int(model.tokenize(TEXTS)["attention_mask"].sum()) if hasattr(model, "tokenize") else 0
    made = {name: version(name) for name in ("sentence-transformers", "transformers")}
    rounded = [[float(f"{value:.8g}") for value in vector] for vector in vectors.tolist()]
    content = {"made_by": made, "tokens": tokens, "texts": TEXTS, "embeddings": rounded}
    sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
