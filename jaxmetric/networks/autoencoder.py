"""The networks: log-normalised expression -> unit embedding -> reconstructed expression.

Pure functions of their variables: `module.apply(variables, x, train=...)`. `variables` has `params`
and `batch_stats`, the moving statistics of batch normalisation.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmetric.config import ComputeDtype, Config
from jaxmetric.sharding import by_backend

EPSILON = 1e-5  # of batch normalisation
REACH = 0.5  # the constant coordinate, where discriminants have a mean square norm of 1
SHARE = 0.125  # what the hidden layers' output is multiplied by, beside them
SMALL = 0.1  # of the usual first weights of what is beside the discriminants
TILE = 128  # what an accelerator's matrix units multiply at a time


def _uniform_fan_in(fan_in: int, scale: float):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default for weights and biases of a linear layer."""

    def init(key, shape, dtype=jnp.float32):
        bound = scale * fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _linear(
    features: int,
    fan_in: int,
    name: str,
    compute_dtype: ComputeDtype = "float32",
    scale: float = 1.0,
) -> nn.Dense:
    """x W + b, initialised as torch does, times a scale."""
    init = _uniform_fan_in(fan_in, scale)
    product = functools.partial(_product, compute_dtype)
    return nn.Dense(features, kernel_init=init, bias_init=init, dot_general=product, name=name)


def _product(compute_dtype: ComputeDtype, x, w, dimensions, precision=None, **_):
    """x W as float32, of factors of the compute dtype; so are the two products of its gradient.

    On an accelerator both axes of W are padded to whole tiles with zeros: products of 28,231 genes, an
    odd number, take more than twice as long as those of 28,288 there.
    """
    tile = by_backend(1, TILE)
    rows, columns = (-size % tile for size in w.shape)
    x = jnp.pad(x.astype(compute_dtype), [(0, 0)] * (x.ndim - 1) + [(0, rows)])
    w = jnp.pad(w.astype(compute_dtype), ((0, rows), (0, columns)))
    y = jax.lax.dot_general(x, w, dimensions, precision=precision)
    return y[..., : y.shape[-1] - columns].astype(jnp.float32)


class Hidden(nn.Module):
    """Dropout -> linear -> batch normalisation -> PReLU.

    A frozen layer normalises by its moving statistics in training too, and leaves them as they are.
    """

    features: int
    dropout: float
    frozen: bool = False
    compute_dtype: ComputeDtype = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "n i"], train: bool) -> Float[Array, "n o"]:
        """The layer's output; with `train`, units are dropped and the batch's statistics are used."""
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = _linear(self.features, x.shape[-1], "linear", self.compute_dtype)(x)
        x = nn.BatchNorm(
            self.frozen or not train,
            momentum=0.9,
            epsilon=EPSILON,
            use_fast_variance=False,
            name="norm",
        )(x)
        return nn.PReLU(negative_slope_init=0.25, name="activation")(x)


class Encoder(nn.Module):
    """Genes -> embedding of unit length (a vector of zeros stays zero).

    With an input layer that is `direct`, of output y, it is (y, s f(y), r) before it is scaled to unit
    length: f the hidden layers, s and r constants. s is small, so that distances are mostly those of y,
    also where f has had too few cells to learn from. Scaling to unit length would lose how long y is;
    beside the constant r it does not.

    Attributes:
      hidden_dim: sizes of the hidden layers.
      latent_dim: size of the embedding.
      dropout: dropout before each hidden layer but the first.
      input_dropout: dropout of genes.
      frozen: names of the hidden layers whose moving statistics stay as they are.
      input_width: size of a linear layer before the hidden ones that gets no gradient, the input layer.
        0: there is none.
      direct: the output of the input layer is part of the embedding.
      compute_dtype: type of the factors of the layers' products.
    """

    hidden_dim: tuple[int, ...] = (1024, 1024, 1024)
    latent_dim: int = 128
    dropout: float = 0.5
    input_dropout: float = 0.4
    frozen: tuple[str, ...] = ()
    input_width: int = 0
    direct: bool = False
    compute_dtype: ComputeDtype = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "n genes"], train: bool = False) -> Float[Array, "n latent"]:
        """The embedding of log-normalised expression."""
        x = nn.Dropout(self.input_dropout, deterministic=not train)(x)
        if self.input_width:
            x = jax.lax.stop_gradient(_linear(self.input_width, x.shape[-1], "components")(x))
        y = x
        if self.direct:
            x = self.input_width**0.5 * y
        for i, features in enumerate(self.hidden_dim):
            dropout, name = self.dropout if i else 0.0, f"hidden_{i}"
            hidden = Hidden(features, dropout, name in self.frozen, self.compute_dtype, name=name)
            x = hidden(x, train)
        if self.direct:
            features = self.latent_dim - self.input_width - 1
            x = _linear(features, x.shape[-1], "latent", self.compute_dtype, SMALL)(x)
            x = jnp.concatenate([y, SHARE * x, jnp.full_like(x[:, :1], REACH)], axis=1)
        else:
            x = _linear(self.latent_dim, x.shape[-1], "latent", self.compute_dtype)(x)
        norm = jnp.sqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-24))
        return x / norm


