"""Kubernetes quantities, such as 100m, 2Gi or 1e3, as exact numbers.

The Kubernetes client has a parser, too. To import it takes two seconds of processor time, for it brings the whole client, which the
simulation and the command line do without (an import contract). It also takes NaN, and suffixes that Kubernetes has not, for quantities. A
test holds this one against it for all that both accept.
"""

import re
from decimal import Decimal, InvalidOperation
from functools import lru_cache

_SUFFIXES = {
    "n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("1e-3"), "": Decimal(1),
    "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9), "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18),
    "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip
_QUANTITY = re.compile(r"^([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)$")


def quantity(text: object) -> Decimal | None:
    """The number that a quantity stands for; None where it is none."""
    return _number(str(text).strip())


@lru_cache(maxsize=4096)
def _number(text: str) -> Decimal | None:
    found = _QUANTITY.match(text)
    if not found or found[2] not in _SUFFIXES:
        return None
    try:
        return Decimal(found[1]) * _SUFFIXES[found[2]]
    except InvalidOperation:
        return None
