r"""The groups of a fit: their moments over the nodes, and joint draws of their effects.

Given theta the effects are normal, so that over the nodes they are mixtures of normals, whose moments and quantiles
are exact up to the nodes. For ``M beta + u`` (M: `posterior.levels`) the covariance of both is needed:
E[u | y, theta, gamma] is linear in gamma, ``u = a - L gamma``, hence

.. math:: \mathrm{Cov}(u, M_c \beta) = -L\,w_c, \qquad w_c = \mathrm{Cov}(\gamma \mid y, \theta) A' M_c'

(A takes gamma to the public coefficients), and ``-L w`` is the difference of two conditional means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.cholesky import Moments
from partialpool.algebra.mixture import mixture_summary
from partialpool.algebra.structure import Structure
from partialpool.design.design import Design
from partialpool.design.latent import LatentLayout
from partialpool.errors import ModelError, did_you_mean
from partialpool.inference.gaussian import GaussianMarginal
from partialpool.inference.importance import systematic_resample
from partialpool.model import Model
from partialpool.posterior.components import row_averages
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.effects import JointEffectDraws
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Streams of random numbers that a fit's seed gives rise to; one number each, so that none depends on another.
NODES, EFFECTS, NEW_GROUPS, NOISE = 11, 12, 13, 14


def factor_terms(design: Design, factor: int) -> tuple[str, ...]:
    """Names of the effects of a factor's groups, in the order of its columns."""
    return tuple(name for group in design.groups if group.factor == factor for name in group.names)


def layout_of(model: Model) -> Structure | LatentLayout:
    """Where the group effects stand in the vector of all of them."""
    return GaussianMarginal(model).statistics.cross.structure if model.exact else model.latent


# -- which nodes ------------------------------------------------------------------------------------------------------

#: Seconds (estimated, so that the choice is the same at every run) that all nodes may cost before some are chosen.
BUDGET = 0.5
FEWEST_NODES = 64
#: Numbers kept at once, nodes times effects; above, moments are added up node by node instead.
MOST_NUMBERS = 20_000_000
#: Numbers, nodes times effects, that a fit remembers for the other factors.
MOST_REMEMBERED = 1_000_000
#: Numbers of one batch of nodes.
BATCH_NUMBERS = 4_000_000


def seconds_per_node(fit: Posterior) -> float:
    """Rough cost of every effect's moments at one node; from the structure alone, never from a clock."""
    if not fit.model.exact:  # what `inference.conditional` takes, without the rows
        return 1e-4 + 2e-7 * fit.model.design.n_rows
    structure = GaussianMarginal(fit.model).statistics.cross.structure
    met = np.diff(structure.ptr).astype(float)
    pairs = float((met[met > 0] ** 2).sum())
    return 1e-6 + 2.0e-7 * structure.n_effects + 2e-9 * pairs + 4e-11 * float(structure.n_root) ** 3


def chosen_nodes(fit: Posterior, most: int | None = None) -> tuple[Array, Array]:
    """Nodes (M, d) and weights (M,): all that count where that is cheap, else a systematic resample of them."""
    count = max(FEWEST_NODES, int(BUDGET / seconds_per_node(fit)))
    if most is not None:
        count = min(count, most)
    positions, weights = chosen_positions(fit, count)
    return fit.result.theta[positions], weights


def chosen_positions(fit: Posterior, count: int) -> tuple[Ints, Array]:
    """Positions and weights of all nodes that count, or of a systematic resample where they are more than `count`."""
    weights = node_weights(fit.result)
    positive = np.flatnonzero(weights > 0)
    if positive.size <= count:
        return positive, weights[positive]
    picked = systematic_resample(weights, count, random_stream(fit, NODES))
    unique, times = np.unique(picked, return_counts=True)
    return unique, times / count


def random_stream(fit: Posterior, *key: int) -> np.random.Generator:
    """A stream of random numbers of the fit's seed; each key has its own."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(fit.seed, spawn_key=key)))


# -- moments over the nodes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GroupMoments:
    """Mean, sd, quantiles (5% and 95%) of a factor's effects, each (groups, terms)."""

    mean: Array
    sd: Array
    q05: Array
    q95: Array


