"""One step of training and one of evaluation: pure functions of one global batch, not jitted here."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Integer, Key

from jaxmetric.batches.batches import Batch
from jaxmetric.batches.expression import expression
from jaxmetric.config import Config
from jaxmetric.labels.label_set import LabelSet
from jaxmetric.metric.losses import (
    l1_penalty,
    masked_mean,
    mixed_loss,
    reconstruction_loss,
    triplet_losses,
)
from jaxmetric.metric.mining import Triplets, mine_triplets
from jaxmetric.networks.autoencoder import autoencoder
from jaxmetric.training.collapse import spread
from jaxmetric.training.numbers import Numbers

STEP_KEYS, INIT_KEY = 0, 1


class TrainState(NamedTuple):
    """What one step of training leaves for the next.

    Attributes:
      step: steps done.
      params: weights of the encoder and decoder.
      batch_stats: moving statistics of batch normalisation.
      opt_state: state of the optimizer.
    """

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict:
        """What the networks are applied with."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def learning_rate(numbers: Config | Numbers, step: Int[Array, ""]) -> Float[Array, ""]:
    """lr / 2 * (1 + cos(pi * epoch / max_epochs)), constant within an epoch, after a linear warm-up."""
    cosine = optax.cosine_decay_schedule(
        numbers.learning_rate, 1
    )  # of the share of the epochs done
    rate = jnp.asarray(cosine(step // numbers.steps_per_epoch / numbers.max_epochs))
    return rate * jnp.minimum((step + 1) / jnp.maximum(numbers.warmup_steps, 1), 1.0)


def optimizer(
    config: Config, numbers: Config | Numbers | None = None
) -> optax.GradientTransformation:
    """AdamW with the learning rate of each step; weight decay on every parameter that is trained.

    Frozen groups, and the components, are left as they are, without weight decay, and have no state;
    their gradients do not count in the norm that `clip_norm` is for.
    """
    given = config if numbers is None else numbers
    adamw = optax.adamw(lambda step: learning_rate(given, step), weight_decay=given.weight_decay)
    if config.clip_norm is not None:
        adamw = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
    fixed = config.frozen_groups + (("encoder/components",) if config.input_components else ())
    if not fixed:
        return adamw

    def kinds(params):
        return {
            part: {layer: "fixed" if f"{part}/{layer}" in fixed else "trained" for layer in layers}
            for part, layers in params.items()
        }

    return optax.multi_transform({"trained": adamw, "fixed": optax.set_to_zero()}, kinds)


def init_state(
    config: Config,
    num_genes: int,
    start: dict | None = None,
    components: dict | None = None,
    seed: Integer[ArrayLike, ""] | None = None,
) -> TrainState:
    """The state before the first step: a pure function of the config's seed and what is given.

    Networks that `start`, variables of a model, holds are taken from it. `components` are the weights
    of the encoder's layer of that name. `seed` replaces that of the config.
    """
    key = jax.random.fold_in(jax.random.key(config.seed if seed is None else seed), INIT_KEY)
    variables = autoencoder(config, num_genes).init(key, jnp.zeros((1, num_genes)))
    if components is not None:
        variables["params"]["encoder"]["components"] = components
    if start is not None:
        variables = {kind: networks | start[kind] for kind, networks in variables.items()}
    opt_state = optimizer(config).init(variables["params"])
    return TrainState(
        jnp.zeros((), jnp.int32), variables["params"], variables["batch_stats"], opt_state
    )


def train_step(
    state: TrainState,
    batch: Batch,
    label_set: LabelSet,
    *,
    config: Config,
    counts: bool,
    mesh: Mesh | None = None,
    numbers: Numbers | None = None,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """One AdamW step on one batch; its anchors are split over the devices of the mesh.

    `numbers` replace those of the config: as arguments of a jitted step, they are not compiled into it.

    Returns:
      The next state, and the step's `loss`, `triplet_loss`, `mse`, `num_triplets`, `num_nonzero`
      (triplets whose loss is not 0), `num_hard` and `num_viable` (see `Triplets`), `hard_fraction`,
      the ratio of these two, `learning_rate`, `gradient_norm`, and the `spread` of the embeddings.
    """
    given = config if numbers is None else numbers
    key = jax.random.fold_in(jax.random.key(given.seed), STEP_KEYS)
    dropout, perturb, mine = jax.random.split(jax.random.fold_in(key, state.step), 3)
    num_genes = num_outputs(state.params)
    x = expression(batch, num_genes, counts)
    labels = perturb_labels(
        perturb, batch.labels, label_set.parents, config.perturb_labels_fraction
    )
    studies = batch.studies if config.sample_across_studies else None
    rate = learning_rate(given, state.step)

    def loss_fn(params):
        (z, y), updates = autoencoder(config, num_genes).apply(
            {"params": params, "batch_stats": state.batch_stats},
            x,
            train=True,
            rngs={"dropout": dropout},
            mutable="batch_stats",
        )
        triplets = _mine(mine, z, labels, studies, label_set, config, given.margin, mesh)
        losses = triplet_losses(z, triplets, margin=given.margin, metric=config.metric)
        triplet = masked_mean(losses, triplets.mask, empty_triplet_loss(config, given.margin))
        mse = reconstruction_loss(x, y)
        l1 = l1_penalty(l1_layer(params["encoder"], config))
        loss = mixed_loss(triplet, mse, given.triplet_loss_weight) + given.l1 * rate * l1
        info = {"loss": loss, "triplet_loss": triplet, "mse": mse}
        info |= _counts(losses, triplets, config)
        info |= spread(jax.lax.stop_gradient(z), batch.labels, len(label_set.related))
        return loss, (updates["batch_stats"], info)

    grads, (batch_stats, info) = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = optimizer(config, given).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    info["hard_fraction"] = hard_fraction(info["num_hard"], info["num_viable"], config)
    info["learning_rate"] = rate
    info["gradient_norm"] = optax.tree.norm(grads)
    return TrainState(state.step + 1, params, batch_stats, opt_state), info


class EvalInfo(NamedTuple):
    """What a batch contributes to the scores of the held-out cells: sums, and the embeddings.

    Attributes:
      z: embeddings.
      error: squared error of each cell's reconstruction, summed over genes.
      power: square of each cell's expression, summed over genes.
      sums: `triplet_loss`, `num_triplets`, `num_nonzero`, `num_hard` and `num_viable` of the batch.
    """

    z: Float[Array, "n latent"]
    error: Float[Array, " n"]
    power: Float[Array, " n"]
    sums: dict[str, Float[Array, ""]]


def eval_step(
    variables: dict,
    batch: Batch,
    label_set: LabelSet,
    key: Key[Array, ""],
    *,
    config: Config,
    counts: bool,
    mesh: Mesh | None = None,
    margin: Float[ArrayLike, ""] | None = None,
) -> EvalInfo:
    """Scores one batch in evaluation mode; studies play no part in its triplets.

    `margin` replaces that of the config.
    """
    margin = config.margin if margin is None else margin
    num_genes = num_outputs(variables["params"])
    x = expression(batch, num_genes, counts)
    z, y = autoencoder(config, num_genes).apply(variables, x)
    triplets = _mine(key, z, batch.labels, None, label_set, config, margin, mesh)
    losses = triplet_losses(z, triplets, margin=margin, metric=config.metric)
    sums = {"triplet_loss": losses.sum()} | _counts(losses, triplets, config)
    return EvalInfo(z, ((x - y) ** 2).sum(1) * batch.real, (x**2).sum(1) * batch.real, sums)


def perturb_labels(
    key: Key[Array, ""],
    labels: Int[Array, " n"],
    parents: Int[Array, "k p"],
    fraction: float,
) -> Int[Array, " n"]:
    """Coarsens the labels of a share of the cells by one level.

    Exactly round(fraction * n) cells are drawn, without replacement; each gets one of its label's
    direct parents, drawn uniformly. Cells without label, and labels without parent, stay.
    """
    pick, choose = jax.random.split(key)
    n = labels.shape[0]
    chosen = jax.random.permutation(pick, n) < round(fraction * n)
    num_parents = (parents >= 0).sum(1)[labels]
    which = jnp.floor(jax.random.uniform(choose, (n,)) * num_parents).astype(jnp.int32)
    parent = parents[labels, which]
    return jnp.where(chosen & (labels >= 0) & (num_parents > 0), parent, labels)


def empty_triplet_loss(config: Config, margin: Any) -> Any:
    """The triplet loss where nothing was mined."""
    return margin if config.empty_triplet_loss == "margin" else 0.0


def hard_fraction(num_hard, num_viable, config: Config):
    """num_hard / num_viable; 0 where nothing is viable, NaN as in SCimilarity's numerics."""
    least = 1.0 if config.empty_triplet_loss == "zero" else 0.0
    return num_hard / jnp.maximum(num_viable, least)


def l1_layer(encoder: Any, config: Config) -> Any:
    """The weights that the L1 penalty is on."""
    return encoder["hidden_0"]["linear"] if config.l1_layer == "first" else encoder["latent"]


def num_outputs(params: Any) -> int:
    """Genes that the networks read and write."""
    encoder = params["encoder"]
    first = encoder["components"] if "components" in encoder else encoder["hidden_0"]["linear"]
    return first["kernel"].shape[0]


def _mine(key, z, labels, studies, label_set: LabelSet, config: Config, margin, mesh) -> Triplets:
    return mine_triplets(
        key,
        jax.lax.stop_gradient(z),
        labels,
        studies=studies,
        related=label_set.related,
        margin=margin,
        selection=config.negative_selection,
        metric=config.mining_metric or config.metric,
        both_orders=config.both_orders,
        mesh=mesh,
    )


def _counts(losses: Float[Array, "n n"], triplets: Triplets, config: Config) -> dict[str, Any]:
    pretended = config.empty_triplet_loss == "margin"  # SCimilarity counts the triplet it makes up
    nonzero = jnp.where(triplets.mask.any(), (losses > 0).sum(), pretended)
    return {
        "num_triplets": triplets.num_triplets,
        "num_nonzero": nonzero.astype(jnp.float32),
        "num_hard": triplets.num_hard,
        "num_viable": triplets.num_viable,
    }
