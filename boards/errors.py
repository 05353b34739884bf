"""The one base of every error a user can cause; subclasses live beside their raiser."""


class SlimgateError(Exception):
    """What went wrong, where it was seen, and what to do next.

    ``what`` is one sentence; ``where`` a file, line, node or address; ``fix`` the next thing to do.
    The command line prints ``str(error)`` and exits non-zero, without a traceback.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: object = None, fix: str | None = None):
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  where: {self.where}")
        if self.fix is not None:
            lines.append(f"  next:  {self.fix}")
        return "\n".join(lines)
