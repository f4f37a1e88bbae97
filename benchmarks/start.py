"""How long does a person wait before anything happens?

    python benchmarks/start.py            # medians of 5, each in a fresh process, in turns
    python benchmarks/start.py --data FILE.h5ad --label-key celltype_name --study-key study

The commands that need no data, beside `import jax, flax`; and the import, beside that of what it is
built on. Prints a table: seconds, and the ratio to the line it is to be compared with. With --data
instead what compiles: two steps of `fit` with an empty cache of compiled programs and with a filled
one, a second seed in the same process, 1000 cells embedded by the shell, and the demo.
"""

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JAX = [sys.executable, "-c", "import jax, flax"]
STACK = [sys.executable, "-c", "import jax, flax, optax, anndata"]
SHELL = [sys.executable, "-m", "jaxmetric"]
EVERY_NAME = "import jaxmetric as jm; [getattr(jm, name) for name in jm.__all__]"
ROWS = {
    "import jax, flax": (JAX, "import jax, flax"),
    "jaxmetric --version": ([*SHELL, "--version"], "import jax, flax"),
    "jaxmetric --help": ([*SHELL, "--help"], "import jax, flax"),
    "jaxmetric train --help": ([*SHELL, "train", "--help"], "import jax, flax"),
    "jaxmetric train ... --margin -1 (refused)": (
        [*SHELL, "train", "x.h5ad", "--directory", "run", "--margin", "-1"],
        "import jax, flax",
    ),
    "import jax, flax, optax, anndata": (STACK, "import jax, flax, optax, anndata"),
    "import jaxmetric": (
        [sys.executable, "-c", "import jaxmetric"],
        "import jax, flax, optax, anndata",
    ),
    "import jaxmetric, and every public name": (
        [sys.executable, "-c", EVERY_NAME],
        "import jax, flax, optax, anndata",
    ),
}


TWO_STEPS = """
import sys, time
start = time.perf_counter()
import jaxmetric as jm
file, label_key, study_key, directory = sys.argv[1:]
cells = jm.read_cells(file, label_key=label_key, study_key=study_key)
for seed in (0, 1):
    config = jm.Config(max_epochs=1, steps_per_epoch=2, seed=seed)
    model = jm.fit(cells, config, progress=False)
    print(time.perf_counter() - start)
    start = time.perf_counter()
model.save(directory + "/model", overwrite=True)
"""


def seconds(command: list[str], **environment: str) -> float:
    """Wall time of a process."""
    start, quiet = time.perf_counter(), subprocess.DEVNULL
    subprocess.run(command, stdout=quiet, stderr=quiet, check=False, env=os.environ | environment)
    return time.perf_counter() - start


def compiling(file: str, label_key: str, study_key: str, repeats: int) -> None:
    """Prints what takes how long with an empty cache of compiled programs, and with a filled one."""
    times: dict[str, list[float]] = {}
    for turn in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            cache = {"JAXMETRIC_CACHE": f"{folder}/cache"}
            fit = [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                TWO_STEPS,
                file,
                label_key,
                study_key,
                folder,
            ]
            for state in ("cold", "warm"):
                said = subprocess.run(
                    fit, capture_output=True, text=True, env=os.environ | cache, check=True
                ).stdout.split()
                times.setdefault(f"read and fit, two steps, {state}", []).append(float(said[0]))
                times.setdefault(f"a second seed of it, {state}", []).append(float(said[1]))
            thousand(file, Path(folder) / "thousand.h5ad")
            for state in ("cold", "warm"):
                files = [f"{folder}/thousand.h5ad", "--out", f"{folder}/{state}.h5ad"]
                embed = [*SHELL, "embed", f"{folder}/model", *files]
                times.setdefault(f"jaxmetric embed, 1000 cells, {state}", []).append(
                    seconds(embed, **cache)
                )
            if turn == 0:
                for state in ("cold", "warm"):
                    demo = [*SHELL, "demo", "--directory", f"{folder}/{state}"]
                    cache = {"JAXMETRIC_CACHE": f"{folder}/cache of the demo"}
                    times[f"jaxmetric demo, {state}, once"] = [seconds(demo, **cache)]
    for name, taken in times.items():
        print(f"{name:<43} {statistics.median(taken):.1f}")


def thousand(file: str, path: Path) -> None:
    """Writes the first 1000 cells of a file."""
    import anndata

    anndata.read_h5ad(file)[:1000].copy().write_h5ad(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", help="cells to train on: measure what compiles")
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--study-key", default="study")
    asked = parser.parse_args()
    repeats = asked.repeats
    print(f"{datetime.date.today()}, {os.cpu_count()} CPU cores, Python {sys.version.split()[0]}")
    if asked.data:
        compiling(asked.data, asked.label_key, asked.study_key, repeats)
        return
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(1 + repeats):  # the first turn fills the page cache and is not counted
        for name, (command, _) in ROWS.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    print(f"{'':<43} seconds  ratio  to")
    for name, (_, beside) in ROWS.items():
        print(f"{name:<43} {medians[name]:<8.2f} {medians[name] / medians[beside]:<6.2f} {beside}")


if __name__ == "__main__":
    main()