class Decoder(nn.Module):
    """Embedding -> genes: linear output, no dropout before the first and the last layer.

    Attributes:
      num_genes: size of the output.
      hidden_dim: sizes of the hidden layers in the order of the decoder.
      dropout: dropout before each hidden layer but the first.
      frozen: names of the hidden layers whose moving statistics stay as they are.
      compute_dtype: type of the factors of the layers' products.
    """

    num_genes: int
    hidden_dim: tuple[int, ...] = (1024, 1024, 1024)
    dropout: float = 0.5
    frozen: tuple[str, ...] = ()
    compute_dtype: ComputeDtype = "float32"

    @nn.compact
    def __call__(self, z: Float[Array, "n latent"], train: bool = False) -> Float[Array, "n genes"]:
        """The reconstructed log-normalised expression."""
        for i, features in enumerate(self.hidden_dim):
            dropout, name = self.dropout if i else 0.0, f"hidden_{i}"
            hidden = Hidden(features, dropout, name in self.frozen, self.compute_dtype, name=name)
            z = hidden(z, train)
        return _linear(self.num_genes, z.shape[-1], "output", self.compute_dtype)(z)


class Autoencoder(nn.Module):
    """The encoder and the decoder together; `embed` and `reconstruct` are methods for `apply`.

    `frozen` has names such as "encoder/hidden_0".
    """

    num_genes: int
    hidden_dim: tuple[int, ...] = (1024, 1024, 1024)
    latent_dim: int = 128
    dropout: float = 0.5
    input_dropout: float = 0.4
    frozen: tuple[str, ...] = ()
    input_width: int = 0
    direct: bool = False
    compute_dtype: ComputeDtype = "float32"

    def setup(self) -> None:
        """Binds the two networks."""
        self.encoder = Encoder(
            self.hidden_dim,
            self.latent_dim,
            self.dropout,
            self.input_dropout,
            self._frozen_layers("encoder"),
            self.input_width,
            self.direct,
            self.compute_dtype,
        )
        self.decoder = Decoder(
            self.num_genes,
            self.hidden_dim[::-1],
            self.dropout,
            self._frozen_layers("decoder"),
            self.compute_dtype,
        )

    def _frozen_layers(self, part: str) -> tuple[str, ...]:
        return tuple(
            name.removeprefix(f"{part}/") for name in self.frozen if name.startswith(f"{part}/")
        )

    def __call__(
        self, x: Float[Array, "n genes"], train: bool = False
    ) -> tuple[Float[Array, "n latent"], Float[Array, "n genes"]]:
        """The embedding and the reconstruction."""
        z = self.encoder(x, train)
        return z, self.decoder(z, train)

    def embed(self, x: Float[Array, "n genes"]) -> Float[Array, "n latent"]:
        """The embedding alone, in evaluation mode."""
        return self.encoder(x, False)

    def reconstruct(self, z: Float[Array, "n latent"]) -> Float[Array, "n genes"]:
        """The reconstruction from embeddings, in evaluation mode."""
        return self.decoder(z, False)


def autoencoder(config: Config, num_genes: int) -> Autoencoder:
    """The networks of a config."""
    return Autoencoder(
        num_genes,
        config.hidden_dim,
        config.latent_dim,
        config.dropout,
        config.input_dropout,
        config.frozen_groups,
        config.input_width,
        config.direct,
        config.compute_dtype,
    )
