"""SCimilarity model directories: recorded answers, round trips, and files that must be refused."""

import dataclasses
import json
import shutil

import anndata
import jax
import numpy as np
import pandas as pd
import pytest
from conftest import DATA, DEVICES, recorded
from made_up import make_adata, traced
from test_torch_file import opcodes, save, tensor_opcodes

import jaxmetric as jm
from jaxmetric.cli.main import main
from jaxmetric.scimilarity import directory as directories
from jaxmetric.scimilarity import torch_file
from jaxmetric.training.step import init_state

RECORDED = DATA / "reference_model"


@pytest.fixture
def directory(tmp_path):
    return shutil.copytree(RECORDED, tmp_path / "theirs")


def adata_of(model, x):
    return anndata.AnnData(np.float32(x), var=pd.DataFrame(index=list(model.genes)))


def fresh_model(hidden_dim, num_genes=6):
    """A model with weights of its own, moving statistics and slopes included."""
    sizes = {"hidden_dim": hidden_dim, "latent_dim": 4, "input_components": 0}
    config = jm.Config(**sizes, steps_per_epoch=3, max_epochs=2)
    generator = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: generator.uniform(0.1, 1, leaf.shape).astype(np.float32),
        jax.eval_shape(lambda: init_state(config, num_genes)).variables,
    )
    genes = tuple(f"gene_{i}" for i in range(num_genes))
    return jm.MetricLearning(config, genes, ("B cell", "T cell"), variables)


def assert_same_variables(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def rewrite(path, change):
    """Changes the tensors of a `.ckpt` file."""
    tensors = dict(torch_file.read_state_dict(path))
    changed = change(tensors)
    tensors = tensors if changed is None else changed
    torch_file.write_state_dict(path, tensors, under="state_dict")


def test_embeddings_are_those_of_the_reference():
    record, model = recorded("reference_model_embeddings.npz"), jm.load_scimilarity(RECORDED)
    z = model.embed(adata_of(model, record["X"]), values="lognorm")
    np.testing.assert_allclose(z, record["embeddings"], atol=1e-5)
    assert model.labels[:2] == ("T cell", "CD4-positive, alpha-beta T cell")
    assert model.label_ids[0] == "CL:0000084"
    assert (model.config.margin, model.config.batch_size, model.config.max_epochs) == (0.05, 32, 2)
    assert model.config.l1_layer == "bottleneck"
    assert model.reconstruct(z).shape == (100, 70)


def test_import_export_import_is_bit_equal(tmp_path):
    model = jm.load_scimilarity(RECORDED)
    model.export_scimilarity(tmp_path / "ours")
    again = jm.load_scimilarity(tmp_path / "ours")
    assert_same_variables(model.variables, again.variables)
    assert (model.config, model.genes, model.labels) == (again.config, again.genes, again.labels)
    for name in ("encoder.ckpt", "decoder.ckpt"):
        theirs, ours = (
            torch_file.read_state_dict(folder / name) for folder in (RECORDED, tmp_path / "ours")
        )
        assert list(theirs) == list(ours)
        for key in theirs:
            assert theirs[key].dtype == ours[key].dtype
            np.testing.assert_array_equal(theirs[key], ours[key])
    for name in ("gene_order.tsv", "label_ints.csv", "layer_sizes.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (RECORDED / name).read_bytes()


@pytest.mark.parametrize("depth", [1, 9, 12])
def test_any_number_of_hidden_layers(depth, tmp_path, caplog):
    model = fresh_model(tuple(range(5, 5 + depth)))
    model.export_scimilarity(tmp_path / "deep")
    again = jm.load_scimilarity(tmp_path / "deep")
    assert again.config.hidden_dim == model.config.hidden_dim
    assert_same_variables(model.variables, again.variables)
    assert ("cannot open a model of more than 9" in caplog.text) == (depth > 9)


def test_without_decoder_and_hyperparameters_it_embeds(directory, tmp_path):
    (directory / "decoder.ckpt").unlink()
    (directory / "hyperparameters.json").unlink()
    record, model = recorded("reference_model_embeddings.npz"), jm.load_scimilarity(directory)
    model.save(tmp_path / "ours")
    for one in (model, jm.load(tmp_path / "ours")):
        adata = adata_of(one, record["X"])
        np.testing.assert_allclose(
            one.embed(adata, values="lognorm"), record["embeddings"], atol=1e-5
        )
        adata.obs["label"] = np.resize(["T cell", "B cell", "fibroblast"], 100)
        scores = one.evaluate(jm.read_cells(adata, label_key="label", values="lognorm"))
        assert set(scores) == {"num_cells", "silhouette"}
        with pytest.raises(ValueError, match=r"no decoder.*decoder\.ckpt"):
            one.reconstruct(record["embeddings"])


def test_half_precision_weights_are_read_as_single(directory):
    half = lambda tensors: {  # noqa: E731
        name: np.float16(t) if t.dtype == np.float32 else t for name, t in tensors.items()
    }
    rewrite(directory / "encoder.ckpt", half)
    record, model = recorded("reference_model_embeddings.npz"), jm.load_scimilarity(directory)
    z = model.embed(adata_of(model, record["X"]), values="lognorm")
    np.testing.assert_allclose(z, record["embeddings"], atol=5e-3)  # 11 bits of mantissa
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.variables))


