"""Runs that are killed, interrupted, damaged, out of room or shared by processes: nothing is lost."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import DEVICES
from made_up import make_adata
from small_fit import CONFIG, KEYS, same
from small_run import small_run

import jaxmetric as jm
from jaxmetric.training.watch import Watch

SCRIPT = Path(__file__).parents[1] / "small_run.py"
EPOCHS = 16
VALIDATION = ("study_0",)


def start(directory, *arguments, **settings):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    environment |= {name: str(value) for name, value in settings.items()}
    command = [sys.executable, str(SCRIPT), str(directory), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def finish(process, seconds=120):
    """Its exit code and all it said."""
    output, errors = process.communicate(timeout=seconds)
    return process.returncode, output + errors


def same_files(one, other):
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    same(jm.load(one), jm.load(other))
    steps = [sorted(path.name for path in (d / "checkpoints").iterdir()) for d in (one, other)]
    assert steps[0] == steps[1]
    states = [newest_arrays(directory) for directory in (one, other)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def newest_arrays(directory):
    """All of the newest checkpoint as plain arrays: parameters, statistics, optimizer state."""
    import orbax.checkpoint as ocp

    newest = max((directory / "checkpoints").iterdir(), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as checkpointer:
        return jax.tree.map(np.asarray, checkpointer.restore(newest.absolute() / "arrays"))


def survives(tmp_path, kills):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, EPOCHS)  # how long from the first line to the end?
    process.stdout.readline()
    begin = time.monotonic()
    code, said = finish(process)
    assert code == 0, said
    seconds = 0.7 * (time.monotonic() - begin)  # it compiled, the others need not
    generator, landed = np.random.default_rng(0), []
    for _ in range(kills):
        process = start(killed, EPOCHS)
        process.stdout.readline()
        time.sleep(generator.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        landed.append(finish(process)[0] == -signal.SIGKILL)
        if (killed / "model").exists():  # finished, so there is nothing left to kill
            same_files(whole, killed)
            shutil.rmtree(killed)
    code, said = finish(start(killed, EPOCHS))
    assert code == 0, said
    same_files(whole, killed)
    return sum(landed)


def test_a_run_killed_at_random_moments_ends_as_one_never_touched(tmp_path):
    assert survives(tmp_path, kills=3) >= 1  # others may come after the end


@pytest.mark.soak
def test_fifty_kills(tmp_path):
    print(survives(tmp_path, kills=50), "of 50 kills came before the end")


@pytest.fixture(scope="module")
def cells():
    return jm.read_cells(make_adata(200), **KEYS)


@pytest.fixture(scope="module")
def fit(cells, device):
    def run(directory, config=MONITORED, **options):
        options = {"validation": VALIDATION, "devices": device} | options
        return jm.fit(cells, config, directory=directory, **options)

    return run


MONITORED = dataclasses.replace(CONFIG, monitor="val_mse")  # which is best at the end


@pytest.fixture(scope="module")
def whole(fit, tmp_path_factory):
    """A run that was never touched: its model and its directory."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    model = fit(directory, MONITORED)
    assert {path.name for path in (directory / "checkpoints").iterdir()} == {"8", "12"}
    return model, directory


def interrupt_at(batch, signum=signal.SIGINT):
    """A patch that sends a signal while the step of the numbered batch is under way."""
    count = [0]

    def signalled(*arguments, follow=Watch.steps_under_way):
        count[0] += 1
        if count[0] == batch:
            signal.raise_signal(signum)
        follow(*arguments)

    patch = pytest.MonkeyPatch()
    patch.setattr(Watch, "steps_under_way", signalled)
    return patch


@pytest.mark.parametrize(
    ("batch", "signum"),  # in an epoch, at the end of one, in the next
    [(2, signal.SIGINT), (4, signal.SIGTERM), (7, signal.SIGTERM)],
)
def test_a_signal_saves_the_step_under_way_and_says_how_to_go_on(
    fit, whole, tmp_path, batch, signum
):
    patch, before = interrupt_at(batch, signum), signal.getsignal(signum)
    with pytest.raises(jm.Interrupted, match="give the same command again") as stop:
        fit(tmp_path / "run")
    patch.undo()
    assert stop.value.signum == signum
    assert f"after step {batch}," in str(stop.value)
    assert signal.getsignal(signum) is before
    assert max(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()) == batch
    same(fit(tmp_path / "run"), whole[0])
    rows = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert rows == (whole[1] / "metrics.jsonl").read_text()


def test_the_same_seed_gives_the_same_bits(fit, whole):
    again = fit(None)
    same(again, whole[0])
    np.testing.assert_array_equal(again.history, whole[0].history)


