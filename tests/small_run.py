"""A small training run, to be killed or run by several: small_run.py DIRECTORY EPOCHS [PORT N ID]."""

import os
import resource
import sys

import jax
from made_up import make_adata

import jaxmetric as jm
from jaxmetric import sharding

HEARTBEAT = 6  # seconds; a fifth of what users have


def small_run(directory, epochs, devices=None):
    """Trains, or goes on, in the directory."""
    config = jm.Config(
        hidden_dim=(32,),
        latent_dim=8,
        batch_size=32,
        max_epochs=epochs,
        steps_per_epoch=5,
        margin=0.3,
        perturb_labels_fraction=0.1,
        monitor="val_nmse",
    )
    cells = jm.read_cells(make_adata(200), label_key="cell_type", study_key="study")
    print("training", flush=True)
    options = {"validation": ["study_0"], "devices": devices, "progress": False}
    jm.fit(cells, config, directory=directory, **options)
    print("done", flush=True)


if __name__ == "__main__":
    directory, epochs, *several = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 1)
    if "LARGEST_FILE" in os.environ:  # bytes: writing more fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LARGEST_FILE"]),) * 2)
    if several:
        sharding.HEARTBEAT = HEARTBEAT
        port, count, process_id = map(int, several)
        jm.connect(f"localhost:{port}", count, process_id)
    small_run(directory, int(epochs))
