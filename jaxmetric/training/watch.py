"""Training seen from outside: progress bar, log, alarms, checkpoints, requests to stop."""

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Int
from tqdm.auto import tqdm

from jaxmetric.config import Config
from jaxmetric.errors import Interrupted, NonFiniteError
from jaxmetric.sharding import is_first_process, stop_is_due
from jaxmetric.training.collapse import alarms
from jaxmetric.training.run import Progress, Run, Snapshot

log = logging.getLogger("jaxmetric")
EPOCHS_OF_ALARM = 3  # epochs in a row that must show a sign of collapse
FIRST_ALARMS = ([True] * EPOCHS_OF_ALARM, [False] + [True] * EPOCHS_OF_ALARM)
LOGGED = (
    "epoch",
    "loss",
    "triplet_loss",
    "mse",
    "hard_fraction",
    "val_loss",
    "val_nmse",
    "val_silhouette",
)


T = TypeVar("T")


class Report(NamedTuple):
    """What a user sees of training: a progress bar, and a log line every `log_every` steps (0: none)."""

    progress: bool = True
    log_every: int = 0


class Watch:
    """Watches training: adds each step's metrics to `progress`, logs, and saves checkpoints.

    It reads a step's metrics while the devices compute the next step, so that they never wait for it.
    """

    def __init__(
        self,
        config: Config,
        run: Run | None,
        report: Report,
        progress: Progress,
        asked: Callable[[], int],
    ) -> None:
        self._config, self._run, self._log_every = config, run, report.log_every
        self._progress, self._asked = progress, asked
        self._pending = None
        steps_done = len(progress.history) * config.steps_per_epoch + len(progress.infos)
        self._bar = tqdm(
            total=config.max_epochs * config.steps_per_epoch * config.batch_size,
            initial=steps_done * config.batch_size,
            desc="training",
            unit=" cells",
            unit_scale=True,
            disable=None if report.progress and is_first_process() else True,
        )
        self._start_clock()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def timed(self, inputs: Iterator[T]) -> Iterator[T]:
        """The inputs, while it adds up the time spent waiting for them."""
        while True:
            start = time.perf_counter()
            try:
                one = next(inputs)
            except StopIteration:
                return
            self._input_seconds += time.perf_counter() - start
            yield one

    def steps_under_way(self, infos: dict, rows: Int[np.ndarray, "steps batch"]) -> None:
        """Takes the metrics of steps that were just started, and reads those of the steps before.

        Raises:
          NonFiniteError: when the loss or gradient of a step before is NaN or infinite.
        """
        self._read()
        self._pending = infos, rows

    def means(self) -> dict[str, float]:
        """The mean of each metric over the epoch's steps."""
        self._read()
        infos = self._progress.infos
        means = {name: float(np.mean([info[name] for info in infos])) for name in infos[0]}
        infos.clear()
        self._pace_of_steps = self._pace()
        return means

    def epoch_done(self, row: dict, snapshot: Snapshot) -> None:
        """Logs an epoch, warns of signs of collapse, and starts to save the checkpoint."""
        values = ", ".join(f"{name} {row[name]:.4g}" for name in LOGGED if name in row)
        log.info("%s; %s", values, self._pace_of_steps)
        self._warn(row["epoch"])
        if self._run is not None:
            self._run.log(self._progress.history[-1])
            self._run.save(snapshot, row["step"], self._progress)
        self._start_clock()

    def stop_if_asked(self, snapshot: Snapshot, step: int) -> None:
        """Saves the snapshot and raises `Interrupted` where a signal has asked training to stop."""
        if not (self._asked() or stop_is_due(step)):
            return
        self._read()
        signum = self._asked() or signal.SIGTERM
        what = f"stopped by {signal.Signals(signum).name} after step {step}"
        if self._run is None:
            raise Interrupted(
                signum, f"{what}; there is no directory, so nothing was saved: name one, to go on."
            )
        self._run.save(snapshot, step, self._progress)
        self._run.close()
        raise Interrupted(
            signum,
            f"{what}, which is saved in {self._run.directory}: give the same command again to go on.",
        )

    def _warn(self, epoch: int) -> None:
        """Warns of each sign of collapse that has just lasted for EPOCHS_OF_ALARM epochs."""
        recent = self._progress.history[-EPOCHS_OF_ALARM - 1 :]
        signs = [dict(alarms(row, self._config.margin)) for row in recent]
        for name, advice in signs[-1].items():
            if [name in sign for sign in signs] in FIRST_ALARMS:
                log.warning("epoch %d, as the %d before: %s", epoch, EPOCHS_OF_ALARM - 1, advice)

    def _read(self) -> None:
        """Reads the metrics of the steps that were started last, once the devices have them."""
        if self._pending is None:
            return
        (infos, rows), self._pending = self._pending, None
        start = time.perf_counter()
        infos = {name: np.ravel(value) for name, value in jax.device_get(infos).items()}
        self._device_seconds += time.perf_counter() - start
        for i, rows_of_step in enumerate(rows):
            self._add({name: float(value[i]) for name, value in infos.items()}, rows_of_step)

    def _add(self, info: dict[str, float], rows: np.ndarray) -> None:
        epoch, step = len(self._progress.history) + 1, len(self._progress.infos) + 1
        if not (math.isfinite(info["loss"]) and math.isfinite(info["gradient_norm"])):
            raise NonFiniteError(self._non_finite(epoch, step, info, rows))
        self._progress.infos.append(info)
        self._steps += 1
        self._bar.set_postfix(epoch=epoch, loss=f"{info['loss']:.4f}", refresh=False)
        self._bar.update(self._config.batch_size)
        if self._log_every and step % self._log_every == 0:
            log.info("epoch %d, step %d: loss %.4g; %s", epoch, step, info["loss"], self._pace())

    def _start_clock(self) -> None:
        self._since, self._steps = time.perf_counter(), 0
        self._input_seconds = self._device_seconds = 0.0  # spent waiting for each

    def _pace(self) -> str:
        steps = max(self._steps, 1)
        seconds = (time.perf_counter() - self._since) / steps
        return (
            f"{self._config.batch_size / seconds:.0f} cells/s; a step: {1e3 * seconds:.1f} ms, "
            f"of which waiting for input {self._input_seconds / steps / seconds:.1%}, "
            f"for the device {self._device_seconds / steps / seconds:.1%}"
        )

    def _non_finite(self, epoch: int, number: int, info: dict, rows: np.ndarray) -> str:
        newest = None if self._run is None else self._run.newest_checkpoint
        saved = (
            "no checkpoint was saved" if newest is None else f"the last good checkpoint is {newest}"
        )
        return (
            f"the loss is {info['loss']} and the norm of its gradient {info['gradient_norm']} in batch "
            f"{number} of epoch {epoch} (seed {self._config.seed}; training cells "
            f"{', '.join(map(str, rows[:5]))}, ... of {len(rows)}); {saved}. Look for "
            "extreme values in these cells, or start in a new directory with a lower learning_rate, "
            "clip_norm=1 or warmup_steps."
        )
