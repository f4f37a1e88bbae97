import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_up import make_adata

import jaxmetric as jm
from jaxmetric.cli.main import main

HEAVY = {
    "anndata",
    "flax",
    "jax",
    "matplotlib",
    "numpy",
    "optax",
    "orbax",
    "pandas",
    "scipy",
    "sklearn",
    "zarr",
}
SCRIPT = """
import contextlib, io, json, sys
from jaxmetric.cli.main import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main(arguments)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def imported_by(*commands):
    """The packages that the commands, one after the other in one fresh process, have imported."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout))


def test_help_version_and_refusals_import_nothing_heavy():
    refused = [["fly"], ["train"], ["train", "x", "--directory", "y", "--margin", "-1"]]
    found = imported_by(["--help"], ["--version"], ["train", "--help"], *refused)
    assert "tyro" in found
    assert not found & HEAVY


def test_preparing_a_store_imports_no_jax(tmp_path):
    make_adata(60).write_h5ad(tmp_path / "cells.h5ad")
    command = [
        "prepare",
        f"{tmp_path}/cells.h5ad",
        "--label-key",
        "cell_type",
        "--study-key",
        "study",
    ]
    found = imported_by([*command, "--out", f"{tmp_path}/store.zarr", "--quiet"])
    assert (tmp_path / "store.zarr").exists()
    assert not found & {"flax", "jax", "matplotlib", "optax", "orbax"}


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"jaxmetric {jm.__version__}\n"


def test_public_names_are_those_of_the_stub():
    tree = ast.parse((Path(jm.__file__).parent / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names}
    assert names == set(jm.__all__) <= set(dir(jm))
    assert all(getattr(jm, name).__name__ == name for name in names)
    with pytest.raises(AttributeError, match="fly"):
        _ = jm.fly