class Collector:
    """Takes means and variances of normals node by node; keeps them all, or (where too many) only their moments."""

    def __init__(self, weights: Array, size: int, threads: int) -> None:
        self.weights, self.threads, self.at = weights, threads, 0
        self.whole = weights.size * size <= MOST_NUMBERS
        if self.whole:
            self.means, self.sds = np.empty((weights.size, size)), np.empty((weights.size, size))
        else:
            self.origin: Array | None = None
            self.sums = np.zeros((4, size))

    def add(self, means: Array, variances: Array) -> None:
        stop = self.at + len(means)
        if self.whole:
            self.means[self.at : stop] = means
            np.sqrt(np.maximum(variances, 0.0), out=self.sds[self.at : stop])
        else:
            for weight, mean, variance in zip(self.weights[self.at : stop], means, variances, strict=True):
                self._add_powers(float(weight), mean, np.maximum(variance, 0.0))
        self.at = stop

    def _add_powers(self, weight: float, mean: Array, variance: Array) -> None:
        if self.origin is None:
            self.origin = mean.copy()
        shift = mean - self.origin
        square = shift * shift
        self.sums[0] += weight * shift
        self.sums[1] += weight * (square + variance)
        self.sums[2] += weight * shift * (square + 3 * variance)
        self.sums[3] += weight * (square * square + 6 * square * variance + 3 * variance * variance)

    def summary(self) -> tuple[Array, Array, Array]:
        """mean, sd (J,) and the two quantiles (2, J)."""
        if self.whole:
            return mixture_summary(self.weights, self.means, self.sds, (0.05, 0.95), self.threads)
        return self._cornish_fisher()

    def _cornish_fisher(self) -> tuple[Array, Array, Array]:
        """Quantiles from four cumulants: with so many groups theta is known well, and the mixtures are near normal."""
        first, second, third, fourth = self.sums
        variance = second - first**2
        sd = np.sqrt(np.maximum(variance, 0.0))
        scale = np.where(sd > 0, sd, 1.0)
        skew = (third - 3 * first * second + 2 * first**3) / scale**3
        excess = (fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4) / scale**4 - 3
        z = np.array([-1.6448536269514722, 1.6448536269514722])[:, None]
        score = z + skew * (z**2 - 1) / 6 + excess * (z**3 - 3 * z) / 24 - skew**2 * (2 * z**3 - 5 * z) / 36
        assert self.origin is not None
        mean = self.origin + first
        return mean, sd, mean + sd * score


def effect_summary(fit: Posterior, factor: int, kind: str) -> GroupMoments:
    """Moments and quantiles of a factor's effects, or of ``beta + u``."""
    if not fit.model.exact and fit.result.effects is None:
        from partialpool.posterior.effects import joint_summary

        return joint_summary(fit, factor, kind)
    positions = layout_of(fit.model).effects_of(factor)
    levels = coefficient_levels(fit, factor) if kind == "coefficient" else None
    if fit.result.effects is not None:
        values = fit.result.effects[:, positions]
        if levels is not None:
            values = values + (fit.result.draws_beta @ levels.T)[:, None, :]
        low, high = np.quantile(values, (0.05, 0.95), axis=0)
        return GroupMoments(values.mean(axis=0), values.std(axis=0), low, high)
    theta, weights = chosen_nodes(fit)
    collector = Collector(weights, positions.size, fit.result.settings.threads)
    for means, variances in _batches(fit, theta, weights, positions, levels):
        collector.add(means, variances)
    mean, sd, quantiles = collector.summary()
    shape = positions.shape
    return GroupMoments(
        mean.reshape(shape), sd.reshape(shape), quantiles[0].reshape(shape), quantiles[1].reshape(shape)
    )


def coefficient_levels(fit: Posterior, factor: int) -> Array:
    """The map from the coefficients to what a factor's effects deviate from, (terms, p); see `posterior.levels`."""
    return row_averages(fit.model)[f"levels_{factor}"]


