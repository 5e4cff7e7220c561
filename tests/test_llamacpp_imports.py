"""What a segment with the llama.cpp engine imports before it serves: its start on a small node is mostly that."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "accelerate", "scipy", "pydantic", "ortools"}
PROGRAM = """
import json, sys, types
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
from splitinference_segment.server import serve, triton_model
engine = triton_model._engine("llamacpp")
print(json.dumps([engine.__name__, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_a_segment_with_llama_cpp_imports_numpy_and_the_standard_library_alone() -> None:
    paths = [str(ROOT / part) for part in ("images/segment", "images/protocol", "operator")]
    program = f"import sys; sys.path[:0] = {paths!r}\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    engine, imported = json.loads(done.stdout)
    assert engine == "splitinference_segment.llamacpp.triton"
    assert HEAVY.isdisjoint(imported)
    ours = {name for name in imported if name.startswith("splitinference")}
    assert ours == {"splitinference_segment", "splitinference_protocol", "splitinference_modelfiles"}
    assert "numpy" in imported
