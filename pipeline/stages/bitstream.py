"""Stage ``bitstream``, only where ``--until bitstream`` asks for it: the vendor tools on the verified HLS project."""

from boards.errors import SlimgateError
from hls.toolchain import require_tools


class BitstreamError(SlimgateError):
    """The tools are there, and what would drive them is not."""


def run(ctx) -> None:
    """Require Vitis HLS and Vivado; the error says where the verified project lies, to be taken where they are."""
    project = ctx.inputs["convert"] / "project"
    try:
        require_tools()
    except SlimgateError as error:
        other = f"or take the verified HLS project and its Tcl to where they are: {project}"
        error.fix = f"{error.fix}\n         {other}" if error.fix else other
        raise
    raise BitstreamError(
        "the vendor tools were found, but this version does not build bitstreams",
        where=project,
        fix="synthesize the verified project by hand with its Tcl",
    )
