"""Files and folders that are written whole or not at all."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import anndata


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with _whole(path) as partial:
        partial.write_text(text)


def write_h5ad(adata: "anndata.AnnData", path: Path) -> None:
    """Writes an h5ad file whole or not at all."""
    with _whole(path) as partial:
        adata.write_h5ad(partial)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path beside the given one; what is written there takes the given place once it is done."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """A new folder beside the given place; once it is done it takes that place and what was there."""
    directory.absolute().parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=directory.absolute().parent, prefix=f".{directory.name}."))
    try:
        yield building
        building.chmod(0o755)
        if directory.exists():
            replaced = Path(f"{building}.replaced")
            directory.rename(replaced)
            building.rename(directory)
            shutil.rmtree(replaced)
        else:
            building.rename(directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)
