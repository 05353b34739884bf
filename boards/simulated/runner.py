"""Run a board script, unmodified, on a simulated board.

    python -m boards.simulated.runner --library design.so --board pynq-z2 -- run.py --package . --out result.json

The script finds the simulated board where it would find a real one: through the installed pynq package.
"""

import argparse
import runpy
import sys

from boards import board
from boards.errors import SlimgateError


def main(arguments: list[str] | None = None) -> int:
    """Register the board, then run the script as __main__ with its own arguments. SystemExit is the script's."""
    parser = argparse.ArgumentParser(prog="python -m boards.simulated.runner", description=__doc__.split("\n")[0])
    parser.add_argument("--library", required=True, help="the compiled design, built by the csim stage")
    parser.add_argument("--board", required=True, help="name of the board to be")
    parser.add_argument("script", nargs="+", help="-- SCRIPT and its arguments")
    options = parser.parse_args(arguments)
    from boards.simulated import device  # pynq takes a while to import; --help need not wait for it

    try:
        machine = device.register(options.library, board.load(options.board))
    except SlimgateError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.argv = list(options.script)
    try:
        runpy.run_path(options.script[0], run_name="__main__")
    finally:
        machine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
