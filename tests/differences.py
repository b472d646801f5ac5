"""The largest differences that the tests have seen, for the table after the run."""

maxima: dict[str, tuple[float, float]] = {}
"""Difference and its limit by group."""


def keep(group: str, value: float, limit: float) -> None:
    maxima[group] = (max(value, maxima.get(group, (0.0, 0.0))[0]), limit)


def record(group: str, value: float, limit: float) -> None:
    """Keep it, and fail where it is above the limit."""
    keep(group, value, limit)
    assert value <= limit, f"{group}: {value:.3g} is above {limit:g}"
