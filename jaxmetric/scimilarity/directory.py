"""SCimilarity's model directories, read and written without torch and without pickle.

A directory holds `encoder.ckpt` and `decoder.ckpt` (torch state dicts), `layer_sizes.json` (shapes of
the encoder's tensors), `hyperparameters.json`, `gene_order.tsv` (a gene a line) and `label_ints.csv`
(number and name of each label). Source: `MetricLearning.save_all` in scimilarity/training_models.py.
"""

import csv
import io
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxmetric.config import Config
from jaxmetric.files import whole_directory
from jaxmetric.networks.sequential import sequential
from jaxmetric.scimilarity.torch_file import read_state_dict, write_state_dict

log = logging.getLogger("jaxmetric")
ENCODER, DECODER, LAYERS = "encoder.ckpt", "decoder.ckpt", "layer_sizes.json"
HYPERPARAMETERS, GENES, LABELS = "hyperparameters.json", "gene_order.tsv", "label_ints.csv"
STEPS = "num_batches_tracked"  # torch counts the steps in each batch normalisation
FIELDS = {  # SCimilarity's name of each hyperparameter: ours
    "dropout": "dropout",
    "input_dropout": "input_dropout",
    "margin": "margin",
    "triplet_loss_weight": "triplet_loss_weight",
    "negative_selection": "negative_selection",
    "sample_across_studies": "sample_across_studies",
    "perturb_labels_fraction": "perturb_labels_fraction",
    "lr": "learning_rate",
    "l1_lambda": "l1",
    "l2_lambda": "weight_decay",
    "batch_size": "batch_size",
    "max_epochs": "max_epochs",
}


class SCimilarityModelError(ValueError):
    """A directory that is not a whole SCimilarity model; the message names the file and says why."""


class SCimilarityModel(NamedTuple):
    """What a SCimilarity model directory holds.

    Attributes:
      config: the reference's numerics with the directory's hyperparameters.
      genes: genes in the order of the encoder's input.
      labels: labels in the order of their numbers.
      variables: `params` and `batch_stats` of the encoder and, where there is one, the decoder.
      steps: training steps done.
    """

    config: Config
    genes: tuple[str, ...]
    labels: tuple[str, ...]
    variables: dict
    steps: int


def read_model(directory: Path) -> SCimilarityModel:
    """Reads a model directory. The decoder and the hyperparameters may be absent.

    Raises:
      SCimilarityModelError: when a file is missing, or does not fit the others.
      TorchFileError: when a `.ckpt` file is damaged, or no plain state dict.
    """
    encoder = _read_tensors(directory / ENCODER)
    _check_layer_sizes(encoder, directory / LAYERS)
    variables, sizes = _variables(encoder, "encoder", directory / ENCODER)
    num_genes, *hidden_dim, latent_dim = sizes
    if (directory / DECODER).exists() or (directory / DECODER).is_symlink():
        decoder = _read_tensors(directory / DECODER)
        part, found = _variables(decoder, "decoder", directory / DECODER)
        if found != sizes[::-1]:
            raise SCimilarityModelError(
                f"{directory / DECODER} must have layers of sizes {sizes[::-1]}, the encoder's "
                f"reversed, but has {found}."
            )
        variables = {name: variables[name] | part[name] for name in variables}
    genes = _read_genes(directory / GENES)
    if len(genes) != num_genes:
        raise SCimilarityModelError(
            f"{directory / GENES} must list {num_genes} genes, the encoder's inputs, but lists "
            f"{len(genes)}."
        )
    config = _read_config(directory / HYPERPARAMETERS, tuple(hidden_dim), latent_dim)
    labels = _read_labels(directory / LABELS)
    return SCimilarityModel(config, genes, labels, variables, _steps(encoder))


def export_model(directory: Path, model: SCimilarityModel) -> None:
    """Writes a model directory whole or not at all.

    Raises:
      ValueError: when the directory exists.
    """
    if directory.exists():
        raise ValueError(f"{directory} exists: choose another directory.")
    if len(model.config.hidden_dim) > 9:
        log.warning(
            "SCimilarity sorts layers as strings, so it cannot open a model of more than 9 hidden "
            "layers; this one has %d. load_scimilarity can.",
            len(model.config.hidden_dim),
        )
    with whole_directory(directory) as building:
        write_model(building, model)


