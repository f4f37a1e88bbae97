"""Compiled programs are kept for the next process, where nobody else can write to them."""

import os
import subprocess
import sys

import pytest

from jaxmetric import compiled
from jaxmetric.compiled import VARIABLE, private_folder

SCRIPT = """
import jax
from jaxmetric import compiled

hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("cache_hits")))
jax.numpy.zeros(3).block_until_ready()  # something was compiled before
compiled.LEAST_SECONDS = 0.0
compiled.keep_compiled()
jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones(7))
print(any(hits), jax.config.jax_compilation_cache_dir)
"""


def said(**variables):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS"))
    }
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    run = subprocess.run(command, env=environment | variables, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    first, second = (said(**{VARIABLE: str(tmp_path / "kept")}) for _ in range(2))
    assert [first[0], second[0]] == ["False", "True"]
    (folder,) = (tmp_path / "kept").iterdir()
    assert str(folder) == first[1] == second[1]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_half_written_programs_are_removed_and_where_nothing_can_be_kept_nothing_is(tmp_path):
    first = said(**{VARIABLE: str(tmp_path)})
    (folder,) = tmp_path.glob("compiled-*")
    for written in folder.glob("*-atime"):
        written.unlink()
    assert said(**{VARIABLE: str(tmp_path)}) == first  # compiled again, and kept
    assert len([*folder.glob("*-cache")]) == len([*folder.glob("*-atime")]) > 0
    (tmp_path / "file").write_text("")
    assert said(**{VARIABLE: str(tmp_path / "file")})[1] == "None"


def test_without_a_home_directory_nothing_is_kept(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    def set_none(name, value):
        pytest.fail(f"{name} was set")

    monkeypatch.setattr(compiled, "_default_folder", no_home)
    monkeypatch.setattr(compiled.jax.config, "update", set_none)
    monkeypatch.setattr(type(compiled.jax.config), "jax_compilation_cache_dir", None)
    monkeypatch.delenv(VARIABLE, raising=False)
    compiled.keep_compiled.__wrapped__()


def test_it_is_turned_off_and_leaves_the_users_own_folder(tmp_path):
    assert said(**{VARIABLE: "off"})[1] == "None"
    mine = str(tmp_path / "mine")
    assert said(JAX_COMPILATION_CACHE_DIR=mine)[1] == mine


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path):
    folder = private_folder(tmp_path)
    assert private_folder(tmp_path) == folder
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="not this user's alone: chmod 700"):
        private_folder(tmp_path)