def drop_name(tensors):
    del tensors["network.1.1.bias"]


def set_nan(tensors):
    tensors["network.0.1.bias"] = np.full(24, np.nan, np.float32)


def set_overflow(tensors):
    tensors["network.0.1.bias"] = np.full(24, 1e300)


def set_whole(tensors):
    tensors["network.0.1.bias"] = np.zeros(24, np.int32)


def set_negative_variance(tensors):
    tensors["network.0.2.running_var"] = np.full(24, -1, np.float32)


def set_other_bias(tensors):
    tensors["network.0.0.bias"] = np.zeros(23, np.float32)


def set_vector(tensors):
    tensors["network.0.0.weight"] = np.zeros(24, np.float32)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("encoder.ckpt", drop_name, r"no such tensor"),
        ("encoder.ckpt", set_nan, r"network\.0\.1\.bias has 24 weights that are NaN or infinite"),
        ("encoder.ckpt", set_overflow, r"NaN or infinite"),
        ("encoder.ckpt", set_whole, r"must be floating, but is int32"),
        ("encoder.ckpt", set_negative_variance, r"a variance, has negative values"),
        ("decoder.ckpt", drop_name, r"lacks \['network\.1\.1\.bias'\]"),
        ("decoder.ckpt", set_other_bias, r"must have shape \(16,\), but has \(23,\)"),
        ("decoder.ckpt", set_vector, r"must be a matrix"),
        ("decoder.ckpt", lambda tensors: {"x": np.zeros(2)}, r"and has \['x'\] beside"),
        ("decoder.ckpt", lambda tensors: {}, r"must hold the tensors of SCimilarity's decoder"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, change, message, directory):
    rewrite(directory / name, change)
    with pytest.raises(ValueError, match=message):
        jm.load_scimilarity(directory)


