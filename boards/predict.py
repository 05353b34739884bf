"""Classify pictures with a package on a place, by the package's own predict.py."""

from pathlib import Path

from boards.board import load
from boards.onboard import run as onboard
from boards.session import SessionError, open_session


def classify(package: Path, images: list[Path], place: str, top: int = 3) -> list[dict]:
    """The answers of the board, one entry a picture: {"image", "top": [{"label", "index", "code", "value"}, ...]}.

    ``package`` is an unpacked folder. Largest first, the first of equals first; value = code * output scale.
    SlimgateError for a damaged package, a place that cannot be reached or a picture that does not serve.
    """
    try:
        manifest = onboard.check_package(Path(package))
    except onboard.Stop as stop:
        raise SessionError(str(stop), where=package) from stop
    with open_session(place, load(manifest["board"])) as session:
        session.load(Path(package))
        return session.classify(list(images), top)