def _batches(
    fit: Posterior, theta: Array, weights: Array, positions: Ints, levels: Array | None
) -> Iterator[tuple[Array, Array]]:
    """Yield means and variances (batch, groups * terms) of the effects (plus coefficients), batch by batch of nodes."""
    marginal = GaussianMarginal(fit.model, threads=fit.result.settings.threads)
    flat = positions.ravel()
    whole = np.array_equal(flat, np.arange(marginal.statistics.cross.structure.n_effects))
    for part, moments in _moments(fit, marginal, theta, weights):
        if levels is not None and levels.any():
            means, variances = moments.u_mean[:, flat], moments.u_var[:, flat]
            _add_coefficients(fit, marginal, part, moments, positions, levels, means, variances)
            yield means, variances
        elif whole:
            yield moments.u_mean, moments.u_var
        else:
            yield moments.u_mean[:, flat], moments.u_var[:, flat]


def _moments(
    fit: Posterior, marginal: GaussianMarginal, theta: Array, weights: Array
) -> Iterator[tuple[Array, Moments]]:
    """Yield nodes and the moments of all effects there; kept where they are few, so that each factor need not ask anew.

    The means over the nodes, which many ask for, are kept in any case.
    """
    kept: list[tuple[Array, Moments]] | None = fit.__dict__.get("_moments")
    if kept is not None:
        yield from kept
        return
    total = np.zeros(marginal.statistics.cross.structure.n_effects)
    kept = [] if len(theta) * total.size <= MOST_REMEMBERED else None
    at = 0
    for part in progress_batches(fit, theta, total.size, "moments of the group effects"):
        moments = marginal.moments(part)
        total += (weights[at : at + len(part), None] * moments.u_mean).sum(axis=0)
        at += len(part)
        if kept is not None:
            kept.append((part, moments))
        yield part, moments
    fit.__dict__.setdefault("_mean_effects", total)
    if kept is not None:
        fit.__dict__["_moments"] = kept


