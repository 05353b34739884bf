"""Classify pictures with a package on a place, by the package's own predict.py."""

from pathlib import Path

from boards.board import load
from boards.package import open_package
from boards.session import open_session


def classify(package: Path, images: list[Path], place: str, top: int = 3) -> list[dict]:
    """The answers of the board, one entry a picture: {"image", "top": [{"label", "index", "code", "value"}, ...]}.

    ``package`` is a folder or a package.tar.gz. Largest first, the first of equals first; value = code * output scale.
    SlimgateError for a damaged package, a place that cannot be reached or a picture that does not serve.
    """
    with open_package(package) as opened, open_session(place, load(opened.manifest["board"])) as session:
        session.load(opened.folder)
        return session.classify(list(images), top)
