"""Make or repair .venv: what the Makefile runs before anything else. Standard library only, run as a file.

    python3.11 pipeline/environment.py          # in the repository

A stamp, written last, says for which pins the environment is complete. An installation that was killed is started
afresh (what was downloaded is in pip's cache); a failed download leaves the environment as it was.
Exit code 0 when the environment is complete, 2 with one message otherwise.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys

LOWEST, ABOVE = (3, 11), (3, 13)
STAMP = "slimgate-complete"
BEGUN = "slimgate-installing"


class EnvironmentFailed(Exception):
    """The environment could not be completed; the message says what to do."""


def main(root=None):
    """Complete root/.venv (default: the repository this file is in); return the exit code."""
    root = root or os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        # One installation at a time; the lock ends with the process.
        with open(os.path.join(root, "pyproject.toml")) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            complete(root)
    except EnvironmentFailed as error:
        print("slimgate: {}".format(error), file=sys.stderr)
        return 2
    return 0


def complete(root):
    """Install what is missing. Raises EnvironmentFailed."""
    version = "{}.{}".format(*sys.version_info[:2])
    if not LOWEST <= sys.version_info[:2] < ABOVE:
        raise EnvironmentFailed(
            "Python 3.11 or 3.12 is needed, and {} is {}\n"
            "  next:  install one of them, or name it: make PYTHON=/path/to/python3.11 ...".format(
                sys.executable, version
            )
        )
    constraints = os.path.join(root, "constraints-{}.txt".format(version))
    venv = os.path.join(root, ".venv")
    stamp, begun, python = (os.path.join(venv, name) for name in (STAMP, BEGUN, os.path.join("bin", "python")))
    want = wanted(root, constraints)
    if read(stamp) == want and answers(python, version):
        return
    if os.path.exists(begun) or not answers(python, version):
        create(venv)
    for path in (stamp, begun):
        if os.path.exists(path):
            os.remove(path)
    print("slimgate: installing the pinned packages into {} (minutes the first time)".format(venv), flush=True)
    write(begun, want)
    code = subprocess.call(
        [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", "--quiet",
         "--constraint", constraints, "--editable", root + "[dev]"]
    )  # fmt: skip
    os.remove(begun)
    if code:
        raise EnvironmentFailed(
            "the pinned packages could not be installed (pip ended with code {}, its reason is above)\n"
            "  where: {}\n"
            "  next:  run the same make command again: downloads that were complete are kept in pip's cache, "
            "finished runs in build/ are untouched".format(code, constraints)
        )
    write(stamp, want)


def wanted(root, constraints):
    """A hash over everything the environment depends on."""
    seen = hashlib.sha256(os.path.abspath(root).encode())
    for path in (os.path.join(root, "pyproject.toml"), constraints):
        with open(path, "rb") as file:
            seen.update(file.read())
    return seen.hexdigest()


def create(venv):
    """An empty virtual environment. Raises EnvironmentFailed."""
    shutil.rmtree(venv, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "venv", venv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        raise EnvironmentFailed(
            "no virtual environment could be made\n  where: {}\n"
            "  next:  on Debian and Ubuntu: apt-get install python{}.{}-venv\n{}".format(
                venv, *sys.version_info[:2], done.stdout.decode(errors="replace").strip()
            )
        )


def answers(python, version):
    """Whether an interpreter starts, is of this version and has pip."""
    probe = "import sys, pip; print('{}.{}'.format(*sys.version_info[:2]))"
    try:
        done = subprocess.run([python, "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.decode().strip() == version


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    sys.exit(main())
