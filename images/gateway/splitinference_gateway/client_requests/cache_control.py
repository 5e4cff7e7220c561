"""The Cache-Control header of a request, as RFC 9111 (section 5.2.1) defines it for caches between client and origin."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_DIRECTIVE = re.compile(r"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*)))?""")
_MOST_SECONDS = 2**31  # a larger number is this one, says the RFC
_MOST_CHARACTERS = 1024


@dataclass(frozen=True)
class CacheControl:
    """What a client accepts of a cache.

    Attributes:
        no_store: Nothing of this request or its answer may be kept.
        no_cache: No kept answer may be given.
        max_age: The oldest answer that may be given, in seconds; None: any.
        min_fresh: An answer must stay valid for so many seconds more.
        only_if_cached: If no kept answer can be given, status 504 is wanted.
    """

    no_store: bool = False
    no_cache: bool = False
    max_age: int | None = None
    min_fresh: int = 0
    only_if_cached: bool = False

    @classmethod
    def read(cls, headers: Iterable[str]) -> "CacheControl":
        """Of all headers of that name. Unknown directives have no effect. Of two values the stricter one counts.

        A time that is no number counts as the strictest one: such a client gets a new answer.
        """
        whole = ",".join(headers)
        if len(whole) > _MOST_CHARACTERS:
            return cls(no_store=True)
        flags: set[str] = set()
        ages: list[int] = []
        fresh = [0]
        for name, quoted, plain in _DIRECTIVE.findall(whole):
            directive = name.lower()
            flags.add(directive)
            if directive == "max-age":
                ages.append(_seconds(quoted or plain, 0))
            elif directive == "min-fresh":
                fresh.append(_seconds(quoted or plain, _MOST_SECONDS))
        return cls(
            no_store="no-store" in flags,
            no_cache="no-cache" in flags,
            max_age=min(ages, default=None),
            min_fresh=max(fresh),
            only_if_cached="only-if-cached" in flags,
        )

    def accepts(self, age: float, left: float) -> bool:
        """Whether a kept answer may be given: its age and the time that it is still valid, in seconds."""
        young = self.max_age is None or age <= self.max_age
        return not self.no_cache and not self.no_store and young and left >= self.min_fresh


def _seconds(text: str, wrong: int) -> int:
    if not (text.isascii() and text.isdigit()):
        return wrong
    return _MOST_SECONDS if len(text) > 10 else min(int(text), _MOST_SECONDS)
