"""Seconds per layer of the suite, printed before pytest's closing line; the same random examples in every run."""

import os
from collections import Counter

from hypothesis import settings

# A commit that passes passes again: new examples are looked for on purpose, with HYPOTHESIS_PROFILE=default.
settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

_seconds: Counter[str] = Counter()
_tests: Counter[str] = Counter()


def pytest_runtest_logreport(report):
    layer = "/".join(report.nodeid.split("/")[:2])
    _seconds[layer] += report.duration
    _tests[layer] += report.when == "call"


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section("seconds per layer")
    for layer, seconds in sorted(_seconds.items()):
        terminalreporter.write_line(f"{layer:<16} {seconds:8.1f} s  {_tests[layer]:5d} tests")
