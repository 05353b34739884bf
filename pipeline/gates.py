"""Gates: a condition that must hold before anything downstream may start. They fail closed."""

from boards.errors import SlimgateError


class GateFailed(SlimgateError):
    """A gate is shut. ``record`` is what goes into the manifest kept as evidence."""

    exit_code = 1

    def __init__(self, record: dict, fix: str | None = None, where: object = None):
        super().__init__(f"gate {record['name']!r} is shut: {record['detail']}", where=where, fix=fix)
        self.record = record


def check(name: str, passed: bool, detail: str, *, fix: str | None = None, **numbers) -> dict:
    """Return the gate's record {"name", "passed", "detail", **numbers}, or raise GateFailed carrying it.

    ``passed`` must be a real bool: an array, a NaN or a forgotten call is truthy and would open any gate.
    """
    record = {"name": name, "passed": passed, "detail": detail, **numbers}
    if type(passed) is not bool:
        record.update(passed=False, detail=f"{detail} (decided by {type(passed).__name__}, not by a bool)")
    if not record["passed"]:
        raise GateFailed(record, fix)
    return record
