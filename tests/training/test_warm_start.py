"""Training on from a model: what is frozen stays, what is not moves, genes and labels fit."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from conftest import DATA
from made_up import make_adata

import jaxmetric as jm
from jaxmetric.cli.main import main
from jaxmetric.training.step import init_state

KEYS = {"label_key": "cell_type", "study_key": "study"}
CONFIG = jm.Config(
    hidden_dim=(12, 8),
    latent_dim=4,
    batch_size=32,
    max_epochs=1,
    steps_per_epoch=4,
    margin=0.3,
)


@pytest.fixture(scope="module")
def model(device):
    return jm.fit(jm.read_cells(make_adata(200), **KEYS), CONFIG, devices=device)


@pytest.fixture(scope="module")
def new_cells():
    """Cells of other studies with their genes in another order, one gene less, and a new type."""
    adata = make_adata(200, types=("B cell", "T cell", "monocyte", "platelet"), seed=1)
    adata.obs["study"] = [f"new_{study}" for study in adata.obs["study"]]
    return jm.read_cells(adata[:, ::-1][:, 1:].copy(), **KEYS)


def groups(variables):
    """{group: all its arrays, moving statistics included}."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        _, part, layer, *rest = (key.key for key in path)
        found.setdefault(f"{part}/{layer}", {})["/".join(rest)] = np.asarray(leaf)
    return found


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        ((), set()),
        (("encoder/hidden_*",), {"encoder/hidden_0", "encoder/hidden_1"}),
        ("encoder", {"encoder/hidden_0", "encoder/hidden_1", "encoder/latent"}),
        (
            ("encoder/hidden_0", "decoder"),
            {"encoder/hidden_0", "decoder/hidden_0", "decoder/hidden_1", "decoder/output"},
        ),
    ],
)
def test_frozen_groups_do_not_change_and_all_others_do(freeze, frozen, model, new_cells, device):
    tuned = jm.fit(new_cells, CONFIG, init=model, freeze=freeze, devices=device)
    before, after = groups(model.variables), groups(tuned.variables)
    for group in before:
        for name in before[group]:
            same = np.array_equal(before[group][name], after[group][name])
            assert same == (group in {*frozen, "encoder/components"}), (group, name)
    z = tuned.embed(new_cells)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    assert tuned.config.freeze == ((freeze,) if isinstance(freeze, str) else freeze)


def test_the_optimizer_keeps_no_state_for_frozen_leaves(model):
    def size(freeze):
        config = dataclasses.replace(CONFIG, freeze=freeze)
        init = functools.partial(init_state, config, len(model.genes))
        state = jax.eval_shape(init, model.variables)
        return sum(np.size(leaf) for leaf in jax.tree.leaves(state.opt_state))

    counted = {
        group: sum(
            leaf.size for name, leaf in leaves.items() if name not in ("norm/mean", "norm/var")
        )
        for group, leaves in groups(model.variables).items()
    }
    everything, part = size(()), size(("encoder/hidden_0", "decoder/output"))
    assert everything - part == 2 * (counted["encoder/hidden_0"] + counted["decoder/output"])


def test_genes_take_the_models_order_and_new_labels_join(model, new_cells, device, caplog):
    tuned = jm.fit(new_cells, CONFIG, init=model, devices=device)
    assert tuned.genes == model.genes
    assert "1 of the model's 40 genes are not in the data" in caplog.text
    assert tuned.labels == (*model.labels, "platelet")
    assert tuned.label_ids == (*model.label_ids, "CL:0000233")
    assert tuned.trained_on["init"] == model.trained_on
    assert tuned.trained_on["steps"] == 8


def test_it_starts_where_the_model_is(model, new_cells, device):
    still = jm.Config(**{**CONFIG.to_dict(), "learning_rate": 1e-30, "weight_decay": 0.0})
    tuned = jm.fit(new_cells, still, init=model, devices=device)
    jax.tree.map(
        np.testing.assert_array_equal, tuned.variables["params"], model.variables["params"]
    )


def test_an_imported_model_without_decoder_is_trained_on(device, caplog):
    imported = jm.load_scimilarity(DATA / "reference_model")
    del imported.variables["params"]["decoder"], imported.variables["batch_stats"]["decoder"]
    adata = make_adata(200, num_genes=70)
    adata.var_names = list(imported.genes)
    cells = jm.read_cells(adata, **KEYS)
    config = jm.Config.scimilarity(batch_size=32, max_epochs=1, steps_per_epoch=2)
    tuned = jm.fit(cells, config, init=imported, freeze="encoder/hidden_*", devices=device)
    assert tuned.has_decoder
    assert "has no decoder: a new one is trained" in caplog.text
    with pytest.raises(ValueError, match="there is none to freeze"):
        jm.fit(cells, config, init=imported, freeze="decoder/output")
    assert tuned.config.hidden_dim == (24, 16)
    assert tuned.labels == imported.labels  # has all of the cells' labels
    frozen = groups(tuned.variables)["encoder/hidden_1"]
    for name, leaf in groups(imported.variables)["encoder/hidden_1"].items():
        np.testing.assert_array_equal(frozen[name], leaf)


