"""Files of cells -> one training store: all files are checked first, then each is written once."""

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from tqdm.auto import tqdm

from jaxmetric.cells.coded import numbered, renamed
from jaxmetric.cells.packed import move_columns, value_type
from jaxmetric.cells.source import opened, paths_in, stamp
from jaxmetric.cells.store import FORMAT, require_zarr_3
from jaxmetric.config import Filters, Values
from jaxmetric.files import write_json
from jaxmetric.labels.ontology import CellOntology
from jaxmetric.preparation.filters import kept_blocks
from jaxmetric.preparation.plan import Plan, plan_of
from jaxmetric.preparation.report import report_of
from jaxmetric.preparation.scan import Reading, Scan, obs_of, scan
from jaxmetric.preparation.work_folder import digest, discard, open_work
from jaxmetric.preparation.write import (
    ValueWriter,
    write_anndata,
    write_checksums,
    write_frame,
    write_numbers,
)

log = logging.getLogger("jaxmetric")
STATE = "jaxmetric prepare 1"


def prepare(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    label_key: str,
    study_key: str | None = None,
    layer: str | None = None,
    values: Values | None = None,
    gene_key: str | None = None,
    genes: str | Sequence[str] = "intersection",
    min_gene_overlap: float = 0.2,
    ontology: CellOntology | str | None = "default",
    filters: Filters | None = None,
    skip_bad: bool = False,
    progress: bool = True,
) -> dict:
    """Streams files of any size into one training store, which `read_cells` reads and anndata opens.

    Each file is read twice: once to check all of it, once to write it. Where that was cut short, the
    same call goes on with the file that it was at. Memory does not grow with the number of cells but
    for the columns of `obs` of one file.

    Args:
      files: h5ad files, zarr folders, and folders of these.
      out: the store's folder, which must not exist.
      label_key: column of `obs` with the cell types. Labels that are no terms of the ontology are
        reported, and their cells have no label.
      study_key: column of `obs` with the study. None: each file is a study.
      layer: as in `read_cells`; None: also raw, of a file that has counts only there.
      values: as in `read_cells`.
      gene_key: as in `read_cells`.
      ontology: as in `read_cells`.
      genes: the store's genes: "intersection" or "union" of those of the files, in the order of the
        first, or a list of names. Files with Ensembl ids and files with symbols go together where
        columns of `var` give all of them names of one kind.
      min_gene_overlap: least share of a given list of genes that a file must have; of a file's own
        genes, that the intersection must have.
      filters: which cells are kept; None: all.
      skip_bad: leave out files that cannot be used, rather than stop before anything is written.
      progress: show progress bars, on a terminal.

    Returns:
      The report, which is also in OUT.report.json beside the store: for each file its cells, those
      kept, and those dropped by reason; labels that are no terms; files left out, and why.

    Raises:
      ValueError: for files that cannot be used, each with what is wrong, or a folder that exists.
    """
    out, filters = Path(out), filters or Filters()
    paths = [path.absolute() for one in _listed(files) for path in paths_in(Path(one))]
    reading = Reading(
        label_key=label_key, study_key=study_key, layer=layer, values=values, gene_key=gene_key
    )
    _check(paths, out)
    _check_columns(reading, filters)
    if ontology == "default":
        ontology = CellOntology.default()
    genes = genes if isinstance(genes, str) else list(genes)
    work, study_names = out.absolute().parent / f".{out.name}.partial", _study_names(paths)
    options = _options(reading, filters, genes, min_gene_overlap, ontology)
    open_work(work, {"format": STATE, "files": list(map(stamp, paths)), "options": options})
    with _bar("checking", paths, progress) as bar:
        scans, bad = _scan_all(study_names, reading, filters, work, bar)
    _report_bad(bad, len(paths), may_skip=bool(skip_bad and scans))
    _warn_of_unused_exclusions(scans, filters)
    plan = plan_of(scans, study_names, genes, min_gene_overlap, ontology)
    _hold_to(plan, work)
    with _bar("writing", list(map(Path, scans)), progress) as bar:
        for name in scans:
            _write_once(Path(name), plan, reading, filters, work, bar)
    report = report_of(plan, bad)
    _finish(work / "store", plan, reading, filters, report, work)
    write_json(out.with_name(f"{out.name}.report.json"), report)
    (work / "store").rename(out)
    discard(work)
    return report


def _options(
    reading: Reading,
    filters: Filters,
    genes: str | list[str],
    min_gene_overlap: float,
    ontology: CellOntology | None,
) -> dict[str, Any]:
    """All that the store depends on besides the files; work on other options is not continued."""
    options = dataclasses.asdict(reading) | dataclasses.asdict(filters)
    options |= {"genes": genes, "min_gene_overlap": min_gene_overlap}
    return options | {"ontology": ontology and ontology.version}


