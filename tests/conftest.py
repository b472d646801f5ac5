"""The table of differences to the published numbers and between ComfyUI and the library, after the run."""

import differences
import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """What a worker of pytest-xdist has seen."""
    for group, seen in getattr(node, "workeroutput", {}).get("maxima", {}).items():
        differences.keep(group, *seen)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["maxima"] = differences.maxima


def pytest_terminal_summary(terminalreporter):
    if differences.maxima:
        terminalreporter.section("largest differences")
        width = max(map(len, differences.maxima))
        for group, (value, limit) in sorted(differences.maxima.items()):
            terminalreporter.write_line(f"{group:{width}}  {value:8.2g} of {limit:g}")
