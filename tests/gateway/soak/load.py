"""Clients that ask, read, and often leave in the middle; every text is compared with what the same prompt gave before."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import openai

PROMPTS = (
    "Name three rivers in Europe and say one sentence about each.",
    "What is two plus two?",
    "Write a letter to a friend about the sea, the wind and the long summer evenings.",
    "List the numbers from one to forty. " * 12,
    "The quick brown fox jumps over the lazy dog. " * 30,
)
TOKENS = (8, 40, 120)
CANCELS = 0.3  # share of streams that the client leaves
PAIRS = 0.15  # share of requests with two choices, read whole


@dataclass
class Load:
    """What clients did and saw. `texts`: for each prompt the longest text so far; all others must be beginnings of it, or it of them."""

    url: str
    model: str
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    longest_gap: float = 0.0
    texts: dict[str, str] = field(default_factory=dict)
    stopping: bool = False

    async def client(self, number: int) -> None:
        """One client until told to stop."""
        chance = random.Random(number)
        async with openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=600) as client:
            while not self.stopping:
                prompt, tokens = chance.choice(PROMPTS), chance.choice(TOKENS)
                try:
                    if chance.random() < PAIRS:
                        await self._pair(client, prompt, tokens)
                    else:
                        await self._stream(client, prompt, tokens, chance)
                except openai.APIError as error:
                    self.counts["failed"] += 1
                    self.failures.append(f"{type(error).__name__}: {error}"[:300])
                await asyncio.sleep(chance.random() * 0.3)

    async def _stream(self, client: openai.AsyncOpenAI, prompt: str, tokens: int, chance: random.Random) -> None:
        leaves_after = chance.randrange(1, tokens) if chance.random() < CANCELS else None
        stream = await client.completions.create(model=self.model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True)
        text, last, pieces = "", time.monotonic(), 0
        async for chunk in stream:
            now = time.monotonic()
            if pieces:
                self.longest_gap = max(self.longest_gap, now - last)
            last, pieces = now, pieces + 1
            text += chunk.choices[0].text
            if pieces == leaves_after:
                await stream.close()
                self.counts["cancelled"] += 1
                break
        else:
            self.counts["finished"] += 1
        self.counts["pieces"] += pieces
        self._compare(prompt, text)

    async def _pair(self, client: openai.AsyncOpenAI, prompt: str, tokens: int) -> None:
        answer = await client.completions.create(model=self.model, prompt=prompt, max_tokens=tokens, temperature=0, n=2)
        for choice in answer.choices:
            self._compare(prompt, choice.text)
        self.counts["finished"] += 1
        self.counts["pieces"] += answer.usage.completion_tokens if answer.usage else 0

    def _compare(self, prompt: str, text: str) -> None:
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # a character of which the last tokens were not asked for
        known = self.texts.get(prompt, "")
        if not (text.startswith(known) or known.startswith(text)):
            self.wrong.append(f"{prompt[:30]!r}: {text!r:.200} after {known!r:.200}")
        elif len(text) > len(known):
            self.texts[prompt] = text