def _report_bad(bad: dict[str, str], num_files: int, *, may_skip: bool) -> None:
    """Warns of the files that cannot be used; raises a ValueError where they may not be skipped."""
    if bad and not may_skip:
        raise ValueError(
            f"{len(bad)} of {num_files} files cannot be used, and nothing was written: "
            f"{'; '.join(why.rstrip('.') for why in bad.values())}. Leave them out, or say "
            "skip_bad=True / --skip-bad."
        )
    for why in bad.values():
        log.warning("left out: %s", why)


def _warn_of_unused_exclusions(scans: dict[str, Scan], filters: Filters) -> None:
    """Warns where no cell is of an excluded study or sample: its name may be misspelled."""
    exclusions = {"study": filters.exclude_studies, "sample": filters.exclude_samples}
    for kind, names in exclusions.items():
        if names and not any(scan.dropped.get(f"{kind} excluded") for scan in scans.values()):
            log.warning("no cell is of an excluded %s: %s", kind, ", ".join(names))


def _scan_all(
    study_names: dict[str, str], reading: Reading, filters: Filters, work: Path, bar: tqdm
) -> tuple[dict[str, Scan], dict[str, str]]:
    """The scan of each usable file, and the error of each file that cannot be used."""
    scans, bad = {}, {}
    for path, study in ((Path(name), study) for name, study in study_names.items()):
        inputs = [stamp(path), study, dataclasses.asdict(reading), dataclasses.asdict(filters)]
        saved = work / "scans" / f"{digest(inputs)}.json"
        try:
            if saved.exists():
                result = Scan(**json.loads(saved.read_text()))
                result = result._replace(names={k: tuple(v) for k, v in result.names.items()})
                bar.update(_size(path))
            else:
                result = scan(path, reading, filters, study, _advance(bar, path))
                write_json(saved, result._asdict())
        except (ValueError, OSError) as error:
            bad[str(path)] = str(error) if str(path) in str(error) else f"{path}: {error}"
            continue
        scans[str(path)] = result
    return scans, bad


def _write_once(
    path: Path, plan: Plan, reading: Reading, filters: Filters, work: Path, bar
) -> None:
    """Writes a file's values to their place in the store, and its cells' columns to `parts/`."""
    part = work / "parts" / f"{_slug(path)}.npz"
    if part.exists():
        bar.update(_size(path))
        return
    name, sizes = str(path), list(plan.num_values.values())
    start = sum(sizes[: list(plan.scans).index(name)])
    largest = max(scan.largest for scan in plan.scans.values())
    kind = np.promote_types(np.uint16, value_type(largest, plan.values == "counts"))
    writer = ValueWriter(work / "store", kind, start, sum(sizes))
    lengths, kept, advance = [], [], _advance(bar, path)
    with opened(path, name, plan.scans[name].layer) as source:
        obs, names = obs_of(source, reading, filters, plan.files[name]), plan.scans[name].names
        for block in kept_blocks(source, obs.studies, obs.samples, names, filters):
            X = move_columns(block.X[block.kept], plan.columns[name], len(plan.genes))
            writer.append(X)
            lengths.append(np.diff(X.indptr))
            kept.append(block.kept)
            advance(len(block.kept) / len(source))
        sums = writer.finish()
        kept, lengths = np.concatenate(kept), np.concatenate(lengths)
        if lengths.sum() != plan.num_values[name] or kept.sum() != plan.scans[name].kept:
            raise ValueError(
                f"{name} has changed while it was read: remove {work} and start again."
            )
        obs = obs.kept(kept)
        arrays = {
            "lengths": lengths,
            "labels": numbered(renamed(obs.labels, plan.terms), plan.labels),
            "spelled": numbered(obs.labels, list(plan.terms)),
            "studies": numbered(obs.studies, plan.studies),
            "samples": numbered(obs.samples, plan.samples),
            "names": _names(source.obs.index, plan, name)[kept],
            "digest": np.array(sums),
        }
    building = part.with_suffix(".partial")
    with building.open("wb") as file:
        np.savez(file, **arrays)
    building.rename(part)


def _names(index: pd.Index, plan: Plan, name: str) -> np.ndarray:
    """The cells' names; of several files, with the file's behind them, as anndata.concat has them."""
    names = np.asarray(index.astype(str), str)
    return names if len(plan.scans) == 1 else np.char.add(names, f"-{plan.files[name]}")


