"""The shell: from arguments to a command, and from what went wrong to a message and an exit code."""

import argparse
import contextlib
import dataclasses
import io
import logging
import os
import re
import sys
from typing import Annotated, Any, NoReturn

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes

from jaxmetric import __version__
from jaxmetric.cli.commands import (
    Annotate,
    Crossvalidate,
    Demo,
    Embed,
    Evaluate,
    Export,
    Import,
    Labels,
    Matrix,
    Prepare,
    Train,
)
from jaxmetric.config import Config
from jaxmetric.errors import CheckpointWriteError, Interrupted

DESCRIPTION = "Metric learning for single-cell RNA-seq: train, use and evaluate cell embeddings."


def _commands(base: Config) -> Any:
    """The commands, with the base's values as the defaults of the flags of those that train."""
    missing = {"files": tyro.MISSING, "directory": tyro.MISSING}
    given = missing | {"labels": Labels(), "matrix": Matrix(), "config": base}
    train, crossvalidate = Train(**given), Crossvalidate(**given)
    return (
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Prepare, tyro.conf.subcommand("prepare")]
        | Annotated[Train, tyro.conf.subcommand("train", default=train)]
        | Annotated[Embed, tyro.conf.subcommand("embed")]
        | Annotated[Annotate, tyro.conf.subcommand("annotate")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Crossvalidate, tyro.conf.subcommand("crossvalidate", default=crossvalidate)]
        | Annotated[Import, tyro.conf.subcommand("import")]
        | Annotated[Export, tyro.conf.subcommand("export")]
    )


def _base_config(arguments: list[str]) -> Config:
    """What the flags of commands that train change: the config of a model to start from, or a preset."""
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--init", nargs="?")
    look.add_argument("--scimilarity", action="store_true")
    found, _ = look.parse_known_args(arguments)
    command = arguments[0] if arguments else ""
    if command not in ("train", "crossvalidate") or not (found.init or found.scimilarity):
        return Config()
    from jaxmetric.model.load import load_config

    if found.scimilarity:
        return Config.scimilarity(**(load_config(found.init).sizes if found.init else {}))
    return dataclasses.replace(load_config(found.init), freeze=())


def main(arguments: list[str] | None = None) -> None:
    """Runs the command; bad use and bad input end with a message on stderr and exit code 2.

    What was interrupted ends with 128 + the signal's number, as shells count; what failed, with 1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--version"]:
        print(f"jaxmetric {__version__}")
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("jaxmetric").setLevel(logging.INFO)
    try:
        _parse(arguments)()
    except Interrupted as stop:
        _fail(str(stop), 128 + stop.signum)
    except (FloatingPointError, CheckpointWriteError) as error:
        _fail(str(error), 1)
    except RuntimeError as error:
        if not _is_of_several_processes(error):
            raise
        _leave(error)
    except (ValueError, ImportError, OSError) as error:
        _fail(str(error))


def _parse(arguments: list[str]):
    """The command, from the arguments; tyro's boxed complaints become one line."""
    commands = _commands(_base_config(arguments))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                commands,
                prog="jaxmetric",
                description=DESCRIPTION,
                args=arguments,
                config=(OmitArgPrefixes, OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[^\x00-\x7f]|Error parsing \S+ |-{5,}", "", said.getvalue())
        _fail(" ".join(text.split()))


def _is_of_several_processes(error: RuntimeError) -> bool:
    """Whether it is jax that failed, in a job of several processes."""
    import jax

    from jaxmetric.sharding import num_processes

    return isinstance(error, jax.errors.JaxRuntimeError) and num_processes() > 1


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"jaxmetric: error: {message.strip()}", file=sys.stderr)
    sys.exit(code)


def _leave(error: Exception) -> NoReturn:
    """Ends this process of several at once: the usual way out waits for those that are gone."""
    print(
        "jaxmetric: error: another process of this job has stopped or cannot be reached, so this one "
        "stops too; give all of them the same command again to go on from the newest checkpoint "
        f"({' '.join(str(error).split())[:200]})",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