def progress_batches(fit: Posterior, theta: Array, n_effects: int, text: str) -> Iterator[Array]:
    """Yield nodes in batches that fit in memory and keep every thread busy, showing progress past two seconds."""
    from partialpool.inference.progress import Progress

    threads = fit.result.settings.threads
    size = max(threads, BATCH_NUMBERS // max(n_effects, 1))
    if seconds_per_node(fit) > 1e-3:  # so that progress is seen
        size = min(size, 4 * threads)
    with Progress(fit.result.settings.progress) as progress:
        for start in range(0, len(theta), size):
            progress.update(start / len(theta), text)
            yield theta[start : start + size]


def _add_coefficients(
    fit: Posterior, marginal: GaussianMarginal, theta: Array, moments: Any, positions: Ints,
    levels: Array, means: Array, variances: Array,
) -> None:  # fmt: skip
    """Turn moments of u into those of ``levels beta + u``, in place."""
    coefficients = fit.model.coefficients
    evaluation = moments.evaluation
    scale = marginal.scales(theta)
    gamma = np.asarray(coefficients.mean) + scale * evaluation.mean
    half = np.linalg.solve(evaluation.low, np.eye(scale.shape[1])[None] * scale[:, None, :])  # Cov = half' half
    covariance = np.swapaxes(half, 1, 2) @ half
    of_gamma = levels @ coefficients.public_matrix()
    none = np.zeros((len(theta), moments.u_mean.shape[1]))
    width = positions.shape[1]
    for term, weights in enumerate(of_gamma):
        if not levels[term].any():
            continue
        direction = covariance @ weights
        variance = direction @ weights
        sd = np.sqrt(variance)[:, None]
        own = positions[:, term]
        moved = marginal.draw_effects(theta, gamma + direction / np.where(sd > 0, sd, 1.0), none)
        cross = (moved[:, own] - moments.u_mean[:, own]) * sd
        means[:, term::width] += (gamma @ weights)[:, None]
        variances[:, term::width] += variance[:, None] + 2 * cross


def mean_effects(fit: Posterior) -> Array:
    """Posterior means of all effects, in the internal order (n_effects,)."""
    if "_mean_effects" not in fit.__dict__:
        if fit.result.effects is not None:
            fit.__dict__["_mean_effects"] = fit.result.effects.mean(axis=0)
        elif not fit.model.exact:
            from partialpool.posterior.effects import joint_mean_effects

            fit.__dict__["_mean_effects"] = joint_mean_effects(fit)
        else:
            theta, weights = chosen_nodes(fit)
            for _ in _moments(fit, GaussianMarginal(fit.model, threads=fit.result.settings.threads), theta, weights):
                pass
    return np.asarray(fit.__dict__["_mean_effects"])


def mean_coefficients(fit: Posterior) -> Array:
    """Posterior means of the public coefficients (p,)."""
    # Summed in a fixed order, so that a fit that was saved and loaded gives the same bits.
    beta = np.ascontiguousarray(fit.result.beta_mean)
    return np.asarray((node_weights(fit.result)[:, None] * beta).sum(axis=0))


def shrinkage_factors(fit: Posterior, factor: int) -> Array:
    """E_theta[Var(u | y, beta, theta) / sd^2], (groups, terms)."""
    cached = fit.__dict__.get("_shrinkage")
    if cached is None:
        if fit.model.exact:
            cached = _all_shrinkage(fit)
        else:
            from partialpool.posterior.effects import joint_shrinkage

            cached = joint_shrinkage(fit)
        fit.__dict__["_shrinkage"] = cached
    return np.asarray(cached[factor])


def _all_shrinkage(fit: Posterior) -> list[Array]:
    """The same by factor; one pass over the nodes serves all of them."""
    # A part of the nodes does where nodes are dear: it varies little between them.
    dear = seconds_per_node(fit) * len(fit.result.theta) > BUDGET
    theta, weights = chosen_nodes(fit, FEWEST_NODES // 4 if dear else None)
    marginal = GaussianMarginal(fit.model, threads=fit.result.settings.threads)
    structure = marginal.statistics.cross.structure
    positions = [structure.effects_of(f) for f in range(len(fit.model.design.factors))]
    sds = [sds_at(fit, theta, f) for f in range(len(positions))]
    out = [np.zeros(at.shape) for at in positions]
    node = 0
    for part in progress_batches(fit, theta, structure.n_effects, "shrinkage"):
        for variance in _variances_given_coefficients(marginal, part):
            for f, at in enumerate(positions):
                square = sds[f][node] ** 2
                # As an sd goes to 0 all of the estimate comes from the population.
                share = np.where(square > 0, variance[at] / np.where(square > 0, square, 1.0), 1.0)
                out[f] += weights[node] * np.clip(share, 0.0, 1.0)
            node += 1
    return out


def sds_at(fit: Posterior, theta: Array, factor: int) -> Array:
    """The sds of a factor's effects at each node, (K, terms)."""
    terms = [term for term in fit.model.hyperparameters.terms if term.factor == factor]
    return np.concatenate([term.covariance.sds(theta[:, term.parameters]) for term in terms], axis=1)


def _variances_given_coefficients(marginal: GaussianMarginal, theta: Array) -> Array:
    """Var(u | y, beta, theta), (K, n_effects)."""
    arguments = marginal.arguments(theta)
    if not marginal.adds_sigma:
        return marginal.engine.moments(*arguments, profile=True, effects=True).u_var
    rows = []
    for k in range(len(theta)):
        engine = marginal.at_sigma(theta[k : k + 1])[0]
        own = [np.ascontiguousarray(argument[k : k + 1]) for argument in arguments]
        rows.append(engine.moments(own[0], own[1], own[2], profile=True, effects=True).u_var)
    return np.concatenate(rows)


# -- the table --------------------------------------------------------------------------------------------------------


def group_table(fit: Posterior, factor: int, kind: str) -> pandas.DataFrame:
    """`Posterior.groups`."""
    import pandas as pd

    from partialpool.posterior.unpooled import unpooled_effects

    design = fit.model.design
    terms = factor_terms(design, factor)
    own = design.factors[factor]
    moments = effect_summary(fit, factor, kind)
    unpooled = unpooled_effects(fit, factor)
    if kind == "coefficient":
        unpooled = unpooled + coefficient_levels(fit, factor) @ mean_coefficients(fit)
    groups, width = moments.mean.shape
    return pd.DataFrame(
        {
            "group": np.repeat(own.labels, width),
            "term": np.tile(np.array(terms, dtype=object), groups),
            "n": np.repeat(np.asarray(own.sizes), width),
            "mean": moments.mean.ravel(),
            "sd": moments.sd.ravel(),
            "q05": moments.q05.ravel(),
            "q95": moments.q95.ravel(),
            "no_pooling": unpooled.ravel(),
            "shrinkage": shrinkage_factors(fit, factor).ravel(),
        }
    )


# -- draws ------------------------------------------------------------------------------------------------------------

#: Effects whose normal numbers come from one stream: a part of the effects can be drawn without the others.
STREAM_WIDTH = 256
#: Most numbers that one call returns.
MOST_DRAWN = 500_000_000


class EffectDraws:
    """Draws of effects, joint with the fit's draws of all parameters, for as many effects as are asked for.

    The normal numbers behind effect number e (internal order) come from stream e // 256, so that a draw of one group is
    the same whether or not others are drawn.
    """

    def __init__(self, fit: Posterior, draws: Ints | None = None) -> None:
        self.fit = fit
        self.marginal = GaussianMarginal(fit.model, threads=fit.result.settings.threads)
        self.structure = self.marginal.statistics.cross.structure
        self.draws = np.arange(len(fit.result.draws_theta)) if draws is None else draws
        self.gamma = fit.model.coefficients.from_public(fit.result.draws_beta)

    @property
    def independent(self) -> bool:
        """Whether groups are independent given the parameters, so that some can be drawn without the rest."""
        structure = self.structure
        single = not structure.n_root and len(structure.levels) == 1
        return single and not self.marginal.adds_sigma and self.fit.result.effects is None

    def of(self, positions: Ints) -> Array:
        """(draws, *positions.shape): the effects at `positions` of the internal vector."""
        flat = np.asarray(positions).ravel()
        count = len(self.draws)
        if self.fit.result.effects is not None:
            return self.fit.result.effects[np.ix_(self.draws, flat)].reshape(count, *np.shape(positions))
        if count * max(flat.size, 1) > MOST_DRAWN:
            raise ModelError(
                f"{count:,} draws of {flat.size:,} effects are {count * flat.size * 8 / 1e9:.0f} GB; name the groups "
                "you need with groups=[...], or use groups(), which has their moments."
            )
        small = self._alone(flat)
        if small is not None:
            return small.reshape(count, *np.shape(positions))
        return self._all(flat).reshape(count, *np.shape(positions))

    def _normals(self, blocks_of: Ints) -> Array:
        """Normal numbers (draws, effects) of whole streams, in the order given."""
        total = int(self.draws.max()) + 1
        out = np.empty((total, len(blocks_of) * STREAM_WIDTH))
        for place, block in enumerate(blocks_of):
            stream = random_stream(self.fit, EFFECTS, int(block))
            width = slice(place * STREAM_WIDTH, (place + 1) * STREAM_WIDTH)
            out[:, width] = stream.standard_normal((total, STREAM_WIDTH))
        return out[self.draws]

    def _all(self, flat: Ints) -> Array:
        """By drawing every effect, a batch of draws at a time."""
        n_effects = self.structure.n_effects
        streams = [random_stream(self.fit, EFFECTS, block) for block in range(-(-n_effects // STREAM_WIDTH))]
        out = np.empty((len(self.draws), flat.size))
        wanted = np.zeros(len(self.fit.result.draws_theta), dtype=bool)
        wanted[self.draws] = True
        at = 0
        n_draws = int(self.draws.max()) + 1 if len(self.draws) else 0
        place = np.empty(n_draws, dtype=np.int64)
        place[self.draws] = np.arange(len(self.draws))
        size = max(1, BATCH_NUMBERS // max(n_effects, 1))
        from partialpool.inference.progress import Progress

        with Progress(self.fit.result.settings.progress) as progress:
            while at < n_draws:
                stop = min(at + size, n_draws)
                progress.update(at / n_draws, "draws of the group effects")
                normals = np.empty((stop - at, len(streams) * STREAM_WIDTH))
                for block, stream in enumerate(streams):
                    normals[:, block * STREAM_WIDTH : (block + 1) * STREAM_WIDTH] = stream.standard_normal(
                        (stop - at, STREAM_WIDTH)
                    )
                own = at + np.flatnonzero(wanted[at:stop])
                if own.size:
                    picked = np.ascontiguousarray(normals[own - at, :n_effects])
                    u = self.marginal.draw_effects(self.fit.result.draws_theta[own], self.gamma[own], picked)
                    out[place[own]] = u[:, flat]
                at = stop
        return out

    def _alone(self, flat: Ints) -> Array | None:
        """Where groups are independent given theta and the coefficients (one factor), only those asked for."""
        structure = self.structure
        if not self.independent:
            return None
        q, total = structure.widths[structure.elimination.chain[0]], structure.sizes[structure.elimination.chain[0]]
        groups = np.unique(flat // q)
        if groups.size * 2 > total or total <= STREAM_WIDTH:
            return None
        return self._alone_groups(flat, groups, q)

    def _alone_groups(self, flat: Ints, groups: Ints, q: int) -> Array:
        """Draw the effects of `groups` (internal numbers) from cross-products that hold no other group."""
        from partialpool.algebra.cholesky import LeafRoot
        from partialpool.posterior.unpooled import only_groups

        own = (groups[:, None] * q + np.arange(q)).ravel()
        streams = np.unique(own // STREAM_WIDTH)
        engine = LeafRoot(
            only_groups(self.marginal.statistics.cross, groups), self.marginal.proper, self.marginal.threads
        )
        place = np.searchsorted(streams, own // STREAM_WIDTH) * STREAM_WIDTH + own % STREAM_WIDTH
        normals = np.ascontiguousarray(self._normals(streams)[:, place])
        theta = self.fit.result.draws_theta[self.draws]
        shifted = np.ascontiguousarray(self.gamma[self.draws] - np.asarray(self.fit.model.coefficients.mean))
        lams, inv_vars, _ = self.marginal.arguments(theta)
        drawn = engine.draws(lams, inv_vars, shifted, normals)
        return np.asarray(drawn[:, np.searchsorted(own, flat)])


def factor_draws(fit: Posterior, factor: int, groups: Sequence[Any] | None) -> Array:
    """`Posterior.group_draws`."""
    positions = layout_of(fit.model).effects_of(factor)
    if groups is not None:
        positions = positions[group_numbers(fit.model.design, factor, groups)]
    return effect_draws(fit).of(positions)


def effect_draws(fit: Posterior, draws: Ints | None = None) -> EffectDraws | JointEffectDraws:
    """What draws the effects of a fit."""
    if fit.model.exact:
        return EffectDraws(fit, draws)
    from partialpool.posterior.effects import JointEffectDraws

    return JointEffectDraws(fit, draws)


def group_numbers(design: Design, factor: int, groups: Sequence[Any]) -> Ints:
    """Where the groups of these labels stand in a factor."""
    own = design.factors[factor]
    if isinstance(groups, str):
        raise ModelError(f"groups= takes a list of labels; write groups=[{groups!r}].")
    wanted = [_label(group) for group in groups]
    if len(wanted) < 100 and own.labels.size > 10_000:
        found = [np.flatnonzero(own.labels == label) for label in wanted]
        place = {label: int(at[0]) for label, at in zip(wanted, found, strict=True) if at.size}
    else:
        place = {label: position for position, label in enumerate(own.labels.tolist())}
    for label in wanted:
        if label not in place:
            raise ModelError(
                f"The factor {own.name!r} has no group {label!r}. {did_you_mean(label, own.labels[:5000].tolist())}"
            )
    return np.array([place[label] for label in wanted], dtype=np.int64)


def _label(group: Any) -> str:
    if isinstance(group, tuple):
        return ":".join(_label(part) for part in group)
    if isinstance(group, float) and group.is_integer():
        return str(int(group))
    return str(group)