def _finish(
    store, plan: Plan, reading: Reading, filters: Filters, report: dict, work: Path
) -> None:
    """Completes the store: row pointers, `obs`, genes, report and checksums, beside the values."""

    def parts(name: str) -> Iterator[np.ndarray]:
        for path in plan.scans:
            with np.load(work / "parts" / f"{_slug(Path(path))}.npz") as arrays:
                yield arrays[name]

    cells = sum(scan.kept for scan in plan.scans.values())
    group = zarr.open_group(str(store), mode="a", zarr_format=3)
    _write_row_pointers(group, parts("lengths"), cells, sum(plan.num_values.values()))
    sizes = [scan.kept for scan in plan.scans.values()]
    columns: dict[str, tuple] = {
        reading.label_key: (parts("labels"), plan.labels),
        f"{reading.label_key}_original": (parts("spelled"), list(plan.terms)),
        reading.study_key or "study": (parts("studies"), plan.studies),
        "source_file": ((np.full(n, i) for i, n in enumerate(sizes)), list(plan.files.values())),
    }
    if filters.sample_key is not None:
        columns[filters.sample_key] = (parts("samples"), plan.samples)
    write_frame(group, "obs", parts("names"), columns, cells)
    content = hashlib.sha256(json.dumps([list(map(str, parts("digest"))), plan.genes]).encode())
    about = {
        "format": FORMAT,
        "values": plan.values,
        "largest": max(scan.largest for scan in plan.scans.values()),
        "label_key": reading.label_key,
        "study_key": reading.study_key or "study",
        "ontology": plan.ontology,
        "fingerprint": content.hexdigest(),
        "report": report,
    }
    write_anndata(group, cells, plan.genes, about)
    write_checksums(group, store)


def _write_row_pointers(
    group: zarr.Group, lengths: Iterator[np.ndarray], num_cells: int, num_values: int
) -> None:
    """Writes the `indptr` of the CSR matrix X from the number of values of each cell."""
    kind = np.int32 if num_values < 2**31 else np.int64  # that of indices, as long as it suffices
    indptr = write_numbers(group.require_group("X"), "indptr", kind, num_cells + 1)
    row, total = 1, 0
    for counts in lengths:
        indptr[row : row + len(counts)] = total + np.cumsum(counts)
        row, total = row + len(counts), total + int(counts.sum())


def _listed(files) -> list:
    return [files] if isinstance(files, str | Path) else list(files)


def _check(paths: list[Path], out: Path) -> None:
    if not paths:
        raise ValueError("no data: expected files to prepare, but got none.")
    require_zarr_3("a training store")
    twice = [
        path for path, count in Counter(path.absolute() for path in paths).items() if count > 1
    ]
    if twice:
        raise ValueError(f"{twice[0]} is given more than once.")
    if out.exists():
        raise ValueError(f"{out} exists: choose another folder, or remove it.")


def _check_columns(reading: Reading, filters: Filters) -> None:
    keys = [reading.label_key, f"{reading.label_key}_original", reading.study_key or "study"]
    keys += ["source_file"] + ([] if filters.sample_key is None else [filters.sample_key])
    if len(set(keys)) < len(keys):
        raise ValueError(
            f"the store's columns of obs must differ, but would be {', '.join(keys)}: rename a column."
        )


def _hold_to(plan: Plan, work: Path) -> None:
    """Discards what was written for another plan, as when a file could not be read before."""
    known = [plan.genes, plan.terms, plan.studies, plan.samples, plan.num_values, plan.files]
    found = digest([*known, [scan.kept for scan in plan.scans.values()]])
    path = work / "plan.json"
    if path.exists() and json.loads(path.read_text())["digest"] != found:
        log.info("the files are no longer those that were written before: writing anew")
        discard(work, but="scans state.json")
        for name in ("parts", "store"):
            (work / name).mkdir()
    write_json(path, {"digest": found})


def _study_names(paths: list[Path]) -> dict[str, str]:
    """A name for each file: its own without suffix, or its path where others have that name."""
    stems = Counter(path.stem for path in paths)
    return {str(path): path.stem if stems[path.stem] == 1 else str(path) for path in paths}


def _size(path: Path) -> int:
    return stamp(path)[1] if path.exists() else 0


def _slug(path: Path) -> str:
    return f"{path.stem}-{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]}"


def _advance(bar: tqdm, path: Path) -> Callable[[float], object]:
    size = _size(path)
    return lambda share: bar.update(share * size)


def _bar(what: str, paths: list[Path], progress: bool) -> tqdm:
    total = sum(map(_size, paths))
    return tqdm(
        total=total, desc=what, unit="B", unit_scale=True, disable=None if progress else True
    )
