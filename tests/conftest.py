"""Seconds per layer of the suite, printed before pytest's closing line."""

from collections import Counter

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
