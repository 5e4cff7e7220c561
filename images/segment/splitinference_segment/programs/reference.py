"""segment-reference: what the unsplit model says by transformers' own greedy `generate`, and how fast, to compare with; or how far a given
answer is from what it would say."""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Greedy = Callable[[Sequence[int], int], dict[str, Any]]


class Clock:
    """A streamer of transformers: when each token came. `generate` first hands over the prompt, then every token."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Prompt or tokens."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """No more tokens."""


def _whole(model_path: str, dtype: str, threads: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype)).eval()


def loaded(model_path: str, dtype: str, threads: int) -> Greedy:
    """The whole model, as a function of prompt ids and the most new tokens; it ends earlier at the model's end token.

    Its answer: `tokens`, `ms` in all, `tokens_per_second`, `first_ms` until the first token, `gaps_ms` between the others.
    """
    import torch

    model = _whole(model_path, dtype, threads)

    def greedy(prompt_ids: Sequence[int], max_new_tokens: int) -> dict[str, Any]:
        ids = torch.tensor([list(prompt_ids)])
        clock = Clock()
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, streamer=clock)
        elapsed = time.perf_counter() - started
        tokens, came = out[0, ids.shape[1] :].tolist(), clock.times[1:]
        return {
            "tokens": tokens,
            "ms": round(elapsed * 1e3, 1),
            "tokens_per_second": round(len(tokens) / elapsed, 2),
            "first_ms": round((came[0] - started) * 1e3, 3),
            "gaps_ms": [round((after - before) * 1e3, 3) for before, after in itertools.pairwise(came)],
        }

    return greedy


def behind(model_path: str, dtype: str, threads: int, prompt: Sequence[int], given: Sequence[int]) -> list[float]:
    """By how many nats each given token is behind the likeliest one, after the prompt and the given tokens before it. 0: it is that one."""
    import torch

    model = _whole(model_path, dtype, threads)
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *given]])).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.gather(1, torch.tensor(list(given))[:, None])[:, 0]
    return [round(value, 4) for value in (logits.max(dim=1).values - chosen).tolist()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print JSON: prompt_tokens, text, and what `loaded` says. With --lines one such line for each line of input; with --given `behind`."""
    parser = argparse.ArgumentParser(prog="segment-reference", description=__doc__)
    parser.add_argument("--model", required=True, help="folder with config.json, tokenizer and safetensors")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt")
    lines = 'read lines of JSON, {"prompt" or "prompt_tokens", "max_new_tokens"}, and answer each, until the end of input'
    what.add_argument("--lines", action="store_true", help=lines)
    parser.add_argument("--given", metavar="TEXT", help="an answer to the prompt: say how far behind the likeliest each of its tokens is")
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message: apply the chat template")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if options.given is not None:
        asked = list(tokenizer(options.prompt or "")["input_ids"])
        given = list(tokenizer(options.given, add_special_tokens=False)["input_ids"])
        print(json.dumps({"behind": behind(options.model, options.dtype, options.threads, asked, given)}))
        return 0
    greedy = loaded(options.model, options.dtype, options.threads)

    def tokens(prompt: str) -> list[int]:
        if not options.chat:
            return list(tokenizer(prompt)["input_ids"])
        text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer(prompt_ids: list[int], most: int) -> str:
        found = greedy(prompt_ids, most)
        return json.dumps({"prompt_tokens": prompt_ids, **found, "text": tokenizer.decode(found["tokens"], skip_special_tokens=True)})

    if options.lines:
        for line in sys.stdin:
            asked = json.loads(line)
            print(answer(asked.get("prompt_tokens") or tokens(asked["prompt"]), asked["max_new_tokens"]), flush=True)
        return 0
    prompt_ids = tokens(options.prompt)
    greedy(prompt_ids, 2)  # warm
    print(answer(prompt_ids, options.max_new_tokens))
    return 0


if __name__ == "__main__":
    sys.exit(main())