def test_shell_trains_on_and_a_run_from_another_start_is_refused(model, tmp_path, capsys):
    model.save(tmp_path / "model")
    make_adata(160, seed=2).write_h5ad(tmp_path / "cells.h5ad")
    command = [
        *("train", str(tmp_path / "cells.h5ad"), "--label-key", "cell_type"),
        *("--study-key", "study", "--directory", str(tmp_path / "run"), "--quiet"),
        *("--max-epochs", "1", "--steps-per-epoch", "2", "--batch-size", "32"),
    ]
    main([*command, "--init", str(tmp_path / "model"), "--freeze", "encoder/hidden_*"])
    tuned = jm.load(tmp_path / "run")
    assert tuned.config.frozen_groups == ("encoder/hidden_0", "encoder/hidden_1")
    assert tuned.config.hidden_dim == (12, 8)
    assert tuned.config.margin == 0.3  # the model's, as no flag says otherwise
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*command, "--hidden-dim", "12", "8", "--latent-dim", "4"])
    assert "init: there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--init", str(tmp_path / "model"), "--latent-dim", "128"])
    assert "latent_dim is 128, but the model to start from has 4" in capsys.readouterr().err


def test_an_interrupted_run_with_frozen_groups_goes_on_bit_by_bit(
    model, new_cells, device, tmp_path
):
    from jaxmetric.training.run import Run

    config = dataclasses.replace(CONFIG, max_epochs=3, freeze=("encoder/hidden_*",))
    run = functools.partial(jm.fit, new_cells, config, init=model, devices=device)
    whole = run(directory=tmp_path / "whole")

    def stop_in_epoch_2(self, snapshot, step, progress, save=Run.save):
        save(self, snapshot, step, progress)
        if step == 2 * config.steps_per_epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save", stop_in_epoch_2)
        with pytest.raises(KeyboardInterrupt):
            run(directory=tmp_path / "part")
    part = run(directory=tmp_path / "part")
    jax.tree.map(np.testing.assert_array_equal, whole.variables, part.variables)


def test_without_config_the_models_own_is_used_with_nothing_frozen(model, new_cells, device):
    frozen = dataclasses.replace(model, config=dataclasses.replace(CONFIG, freeze=("decoder",)))
    assert jm.fit(new_cells, init=frozen, devices=device).config == CONFIG


def test_labels_are_compared_as_terms(model, new_cells, device):
    older = dataclasses.replace(model, labels=("b CELL", *model.labels[1:]))
    tuned = jm.fit(new_cells, CONFIG, init=older, devices=device)
    assert tuned.labels == ("b CELL", *model.labels[1:], "platelet")
    assert len(new_cells.with_only(tuned.labels)) == len(new_cells)


def test_genes_that_are_missing_stay_counted(model, device, caplog):
    cells = jm.read_cells(make_adata(200)[:, 3:].copy(), **KEYS, genes=model.genes)
    assert len(cells.missing_genes) == 3
    tuned = jm.fit(cells, CONFIG, init=model, devices=device)
    assert "3 of the model's 40 genes are not in the data" in caplog.text
    assert tuned.trained_on["missing_genes"] == 3
    part = cells.with_genes(model.genes[1:])
    assert part.missing_genes == model.genes[1:3]


@pytest.mark.parametrize(
    ("change", "freeze", "message"),
    [
        ({"hidden_dim": (12, 9)}, None, r"hidden_dim is \(12, 9\), but the model .* has \(12, 8\)"),
        ({"latent_dim": 5}, None, "latent_dim is 5, but the model to start from has 4"),
        ({}, "encoder/hidden_2", "names no group; the groups are: encoder/hidden_0,"),
        ({}, ("encoder", "decoder"), "nothing is left to train"),
        ({}, (1,), "Config.freeze must be names"),
    ],
)
def test_bad_starts_are_refused(change, freeze, message, model, new_cells):
    with pytest.raises(ValueError, match=message):
        jm.fit(new_cells, jm.Config(**{**CONFIG.to_dict(), **change}), init=model, freeze=freeze)


def test_cells_of_other_genes_are_refused(model):
    adata = make_adata(60)
    adata.var_names = [f"other_{i}" for i in range(adata.n_vars)]
    with pytest.raises(ValueError, match=re.escape("only 0 of the 40 genes expected")):
        jm.fit(jm.read_cells(adata, **KEYS), CONFIG, init=model)
