"""How many samples of which category are taken, and which."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ..pairs.pair import CATEGORIES


def check(balance: Mapping[str, float] | str | None, limit: int | None) -> None:
    """ValueError for shares or numbers that there cannot be."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit is {limit!r}; give a whole number of at least 1.")
    if balance is None or balance == "even":
        return
    if not isinstance(balance, Mapping) or not balance:
        raise ValueError(f'balance is {balance!r}; give shares by category, or "even".')
    for category, share in balance.items():
        if category not in CATEGORIES:
            raise ValueError(f"balance names {category!r}; there are {', '.join(CATEGORIES)}.")
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < float("inf"):
            raise ValueError(f"balance gives {category} a share of {share!r}; give a number above 0, or leave it out.")


def quotas(
    found: Mapping[str, int], balance: Mapping[str, float] | str | None, limit: int | None, possible: set[str]
) -> dict[str, int] | None:
    """How many samples of each category to take; None for no more than ``limit`` of all.

    As many as there can be without taking one twice. Shares of categories that are not ``possible`` do not count, as
    of removals in a set with references.

    Args:
        found: samples there are, by category. balance, limit: checked.

    Raises ValueError for a category that is asked for and of which there is none.
    """
    if balance is None:
        return None
    if balance == "even":
        shares = {category: 1.0 for category in CATEGORIES if found.get(category)}
    else:
        shares = {category: float(share) for category, share in balance.items() if category in possible}
    if missing := [category for category in shares if not found.get(category)]:
        raise ValueError(f"There is no sample of {' or '.join(missing)} to balance with; leave it out of balance.")
    whole = sum(shares.values())
    shares = {category: share / whole for category, share in shares.items()}
    total = min((found[category] / share for category, share in shares.items()), default=0)
    total = int(total + 1e-9) if limit is None else min(int(total + 1e-9), limit)
    taken = {category: min(found[category], int(total * share + 1e-9)) for category, share in shares.items()}
    # What rounding down has left goes to those that it took most from.
    for category in sorted(shares, key=lambda one: (taken[one] - total * shares[one], one)):
        if sum(taken.values()) < total and taken[category] < found[category]:
            taken[category] += 1
    return taken


def lot(seed: int, name: str) -> int:
    """A sample's place in an order that looks random, and that others do not change."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest(), "big")
