"""The llama.cpp engine: GGUF files, computed by libllama. Neither torch nor transformers is needed."""
