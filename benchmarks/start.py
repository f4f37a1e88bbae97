"""How long does a person wait before anything happens?

    python benchmarks/start.py            # medians of 5, each in a fresh process, in turns

The commands that need no data, beside `import jax, flax`; and the import, beside that of what it is
built on. Prints a table: seconds, and the ratio to the line it is to be compared with.
"""

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import time

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


def seconds(command: list[str]) -> float:
    """Wall time of a process."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(1 + repeats):  # the first turn fills the page cache and is not counted
        for name, (command, _) in ROWS.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    print(f"{datetime.date.today()}, {os.cpu_count()} CPU cores, Python {sys.version.split()[0]}")
    print(f"{'':<43} seconds  ratio  to")
    for name, (_, beside) in ROWS.items():
        print(f"{name:<43} {medians[name]:<8.2f} {medians[name] / medians[beside]:<6.2f} {beside}")


if __name__ == "__main__":
    main()