def test_a_run_killed_while_it_made_room_keeps_no_more_checkpoints(fit, whole, tmp_path):
    copy = shutil.copytree(whole[1], tmp_path / "run")
    shutil.rmtree(copy / "model")
    shutil.copytree(copy / "checkpoints" / "8", copy / "checkpoints" / "4")
    same(fit(copy), whole[0])
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"8", "12"}


def damaged(whole, tmp_path, damage):
    """A copy of the whole run that was damaged after its last checkpoint, before its model was saved."""
    copy = shutil.copytree(whole[1], tmp_path / "run")
    shutil.rmtree(copy / "model")
    files = [*(copy / "checkpoints" / "12" / "arrays").rglob("d/*")]  # orbax keeps some bytes twice
    assert files
    for file in files:
        damage(file)
    return copy


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
    ],
    ids=["flipped bit", "missing file", "truncated file"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    fit, whole, tmp_path, damage, caplog
):
    run = damaged(whole, tmp_path, damage)
    same(fit(run), whole[0])
    assert f"{run / 'checkpoints' / '12'} is damaged and was moved to" in caplog.text
    assert len(list((run / "damaged").iterdir())) == 1
    assert (run / "metrics.jsonl").read_text() == (whole[1] / "metrics.jsonl").read_text()


def test_a_record_that_was_changed_is_seen(fit, whole, tmp_path, caplog):
    copy = shutil.copytree(whole[1], tmp_path / "run")
    shutil.rmtree(copy / "model")
    (record,) = (
        path
        for path in (copy / "checkpoints" / "12" / "record").iterdir()
        if '"epoch": 2' in path.read_text()
    )
    record.write_text(record.read_text().replace('"epoch": 2', '"epoch": 7'))
    same(fit(copy), whole[0])
    assert "its content is not what was saved" in caplog.text


def test_where_no_checkpoint_can_be_restored_nothing_is_moved_or_begun_anew(fit, whole, tmp_path):
    copy = shutil.copytree(whole[1], tmp_path / "run")
    for file in (copy / "checkpoints").rglob("d/*"):
        flip_a_bit(file)
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* can be restored"):
        fit(copy)
    assert not (copy / "damaged").exists()
    assert (copy / "metrics.jsonl").read_text() == (whole[1] / "metrics.jsonl").read_text()


def test_no_room_for_a_checkpoint_is_a_clear_error_and_loses_nothing(device, tmp_path):
    """Files may not grow over 2 kB, as on a full disk; then they may again."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    code, said = finish(start(run, 4, LARGEST_FILE=2000))
    assert code != 0
    assert f"no checkpoint can be written to {run / 'checkpoints'}" in said
    assert "give the same command again" in said
    for directory in (run, whole):
        small_run(directory, 4, device)
    same_files(run, whole)


def test_a_place_that_cannot_be_written_is_a_clear_error(fit, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        fit(tmp_path / "file" / "run")
    patch = interrupt_at(2)
    with pytest.raises(jm.Interrupted):
        fit(tmp_path / "run")
    patch.undo()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match=r"no checkpoint can be written to .*run/checkpoints"):
        fit(tmp_path / "run")


def test_a_run_goes_on_with_another_number_of_devices(fit, whole, tmp_path):
    patch = interrupt_at(6)
    with pytest.raises(jm.Interrupted):
        fit(tmp_path / "run")
    patch.undo()
    model = fit(tmp_path / "run", devices=DEVICES[:4])
    np.testing.assert_allclose(model.history["loss"], whole[0].history["loss"], rtol=1e-4)


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def rows_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one_and_stop_together(device, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    small_run(one, 12, device)
    processes = train_together(two, 12, until=5)
    processes[1].send_signal(signal.SIGTERM)  # to one of them
    for _, said in map(finish, processes):
        assert re.search(r"stopped by SIGTERM after step \d+, which is saved", said), said
    for code, said in map(finish, train_together(two, 12, until=10)):
        assert code == 0, said
    for alone, together in zip(rows_of(one), rows_of(two), strict=True):
        for name in ("loss", "triplet_loss", "mse", "num_triplets"):
            assert together[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-5)


def test_a_process_stops_when_another_dies(tmp_path):
    processes = train_together(tmp_path / "run", 4000, until=10)
    processes[1].kill()
    finish(processes[1])
    code, said = finish(processes[0], seconds=90)
    assert code not in (0, -signal.SIGKILL)
    assert any(word in said for word in ("peer", "heartbeat", "Barrier")), said


def train_together(directory, epochs, until):
    """Two processes that train, once they are past a step."""
    port = free_port()
    processes = [start(directory, epochs, port, 2, i) for i in (0, 1)]
    deadline = time.monotonic() + 120
    while until > max(
        (int(path.name) for path in directory.glob("checkpoints/[0-9]*[0-9]")), default=0
    ):
        assert processes[0].poll() is None, finish(processes[0])
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return processes
