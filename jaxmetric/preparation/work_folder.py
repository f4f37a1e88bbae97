"""The folder in which a store is made, so that the work goes on where it was cut short."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

from jaxmetric.files import write_json

log = logging.getLogger("jaxmetric")


def open_work(work: Path, state: dict) -> None:
    """The folder of the work under way: new, or of this very work."""
    path, state = work / "state.json", json.loads(json.dumps(state))
    shutil.rmtree(_trash(work), ignore_errors=True)
    if work.exists():
        found = json.loads(path.read_text()) if path.exists() else {"options": {}}
        flat = [{**one["options"], **one, "options": None} for one in (found, state)]
        differ = sorted(k for k in {**flat[0], **flat[1]} if flat[0].get(k) != flat[1].get(k))
        begun = (work / "store" / "X" / "data" / "zarr.json").exists()
        if differ and begun and path.exists():
            raise ValueError(
                f"{work} is of another preparation that was not finished ({', '.join(differ)} differ): "
                "give the same files and options to go on with it, or remove it."
            )
        if not path.exists() or not begun:  # nothing is written, and scans alone may count
            discard(work, but="scans" if path.exists() else "")
        log.info("going on with %s", work)
    for name in ("scans", "parts", "store"):
        (work / name).mkdir(parents=True, exist_ok=True)
    write_json(path, state)


def discard(work: Path, but: str = "") -> None:
    """Removes the folder, or all in it but some; what is half removed is never taken for whole."""
    trash = _trash(work)
    shutil.rmtree(trash, ignore_errors=True)
    trash.mkdir()
    if not but:
        work.rename(trash / "work")
    for path in work.iterdir() if but else ():
        if path.name not in but.split():
            path.rename(trash / path.name)
    shutil.rmtree(trash)


def _trash(work: Path) -> Path:
    return work.with_name(f"{work.name}.removed")


def digest(content: object) -> str:
    """A digest of anything that JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
