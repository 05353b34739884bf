"""Making .venv: refusals, interruption, repair. pip itself is not started, except to fail without a network."""

import os
import shutil
import subprocess
import sys

import pytest

from pipeline import environment
from pipeline.config import ROOT

VERSION = "{}.{}".format(*sys.version_info[:2])


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A tree with pins, in which creating a virtual environment takes no time."""
    for name in ("pyproject.toml", f"constraints-{VERSION}.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def create(venv):
        calls.append("create")
        shutil.rmtree(venv, ignore_errors=True)
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/python").symlink_to(sys.executable)

    calls = []
    monkeypatch.setattr(environment, "create", create)
    monkeypatch.setattr(environment.subprocess, "call", lambda command: calls.append("install") or 0)
    return tmp_path, calls


def test_complete_environment_is_left_alone(repository):
    root, calls = repository
    assert environment.main(str(root)) == 0
    assert calls == ["create", "install"]
    assert environment.main(str(root)) == 0
    assert calls == ["create", "install"]


def test_changed_pins_are_installed(repository):
    root, calls = repository
    environment.main(str(root))
    with (root / f"constraints-{VERSION}.txt").open("a") as file:
        file.write("# changed\n")
    assert environment.main(str(root)) == 0
    assert calls == ["create", "install", "install"]


def test_killed_installation_is_started_afresh(repository, monkeypatch):
    root, calls = repository

    def killed(command):
        raise SystemExit  # the process ends here; nothing after it runs

    with monkeypatch.context() as patch:
        patch.setattr(environment.subprocess, "call", killed)
        with pytest.raises(SystemExit):
            environment.main(str(root))
    assert environment.main(str(root)) == 0
    assert calls == ["create", "create", "install"]
    assert environment.main(str(root)) == 0
    assert calls == ["create", "create", "install"]


def test_failed_download_is_one_message_and_is_resumed(repository, monkeypatch, capsys):
    root, calls = repository
    with monkeypatch.context() as patch:
        patch.setattr(environment.subprocess, "call", lambda command: 1)
        assert environment.main(str(root)) == 2
    message = capsys.readouterr().err
    assert "could not be installed" in message and "run the same make command again" in message
    assert environment.main(str(root)) == 0
    assert calls == ["create", "install"]  # what there was is completed, not thrown away


def test_broken_interpreter_is_replaced(repository):
    root, calls = repository
    environment.main(str(root))
    (root / ".venv/bin/python").unlink()
    assert environment.main(str(root)) == 0
    assert calls == ["create", "install"] * 2


@pytest.mark.parametrize("version", [(3, 10, 2), (3, 13, 0), (2, 7, 18)])
def test_other_pythons_are_refused(repository, monkeypatch, capsys, version):
    root, calls = repository
    monkeypatch.setattr(environment.sys, "version_info", version)
    assert environment.main(str(root)) == 2
    assert "Python 3.11 or 3.12 is needed" in capsys.readouterr().err
    assert calls == []


def test_venv_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.sys, "executable", "/bin/false")
    with pytest.raises(environment.EnvironmentFailed, match=f"apt-get install python{VERSION}-venv"):
        environment.create(str(tmp_path / ".venv"))
    assert not (tmp_path / ".venv").exists()


def make(*words, **variables):
    # `make PYTHON=... test` hands its variables down; this make is a user's own.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    variables = {**inherited, **variables}
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=False, env=variables)


def test_make_refuses_a_python_outside_the_range(tmp_path):
    """A python3 that answers as 3.9 does, and nothing else on PATH that would serve."""
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\ncase "$1" in -c) exit 1;; *) exec /bin/echo "Python 3.11 or 3.12 is needed";; esac\n')
    fake.chmod(0o755)
    for program in ("make", "bash", "sh", "env"):
        (tmp_path / program).symlink_to(shutil.which(program))
    assert "Python 3.11 or 3.12 is needed" in make("venv", PATH=str(tmp_path)).stdout
    fake.unlink()
    done = make("venv", PATH=str(tmp_path))
    assert done.returncode == 2 and "none was found" in done.stderr


def test_make_help_names_every_target():
    done = make("help")
    assert done.returncode == 0
    for target in ("benchmark", "test", "lint", "bitstream", "bench", "clean"):
        assert f"make {target} " in done.stdout