def test_networks_that_do_not_fit_each_other_are_refused(directory, tmp_path):
    fresh_model((24, 16), num_genes=70).export_scimilarity(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "decoder.ckpt", directory / "decoder.ckpt")
    with pytest.raises(ValueError, match=r"sizes \[8, 16, 24, 70\].*has \[4, 16, 24, 70\]"):
        jm.load_scimilarity(directory)
    for extra in ({"network.0.1.weight": [24, 71]}, {"network.9.weight": [1]}, {"x": "y" * 10**5}):
        shapes = json.loads((RECORDED / "layer_sizes.json").read_text()) | extra
        (directory / "layer_sizes.json").write_text(json.dumps(shapes))
        with pytest.raises(ValueError, match=r"layer_sizes\.json gives .{,200}has") as error:
            jm.load_scimilarity(directory)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("layer_sizes.json", b"[1]", "must hold a JSON object"),
        ("layer_sizes.json", b"[" * 100_000, "is no JSON file"),
        ("layer_sizes.json", b"{", "is no JSON file"),
        ("hyperparameters.json", b'{"margin": -1}', "Config.margin must be greater than 0"),
        ("hyperparameters.json", b'{"margin": "a"}', "Config.margin must be"),
        ("hyperparameters.json", b'{"margin": 1' + b"0" * 400 + b"}", "Config.margin must be"),
        ("hyperparameters.json", b'{"margin": 1' + b"0" * 5000 + b"}", "is no JSON file"),
        ("hyperparameters.json", b'{"margin": "' + b"a" * 10**6 + b'"}', "Config.margin must be"),
        ("layer_sizes.json", b"{}", r"must give the shape of 'network\.0\.1\.weight'"),
        ("decoder.ckpt", None, "there is no"),
        ("gene_order.tsv", b"A\nB\n", "must list 70 genes, the encoder's inputs, but lists 2"),
        ("gene_order.tsv", b"A\n" * 70, "must list distinct genes"),
        ("gene_order.tsv", b"\xff\xfe", "is no text file"),
        ("label_ints.csv", b'"",0\n0,"a"\n0,"b"\n', "same number for different labels"),
        ("label_ints.csv", b'"",0\n0,"a"\n1,"a"\n', "must list distinct labels"),
        ("label_ints.csv", b'"",0\nx,"a"\n', "rows of a number and a label"),
        ("label_ints.csv", b"", "rows of a number and a label"),
        ("encoder.ckpt", b"PK", "expected the zip format"),
    ],
)
def test_files_that_are_not_a_models_are_refused(name, content, message, directory):
    (directory / name).unlink()
    if content is None:
        (directory / name).mkdir()
    else:
        (directory / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        jm.load_scimilarity(directory)
    assert name in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "name", ["layer_sizes.json", "hyperparameters.json", "gene_order.tsv", "label_ints.csv"]
)
def test_flipped_bytes_of_the_text_files_give_a_model_or_our_error(name, directory):
    content = (directory / name).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(500):
        flipped = bytearray(content)
        for place in generator.integers(0, len(content), generator.integers(1, 4)):
            flipped[place] ^= 1 << generator.integers(8)
        (directory / name).write_bytes(flipped)
        try:
            model = directories.read_model(directory)
        except directories.SCimilarityModelError as error:
            assert name in str(error)  # noqa: PT017
        else:
            assert len(model.genes) == 70
            assert len(set(model.labels)) == len(model.labels)


def test_tensors_that_share_their_bytes_are_not_multiplied(directory):
    """A small file can describe many large tensors: one storage of 1 MB, seen 200 times."""
    one = tensor_opcodes(storage="HalfStorage", count=500_000, size=(1000, 500), stride=(500, 1))
    names = (opcodes(f"network.{i}.1.weight") for i in range(200))
    pickled = b"}(" + b"".join(name + one for name in names) + b"u."
    save(directory / "encoder.ckpt", pickled, bytes(1_000_000))
    assert len(torch_file.read_state_dict(directory / "encoder.ckpt")) == 200
    jm.load_scimilarity(RECORDED)  # imports what it needs
    with traced() as peak:
        with pytest.raises(ValueError, match="400000000 bytes of weights in"):
            jm.load_scimilarity(directory)
        assert peak() < 8_000_000