def write_model(directory: Path, model: SCimilarityModel) -> None:
    """Writes the files into a directory that exists."""
    variables, hidden_dim = sequential(model.variables, model.config)
    for part in variables["params"]:
        tensors = _tensors(variables, part, model.steps)
        write_state_dict(directory / f"{part}.ckpt", tensors, under="state_dict")
        if part == "encoder":
            shapes = {name: list(np.shape(tensor)) for name, tensor in tensors.items()}
            (directory / LAYERS).write_text(json.dumps(shapes))
    fields = model.config.to_dict()
    hyperparameters = {theirs: fields[ours] for theirs, ours in FIELDS.items()}
    hyperparameters |= {
        "latent_dim": fields["latent_dim"],
        "hidden_dim": list(hidden_dim),
        "perturb_labels": fields["perturb_labels_fraction"] > 0,
    }
    _check_writable(model.genes, "genes")
    _check_writable(model.labels, "labels")
    (directory / HYPERPARAMETERS).write_text(json.dumps(hyperparameters))
    (directory / GENES).write_text("\n".join(model.genes), encoding="utf-8")
    rows = io.StringIO()
    writer = csv.writer(rows, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerows([("", 0), *enumerate(model.labels)])
    (directory / LABELS).write_text(rows.getvalue(), encoding="utf-8")


def _check_writable(names: tuple[str, ...], what: str) -> None:
    odd = [name for name in names if name != name.strip() or len(name.splitlines()) != 1]
    if odd:
        raise ValueError(
            f"SCimilarity's files hold a name a line, so {what} cannot begin or end with white space, "
            f"be empty or have line breaks: {odd[:3]!r:.200}."
        )


def _present(path: Path) -> Path:
    if not path.is_file():
        raise SCimilarityModelError(
            f"{path.parent} is no SCimilarity model directory: there is no {path}."
        )
    return path


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    tensors = read_state_dict(_present(path))
    wanted = 4 * sum(tensor.size for tensor in tensors.values())
    if wanted > 4 * path.stat().st_size:  # tensors that share bytes grow when they are copied
        raise SCimilarityModelError(
            f"{path} describes {wanted} bytes of weights in {path.stat().st_size} bytes: not a file that "
            "SCimilarity wrote."
        )
    return tensors


def _paths(part: str, depth: int) -> dict[str, tuple[str, ...]]:
    """Torch's name of each tensor of a network of so many hidden layers: its path in our variables.

    A hidden layer of torch is a list of modules: dropout, linear, norm, activation; the decoder's
    first has no dropout.
    """
    paths = {}
    for i in range(depth):
        first = 0 if part == "decoder" and i == 0 else 1
        linear, norm, activation = (f"network.{i}.{first + j}" for j in range(3))
        params, stats = ("params", part, f"hidden_{i}"), ("batch_stats", part, f"hidden_{i}")
        paths |= {
            f"{linear}.weight": (*params, "linear", "kernel"),
            f"{linear}.bias": (*params, "linear", "bias"),
            f"{norm}.weight": (*params, "norm", "scale"),
            f"{norm}.bias": (*params, "norm", "bias"),
            f"{norm}.running_mean": (*stats, "norm", "mean"),
            f"{norm}.running_var": (*stats, "norm", "var"),
            f"{norm}.{STEPS}": (),
            f"{activation}.weight": (*params, "activation", "negative_slope"),
        }
    last = ("params", part, "latent" if part == "encoder" else "output")
    return paths | {
        f"network.{depth}.weight": (*last, "kernel"),
        f"network.{depth}.bias": (*last, "bias"),
    }


def _variables(tensors: dict, part: str, path: Path) -> tuple[dict, list[int]]:
    """Our variables from torch's tensors, and the sizes of the layers from the input to the output."""
    numbers = (re.match(r"network\.(\d{1,4})\.", name) for name in tensors)
    depth = max((int(match[1]) for match in numbers if match), default=0)
    paths = _paths(part, depth)
    absent = [n for n in paths if n not in tensors and not n.endswith(STEPS)]
    foreign = [name for name in tensors if name not in paths]
    if depth < 1 or absent or foreign:
        raise SCimilarityModelError(
            f"{path} must hold the tensors of SCimilarity's {part}, but lacks "
            f"{absent[:3] or 'none'} and has {foreign[:3] or 'none'!r:.200} beside them."
        )
    kernels = [tensors[name] for name, at in paths.items() if at[-1:] == ("kernel",)]
    if any(kernel.ndim != 2 for kernel in kernels):
        raise SCimilarityModelError(f"{path}: the weights of a linear layer must be a matrix.")
    sizes = [kernels[0].shape[1], *(kernel.shape[0] for kernel in kernels)]
    variables: dict = {"params": {part: {}}, "batch_stats": {part: {}}}
    layer = 0
    for name, at in paths.items():
        if not at:
            continue
        layer += at[-1] == "kernel"
        shapes = {"kernel": (sizes[layer], sizes[layer - 1]), "negative_slope": (1,)}
        expected = shapes.get(at[-1], (sizes[layer],))
        if tensors[name].shape != expected:
            raise SCimilarityModelError(
                f"{path}: {name} must have shape {expected}, but has {tensors[name].shape}."
            )
        tensor = _finite(tensors[name], f"{path}: {name}")
        if at[-1] == "var" and (tensor < 0).any():
            raise SCimilarityModelError(f"{path}: {name}, a variance, has negative values.")
        _put(variables, at, {"kernel": tensor.T, "negative_slope": tensor[0]}.get(at[-1], tensor))
    return variables, sizes


def _tensors(variables: dict, part: str, steps: int) -> dict[str, np.ndarray]:
    """Torch's tensors from our variables, in torch's order."""
    paths = _paths(part, depth=len(variables["batch_stats"][part]))
    tensors = {}
    for name, path in paths.items():
        leaf: Any = variables if path else steps
        for key in path:
            leaf = leaf[key]
        if not path:
            tensors[name] = np.asarray(leaf, np.int64)
        elif path[-1] == "negative_slope":
            tensors[name] = np.asarray(leaf, np.float32).reshape(1)
        else:
            tensors[name] = np.ascontiguousarray(np.asarray(leaf, np.float32).T)
    return tensors


def _steps(tensors: dict) -> int:
    counts = [tensor for name, tensor in tensors.items() if name.endswith(STEPS)]
    whole = [int(count) for count in counts if count.dtype.kind in "iu" and count.shape == ()]
    return min(max(whole, default=0), 2**62)  # a sum with the steps to come stays an int64


def _put(tree: dict, path: tuple[str, ...], leaf: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = np.array(leaf, order="C")


def _finite(tensor: np.ndarray, name: str) -> np.ndarray:
    if tensor.dtype.kind != "f":
        raise SCimilarityModelError(f"{name} must be floating, but is {tensor.dtype}.")
    with np.errstate(over="ignore"):
        tensor = tensor.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise SCimilarityModelError(
            f"{name} has {np.sum(~np.isfinite(tensor))} weights that are NaN or infinite."
        )
    return tensor


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(_present(path).read_text(encoding="utf-8-sig"))
    except (RecursionError, ValueError) as error:
        raise SCimilarityModelError(f"{path} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise SCimilarityModelError(
            f"{path} must hold a JSON object, but holds a {type(content).__name__}."
        )
    return content


def _check_layer_sizes(encoder: dict, path: Path) -> None:
    shapes = _read_json(path)
    absent = [name for name, tensor in encoder.items() if tensor.ndim == 2 and name not in shapes]
    if absent:
        raise SCimilarityModelError(f"{path} must give the shape of {absent[0]!r:.80}.")
    for name, shape in shapes.items():
        found = list(encoder[name].shape) if name in encoder else "no such tensor"
        if found != shape:
            raise SCimilarityModelError(
                f"{path} gives {name[:60]} the shape {str(shape)[:60]}, but {ENCODER} has {found}."
            )


def _read_config(path: Path, hidden_dim: tuple[int, ...], latent_dim: int) -> Config:
    found = _read_json(path) if path.exists() else {}
    fields = {ours: found[theirs] for theirs, ours in FIELDS.items() if theirs in found}
    if not found.get("perturb_labels", False):
        fields.pop("perturb_labels_fraction", None)
    try:
        return Config.scimilarity(hidden_dim=hidden_dim, latent_dim=latent_dim, **fields)
    except ValueError as error:
        raise SCimilarityModelError(f"{path}: {error}") from error


def _read_genes(path: Path) -> tuple[str, ...]:
    lines = _read_text(path).split("\n")
    genes = tuple(line.strip() for line in (lines[:-1] if lines[-1] == "" else lines))
    _check_distinct(genes, "genes", path)
    return genes


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        _, *rows = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
        numbered = {int(number): label for number, label in rows}
    except (ValueError, csv.Error) as error:
        raise SCimilarityModelError(
            f"{path} must have a head and rows of a number and a label: {error}"
        ) from error
    labels = tuple(numbered[i] for i in sorted(numbered))
    if len(labels) < len(rows):
        raise SCimilarityModelError(f"{path} has the same number for different labels.")
    _check_distinct(labels, "labels", path)
    return labels


def _read_text(path: Path) -> str:
    try:
        return _present(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SCimilarityModelError(f"{path} is no text file: {error}") from error


def _check_distinct(names: Iterable[str], what: str, path: Path) -> None:
    names = list(names)
    if "" in names or len(set(names)) < len(names):
        raise SCimilarityModelError(f"{path} must list distinct {what}, none of them empty.")
