import dataclasses
import json

import numpy as np
import pytest

import jaxmetric as jm


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("hidden_dim", (), "one or more whole numbers"),
        ("hidden_dim", 256, "one or more whole numbers"),
        ("hidden_dim", (64, 0), "one or more whole numbers"),
        ("latent_dim", 0, "at least 1"),
        ("batch_size", 2.5, "at least 1"),
        ("max_epochs", True, "at least 1"),
        ("dropout", 1.0, "less than 1"),
        ("input_dropout", -0.1, "at least 0"),
        ("margin", 0.0, "greater than 0"),
        ("margin", float("nan"), "greater than 0"),
        ("triplet_loss_weight", 1.1, "from 0 to 1"),
        ("perturb_labels_fraction", -0.5, "from 0 to 1"),
        ("learning_rate", "fast", "greater than 0"),
        ("weight_decay", float("inf"), "at least 0"),
        ("l1", -1e-4, "at least 0"),
        ("negative_selection", "easy", "one of semihard, hardest, random"),
        ("metric", "manhattan", "one of sqeuclidean, euclidean, cosine"),
        ("singleton_labels", "keep", "one of drop, coarsen"),
        ("sample_across_studies", "yes", "True or False"),
        ("seed", -1, "from 0"),
    ],
)
def test_values_out_of_range_are_refused(field, value, expected):
    with pytest.raises(ValueError, match=f"Config.{field} must be .*{expected}.* but is "):
        jm.Config(**{field: value})


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(jm.Config)])
def test_every_field_is_checked(name):
    with pytest.raises(ValueError, match=f"Config.{name} must be"):
        jm.Config(**{name: object()})


def test_goes_through_json_and_back():
    config = jm.Config(hidden_dim=[np.int64(8), 4], margin=np.float32(0.5), max_epochs=np.int32(3))
    assert config.hidden_dim == (8, 4)
    assert jm.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="does not know depth"):
        jm.Config.from_dict({"depth": 3})


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        jm.Config().margin = 1.0


def test_scimilaritys_numerics_are_the_c_rows_and_can_be_overridden():
    ours, theirs = jm.Config(), jm.Config.scimilarity(margin=0.1, l1_layer="first")
    assert theirs.margin == 0.1
    assert theirs.l1_layer == "first"
    theirs = jm.Config.scimilarity()
    assert (theirs.mining_metric, theirs.metric) == ("sqeuclidean", "euclidean")  # row 3
    assert (theirs.triplet_loss_weight, theirs.max_epochs) == (0.001, 500)
    for field in ("l1_layer", "empty_triplet_loss", "silhouette_divisor"):  # rows 1, 5, 8
        assert getattr(ours, field) != getattr(theirs, field)


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ((), ()),
        (("encoder",), ("encoder/hidden_0", "encoder/hidden_1", "encoder/latent")),
        (("encoder/hidden_*",), ("encoder/hidden_0", "encoder/hidden_1")),
        (["decoder/output", "encoder/latent"], ("encoder/latent", "decoder/output")),
    ],
)
def test_freeze_names_groups(freeze, expected):
    assert jm.Config(hidden_dim=(3, 2), freeze=freeze).frozen_groups == expected


@pytest.mark.parametrize("freeze", [("encode",), ("encoder/hidden_2",), ("*",), ("encoder", "")])
def test_freeze_that_names_nothing_or_everything_is_refused(freeze):
    with pytest.raises(ValueError, match=r"Config\.freeze"):
        jm.Config(hidden_dim=(3, 2), freeze=freeze).frozen_groups  # noqa: B018


def test_a_record_from_before_there_were_discriminants_has_none():
    old = jm.Config(input_components=50).to_dict()
    del old["discriminants"]
    assert jm.Config.from_dict(old) == jm.Config(input_components=50, discriminants=False)


def test_discriminants_need_a_constant_and_a_coordinate_beside_them():
    with pytest.raises(ValueError, match="latent_dim must be at least 3"):
        jm.Config(latent_dim=2)
    assert jm.Config(latent_dim=2, discriminants=False).input_width == 400
    assert jm.Config(latent_dim=3).input_width == 1
