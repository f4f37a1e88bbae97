"""Compiled programs are kept in the user's cache folder: the next process need not compile them."""

import functools
import hashlib
import logging
import os
import platform
import stat
from pathlib import Path

import filelock
import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxmetric.sharding import num_processes

log = logging.getLogger("jaxmetric")

VARIABLE = "JAXMETRIC_CACHE"  # a folder, or "off"
MOST_BYTES = 2**30  # of them; the least recently used are removed
LEAST_SECONDS = 0.1  # of compilation, for a program to be kept


@functools.cache  # a folder that cannot be locked is waited for once, not at each call
def keep_compiled() -> None:
    """Has JAX keep what this process compiles from here on, unless its user has told JAX where to.

    The folder is that of the variable JAXMETRIC_CACHE, by default `jaxmetric` in the user's cache folder;
    "off" keeps nothing. Whoever can write to it can have this user run their code, so it is made for the
    user alone: one that others can write to is not used. In a job of several processes programs are kept
    only where the variable names a folder, which all of them should share.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked.lower() in ("off", "0") or jax.config.jax_compilation_cache_dir is not None:
        return
    if num_processes() > 1 and not asked:
        return
    try:
        folder = private_folder(Path(asked).expanduser().absolute() if asked else _default_folder())
        _repair(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        log.info("compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    compilation_cache.reset_cache()  # it may have looked already


def private_folder(parent: Path) -> Path:
    """A folder in the parent for programs of this machine's kind, made where there is none.

    Raises:
      OSError: where it cannot be made, or others can write to it.
    """
    folder = parent / _kind_of_machine()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix":
        about = folder.stat()
        if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PermissionError(f"{folder} is not this user's alone: chmod 700 it, or remove it.")
    return folder


def _repair(folder: Path) -> None:
    """Removes what a killed process left half-written: JAX would keep nothing more beside it.

    Raises:
      OSError: where the folder cannot be written or locked.
    """
    with filelock.FileLock(folder / ".lockfile", timeout=10):  # as JAX locks it
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()


def _default_folder() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("jaxmetric")


def _kind_of_machine() -> str:
    """A name for what programs are compiled for: a home directory may be shared by unlike machines."""
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else []
    features = sorted({line for line in lines if line.startswith(("flags", "Features"))})
    kind = f"{platform.machine()} {platform.processor()} {features}"
    return f"compiled-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
