"""segment-reference: the greedy tokens of the unsplit model by transformers' own `generate`, for tests to compare with."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any


def greedy(model_path: str, dtype: str, prompt_ids: Sequence[int], max_new_tokens: int, threads: int) -> dict[str, Any]:
    """Token ids that follow `prompt_ids`, at most `max_new_tokens`, until the model's end token. Times in milliseconds."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype)).eval()
    ids = torch.tensor([list(prompt_ids)])
    with torch.inference_mode():
        model.generate(ids, max_new_tokens=2, do_sample=False)  # warm
        started = time.perf_counter()
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
        elapsed = time.perf_counter() - started
    tokens = out[0, ids.shape[1] :].tolist()
    return {"tokens": tokens, "ms": round(elapsed * 1e3, 1), "tokens_per_second": round(len(tokens) / elapsed, 2)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print JSON: prompt_tokens, tokens, text, ms, tokens_per_second."""
    parser = argparse.ArgumentParser(prog="segment-reference", description=__doc__)
    parser.add_argument("--model", required=True, help="folder with config.json, tokenizer and safetensors")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message: apply the chat template")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if options.chat:
        text = tokenizer.apply_chat_template([{"role": "user", "content": options.prompt}], add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        prompt_ids = tokenizer(options.prompt)["input_ids"]
    answer = greedy(options.model, options.dtype, prompt_ids, options.max_new_tokens, options.threads)
    text = tokenizer.decode(answer["tokens"], skip_special_tokens=True)
    print(json.dumps({"prompt_tokens": prompt_ids, **answer, "text": text}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