def test_a_byte_order_mark_and_windows_lines_are_no_part_of_a_name(directory):
    for name in ("gene_order.tsv", "label_ints.csv"):
        text = (directory / name).read_text().replace("\n", "\r\n")
        (directory / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    model, expected = jm.load_scimilarity(directory), jm.load_scimilarity(RECORDED)
    assert (model.genes, model.labels) == (expected.genes, expected.labels)


def test_labels_that_are_no_terms_stay_and_the_others_keep_their_ids(directory, caplog):
    path = directory / "label_ints.csv"
    path.write_text(path.read_text().replace('"plasma cell"', '"weird, cell"'))
    model = jm.load_scimilarity(directory)
    assert (model.labels[6], model.label_ids[6]) == ("weird, cell", None)
    assert model.label_ids[0] == "CL:0000084"
    assert "1 labels are no terms" in caplog.text


@pytest.mark.parametrize("name", [" A", "A\n", "A\u2028B", ""])
def test_names_that_their_files_cannot_hold_are_not_written(name, tmp_path):
    model = fresh_model((5,))
    genes = (name, *model.genes[1:])
    with pytest.raises(ValueError, match="genes cannot begin or end with white space"):
        dataclasses.replace(model, genes=genes).export_scimilarity(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["encoder.ckpt", "layer_sizes.json", "gene_order.tsv", "label_ints.csv"]
)
def test_a_missing_file_is_named(name, directory):
    (directory / name).unlink()
    with pytest.raises(ValueError, match=f"there is no .*{name}"):
        jm.load_scimilarity(directory)


def test_shell_imports_and_exports(tmp_path, capsys):
    ours, theirs = str(tmp_path / "ours"), str(tmp_path / "theirs")
    main(["import", str(RECORDED), ours])
    main(["export", ours, theirs])
    assert "encoder and decoder, 70 genes, 22 labels" in capsys.readouterr().out
    again = jm.load_scimilarity(theirs)
    assert_same_variables(jm.load(ours).variables, again.variables)
    for arguments in (["import", str(RECORDED), ours], ["export", ours, theirs]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert "exists: choose another directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["shallow", "two", "nine", "imported", "tuned", "discriminants"])
def test_scimilarity_itself_opens_what_we_export(name, tmp_path):
    # not "scimilarity": a folder of tests has that name, and would be taken for the package
    networks = pytest.importorskip(
        "scimilarity.nn_models", reason="the extra 'bench' installs scimilarity"
    )
    from scimilarity import CellEmbedding

    depths = {"shallow": (7,), "two": (16, 12), "nine": tuple(range(5, 14))}
    model = fresh_model(depths[name], 70) if name in depths else jm.load_scimilarity(RECORDED)
    if name in ("tuned", "discriminants"):
        adata = make_adata(160, num_genes=70)
        adata.var_names = list(model.genes)
        cells = jm.read_cells(adata, label_key="cell_type", study_key="study")
        short = {"batch_size": 32, "max_epochs": 1, "steps_per_epoch": 3}
        config = jm.Config(hidden_dim=(16, 12), latent_dim=8, **short)
        if name == "tuned":
            config = jm.Config.scimilarity(**short)
        start = model if name == "tuned" else None
        model = jm.fit(cells, config, init=start, devices=DEVICES[:1])
    directory = str(tmp_path / "theirs")
    model.export_scimilarity(directory)
    x = np.random.default_rng(1).gamma(1, 1, (50, 70)).astype(np.float32)
    opened = CellEmbedding(directory)
    theirs = opened.get_embeddings(x)
    ours = model.embed(adata_of(model, x), values="lognorm")
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert opened.int2label == dict(enumerate(model.labels))
    sizes = jm.load_scimilarity(directory).config.hidden_dim
    decoder = networks.Decoder(70, model.config.latent_dim, list(sizes[::-1]))
    decoder.load_state(f"{directory}/decoder.ckpt")
    import torch

    with torch.inference_mode():
        theirs = decoder.eval()(torch.tensor(theirs)).numpy()
    np.testing.assert_allclose(model.reconstruct(ours), theirs, rtol=1e-5, atol=1e-5)
