"""The same networks as a chain of layers from genes to the embedding, as SCimilarity has them."""

import jax
import numpy as np

from jaxmetric.config import Config
from jaxmetric.networks.autoencoder import EPSILON, REACH, SHARE

IDLE = {"mean": 0.0, "var": 1 - EPSILON, "scale": 1.0, "bias": 0.0}  # a norm that changes nothing


def sequential(variables: dict, config: Config) -> tuple[dict, tuple[int, ...]]:
    """The variables of networks without an input layer, and the sizes of their hidden layers.

    The input layer is multiplied into the next one. Where its output y is part of the embedding, each
    hidden layer gets two more units for each coordinate, of y and of -y: with a slope of a for negative
    values, PReLU(y) - PReLU(-y) = (1 + a) y. The decoder gets as many units that do nothing.
    """
    variables = jax.tree.map(np.asarray, variables)
    if not config.input_width:
        return variables, config.hidden_dim
    more = 2 * config.input_width if config.direct else 0
    params = {"encoder": _encoder(variables["params"]["encoder"], config)}
    if "decoder" in variables["params"]:
        params["decoder"] = _widened_decoder(variables["params"]["decoder"], more)
    for layers in params.values():
        for name in layers.keys() - {"latent", "output"}:
            layers[name] = layers[name] | {"norm": _widened(layers[name]["norm"], more)}
    batch_stats = {
        part: {name: {"norm": _widened(layer["norm"], more)} for name, layer in layers.items()}
        for part, layers in variables["batch_stats"].items()
    }
    sizes = tuple(size + more for size in config.hidden_dim)
    return variables | {"params": params, "batch_stats": batch_stats}, sizes


def _encoder(encoder: dict, config: Config) -> dict:
    encoder = dict(encoder)
    read, one = encoder.pop("components"), np.eye(config.input_width)
    C, c = read["kernel"], read["bias"]
    gain, back = config.input_gain, 1.0
    for i in range(len(config.hidden_dim)):
        layer = encoder[f"hidden_{i}"]
        K, b = layer["linear"]["kernel"], layer["linear"]["bias"]
        if i == 0:
            K, b = gain * C @ K, gain * c @ K + b
        if config.direct and i == 0:
            K, b = np.hstack([K, C, -C]), np.hstack([b, c, -c])
        elif config.direct:
            K = _blocks(K, back * np.block([[one, -one], [-one, one]]))
            b = np.hstack([b, np.zeros(2 * len(one))])
        encoder[f"hidden_{i}"] = layer | {"linear": {"kernel": K, "bias": b}}
        back = 1 / (1 + layer["activation"]["negative_slope"])  # from the two units to y
    if config.direct:
        K, b = encoder["latent"]["kernel"], encoder["latent"]["bias"]
        to_y = np.vstack([np.zeros((len(K), len(one))), back * one, -back * one])
        to_rest = np.vstack([SHARE * K, np.zeros((2 * len(one), K.shape[1]))])
        constant = np.zeros((len(to_y), 1))
        bias = np.hstack([np.zeros(len(one)), SHARE * b, [REACH]])
        encoder["latent"] = {"kernel": np.hstack([to_y, to_rest, constant]), "bias": bias}
    return encoder


def _widened_decoder(decoder: dict, more: int) -> dict:
    decoder = dict(decoder)
    for name, layer in decoder.items():
        linear = layer.get("linear", layer)
        rows, columns = more * (name != "hidden_0"), more * (name != "output")
        K = np.pad(linear["kernel"], ((0, rows), (0, columns)))
        wide = {"kernel": K, "bias": np.pad(linear["bias"], (0, columns))}
        decoder[name] = layer | {"linear": wide} if "linear" in layer else wide
    return decoder


def _widened(norm: dict, more: int) -> dict:
    return {name: np.append(x, np.full(more, IDLE[name], x.dtype)) for name, x in norm.items()}


def _blocks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The block-diagonal matrix of two."""
    zeros = np.zeros((len(a), b.shape[1])), np.zeros((len(b), a.shape[1]))
    return np.block([[a, zeros[0]], [zeros[1], b]])
