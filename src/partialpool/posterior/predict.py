"""Predictions for old and new rows, and residuals; rows times draws are streamed in blocks of rows."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from partialpool.design.design import Design, NewRows
from partialpool.design.predictor import FactorRows, LinearPredictor, RowVariance, row_variance
from partialpool.errors import DataError, ModelError, did_you_mean
from partialpool.inference.progress import Progress
from partialpool.posterior.groups import (
    NEW_GROUPS,
    NOISE,
    EffectDraws,
    effect_draws,
    layout_of,
    mean_coefficients,
    mean_effects,
    random_stream,
    seconds_per_node,
)
from partialpool.posterior.summaries import node_weights

if TYPE_CHECKING:
    import pandas

    from partialpool.posterior.effects import JointEffectDraws
    from partialpool.posterior.posterior import Posterior

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

KINDS = ("mean", "response", "linear")
NEW = ("error", "average", "population", "sample")

#: Rows times draws that a prediction keeps; above, they are computed again, block by block, when they are needed.
MOST_KEPT = 20_000_000
#: Rows times draws beyond which fewer draws are used, but at least FEWEST.
MOST_COMPUTED = 500_000_000
FEWEST = 400
#: Rows times draws that `Prediction.draws` returns at most (4 GB).
MOST_RETURNED = 500_000_000
#: Numbers in one block.
BLOCK = 4_000_000
#: Numbers of effect draws held at once.
MOST_EFFECTS = 20_000_000
#: Seconds (estimated) that draws of the effects may take before fewer are used.
PATIENCE = 10.0


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a fit says about some rows. Made by ``fit.predict``.

    Attributes
    ----------
    mean : (rows,) posterior means, exact given the fit's nodes; for a response that is not Gaussian, all but the means
        of the linear predictor are those of the draws.
    index : labels of the rows. kind : "mean", "response" or "linear".
    n_draws : how many of the fit's draws sd, quantiles and draws are made of.

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> prediction = fit.predict({"Days": [0, 9], "Subject": [308, 308]})
    >>> prediction.quantile([0.05, 0.95]).shape
    (2, 2)
    """

    mean: Array
    index: pandas.Index[Any]
    kind: str
    n_draws: int
    _source: Source

    @property
    def sd(self) -> Array:
        """Posterior standard deviations (rows,)."""
        return np.asarray(self._sd.copy())

    @cached_property
    def _sd(self) -> Array:
        if self._kept is not None:
            return np.asarray(self._kept.std(axis=0))
        return np.asarray(self._by_blocks(lambda block: block.std(axis=1)[None, :])[0])

    @cached_property
    def _kept(self) -> Array | None:
        if len(self.mean) * self.n_draws > MOST_KEPT:
            return None
        out = np.empty((self.n_draws, len(self.mean)))
        for rows, block in self._source.blocks(np.transpose):
            out[:, rows] = block
        return out

    def _by_blocks(self, statistic: Callable[[Array], Array]) -> Array:
        """A statistic of each row's draws, block by block: statistic((r, draws)) -> (k, r)."""
        out: Array | None = None
        for rows, values in self._source.blocks(statistic):
            if out is None:
                out = np.empty((values.shape[0], len(self.mean)))
            out[:, rows] = values
        return np.empty((1, 0)) if out is None else out

    def quantile(self, q: ArrayLike) -> Array:
        """Posterior quantiles: (rows,) for a number q, (len(q), rows) for several.

        Raises
        ------
        ModelError
            Where q is not between 0 and 1.
        """
        levels = np.asarray(q, dtype=float)
        if levels.size == 0 or not ((levels >= 0) & (levels <= 1)).all():
            raise ModelError(f"quantile({q!r}) is not possible; q lies between 0 and 1.")
        flat = levels.ravel()
        if self._kept is not None:
            values = np.quantile(self._kept, flat, axis=0)
        else:
            values = self._by_blocks(lambda block: np.quantile(block, flat, axis=1, overwrite_input=True))
        return np.asarray(values.reshape(*levels.shape, len(self.mean)))

    @property
    def draws(self) -> Array:
        """All draws (draws, rows); made on demand where they are many.

        Raises
        ------
        ModelError
            Where they would need more than 4 GB.
        """
        if self._kept is not None:
            return self._kept.copy()
        size = len(self.mean) * self.n_draws
        if size > MOST_RETURNED:
            raise ModelError(
                f"{self.n_draws:,} draws of {len(self.mean):,} rows are {size * 8 / 1e9:.0f} GB; ask for fewer with "
                "predict(draws=...), for fewer rows, or for mean, sd and quantile(), which are streamed."
            )
        return self._by_blocks(np.transpose)

    def to_frame(self) -> pandas.DataFrame:
        """A row for each row of the data: mean, sd, q05, q50, q95."""
        import pandas as pd

        low, middle, high = self._quantiles
        columns = {"mean": self.mean, "sd": self._sd, "q05": low, "q50": middle, "q95": high}
        return pd.DataFrame({name: np.array(values) for name, values in columns.items()}, index=self.index)

    @cached_property
    def _quantiles(self) -> Array:
        return self.quantile([0.05, 0.5, 0.95])

    def __len__(self) -> int:
        return len(self.mean)

    def _what(self) -> str:
        what = {"mean": "expected response", "response": "new responses", "linear": "linear predictor"}[self.kind]
        rows = "row" if len(self.mean) == 1 else "rows"
        return f"Prediction of the {what}: {len(self.mean):,} {rows}, {self.n_draws:,} draws"

    def __repr__(self) -> str:
        shown = self._head().to_frame()
        more = f"\n... and {len(self.mean) - len(shown):,} more rows" if len(shown) < len(self.mean) else ""
        return f"{self._what()}\n{shown.to_string(float_format=lambda value: f'{value:.4g}')}{more}"

    def _repr_html_(self) -> str:
        shown = self._head().to_frame()
        more = f"<p>... and {len(self.mean) - len(shown):,} more rows</p>" if len(shown) < len(self.mean) else ""
        return f"<p>{html.escape(self._what())}</p>{shown.to_html(float_format=lambda value: f'{value:.4g}')}{more}"

    def _head(self, count: int = 10) -> Prediction:
        if len(self.mean) <= count:
            return self
        return Prediction(self.mean[:count], self.index[:count], self.kind, self.n_draws, self._source.head(count))


# -- from arguments to rows -------------------------------------------------------------------------------------------


def predict(
    fit: Posterior, new_data: Any, *, kind: str, new_groups: str, effects: str | Sequence[str], draws: int | None
) -> Prediction:
    """`Posterior.predict`."""
    if kind not in KINDS:
        raise ModelError(f"There is no kind {kind!r} of prediction. {did_you_mean(str(kind), KINDS)}")
    if new_groups not in NEW:
        raise ModelError(f"new_groups={new_groups!r} is not known. {did_you_mean(str(new_groups), NEW)}")
    if draws is not None and (isinstance(draws, bool) or not isinstance(draws, int | np.integer) or draws <= 0):
        raise ModelError(f"draws = {draws!r} is not possible; ask for a whole number above 0, or leave it out.")
    design = fit.model.design
    factors = _chosen_factors(design, effects)
    new = None
    if new_data is None:
        need_rows(fit, "predict() without new_data")
        rows = LinearPredictor.of_design(design, factors)
        index = design.data.index
    else:
        new = design.replay(new_data, factors=[design.factors[f].name for f in factors])
        rows = LinearPredictor.of_new_rows(design, new, factors)
        index = new.index
    if not fit.model.exact:
        from partialpool.posterior.response import joint_source, predicted

        source = joint_source(fit, new, factors, kind, new_groups)
        if new is not None and new_groups == "error":
            _refuse_new_groups(design, source.factor_rows)
        return predicted(replace(source, draws=draws_used(fit, rows, draws)), index)
    noise = _noise(design, new, kind)
    if new is not None and new_groups == "error":
        _refuse_new_groups(design, rows.factors)
    exactly = Source(fit, rows, kind, new_groups, noise, draws_used(fit, rows, draws))
    return Prediction(linear_means(fit, rows), index, kind, len(exactly.draws), exactly)


def need_rows(fit: Posterior, what: str) -> None:
    """Refuse what needs the rows of a fit that was saved without them."""
    design = fit.model.design
    if len(design.y) != design.n_rows:
        raise ModelError(f"{what} needs the rows of the data, and this fit was saved without them (data=False).")


def _chosen_factors(design: Design, effects: str | Sequence[str]) -> list[int]:
    names = [factor.name for factor in design.factors]
    if isinstance(effects, str):
        if effects == "all":
            return list(range(len(names)))
        if effects == "none":
            return []
        hint = f"write effects=[{effects!r}]." if effects in names else did_you_mean(effects, ["all", "none", *names])
        raise ModelError(f"effects={effects!r} is not known; {hint}")
    if not isinstance(effects, Iterable):
        raise ModelError(f"effects={effects!r} is not known; write 'all', 'none' or a list of factors.")
    effects = list(effects)
    for name in effects:
        if name not in names:
            raise ModelError(f"There is no grouping factor {name!r}. {did_you_mean(str(name), names)}")
    return [position for position, name in enumerate(names) if name in effects]


def _refuse_new_groups(design: Design, factors: Sequence[FactorRows]) -> None:
    for factor in factors:
        new = np.flatnonzero(factor.codes < 0)
        if not new.size:
            continue
        assert factor.labels is not None
        found = list(dict.fromkeys(str(label) for label in factor.labels[new]))
        shown = ", ".join(repr(label) for label in found[:5]) + (
            f" and {len(found) - 5} more" if len(found) > 5 else ""
        )
        raise DataError(
            f"The fit has not seen these groups of {design.factors[factor.factor].name!r}: {shown}. Say what to do "
            "with them: new_groups='sample' (each a draw from the population), 'population' or 'average'."
        )


def draws_used(fit: Posterior, rows: LinearPredictor, asked: int | None) -> Ints:
    """Which of the fit's draws: all, or as many as are affordable."""
    total = len(fit.result.draws_theta)
    if asked is not None:
        if asked > total:
            raise ModelError(f"The fit has {total:,} draws; ask for at most as many, or fit again with draws={asked}.")
        count = int(asked)
    else:
        count = min(total, max(FEWEST, MOST_COMPUTED // max(rows.n_rows, 1)))
        if rows.factors and fit.result.effects is None:
            structure = layout_of(fit.model)
            if not fit.model.exact:
                count = min(count, max(200, int(PATIENCE / _seconds_per_draw(fit, rows))))
            elif structure.n_root:
                count = min(count, max(200, int(2 * PATIENCE / seconds_per_node(fit))))
            if not effect_draws(fit).independent:
                count = min(count, max(100, MOST_EFFECTS // max(structure.n_effects, 1)))
    if fit.result.chains:  # neighbours in a chain are alike
        return np.linspace(0, total - 1, count).astype(np.int64)
    return np.arange(count, dtype=np.int64)


def _seconds_per_draw(fit: Posterior, rows: LinearPredictor) -> float:
    """Rough cost of drawing the effects of the leaf's groups that the rows need, where each is drawn by itself."""
    found = [factor.codes for factor in rows.factors if factor.factor == fit.model.latent.leaf]
    if not found:
        return 1e-9
    sizes = fit.model.design.factors[fit.model.latent.leaf or 0].sizes
    needed = np.flatnonzero(np.bincount(found[0][found[0] >= 0], minlength=1))
    return 1e-9 + 3e-6 * needed.size + 2e-7 * float(sizes[needed].sum())


# -- means, exactly ---------------------------------------------------------------------------------------------------


def linear_means(fit: Posterior, rows: LinearPredictor) -> Array:
    """Posterior means of the linear predictor (rows,); a new group's effect has mean 0."""
    every = np.arange(rows.n_rows, dtype=np.int64)
    eta = rows.common(mean_coefficients(fit)[None, :], every)
    if rows.factors:
        structure = layout_of(fit.model)
        met = [factor for factor in rows.factors if fit.model.exact or (factor.codes >= 0).any()]
        effects = mean_effects(fit) if met else np.empty(0)
        for factor in met:
            own = np.ascontiguousarray(effects[structure.effects_of(factor.factor)][:, :, None])
            rows.add_effects(eta, factor, own, factor.codes.astype(np.int64), every)
    return eta[:, 0]


def residual_table(fit: Posterior) -> pandas.DataFrame:
    """`Posterior.residuals`."""
    import pandas as pd

    need_rows(fit, "residuals()")
    design = fit.model.design
    if not fit.model.exact:
        from partialpool.posterior.response import joint_residuals

        return joint_residuals(fit)
    fitted = linear_means(fit, LinearPredictor.of_design(design, range(len(design.factors))))
    variance = np.broadcast_to(row_variance(design, design.se_sigma).at(_mean_sigma(fit)), design.y.shape)
    residual = design.y - fitted
    columns = {
        "observed": design.y.copy(),
        "fitted": fitted,
        "residual": residual,
        "standardised": residual / np.sqrt(variance),
    }
    return pd.DataFrame(columns, index=design.data.index)


def residual_variance(fit: Posterior, draws: Ints) -> Array:
    """The residual variance of the fit's rows at some of its draws (rows, draws)."""
    design = fit.model.design
    every = np.arange(design.n_rows, dtype=np.int64)
    return _by_draw(row_variance(design, design.se_sigma).of(every), _sigma_draws(fit, draws))


def _mean_sigma(fit: Posterior) -> float:
    at = fit.model.hyperparameters.sigma_at
    return 0.0 if at is None else float(node_weights(fit.result) @ np.exp(fit.result.theta[:, at]))


# -- draws, block by block --------------------------------------------------------------------------------------------


def _sigma_draws(fit: Posterior, draws: Ints) -> Array:
    """sigma at some of the fit's draws (draws,); 0 where it is not estimated."""
    at = fit.model.hyperparameters.sigma_at
    return np.zeros(len(draws)) if at is None else np.exp(fit.result.draws_theta[draws, at])


def _by_draw(variance: RowVariance, sigma: Array) -> Array:
    """(rows, draws) for sigma (draws,)."""
    known, share = np.asarray(variance.known), np.asarray(variance.share)
    return np.asarray(known[:, None] + sigma**2 * share[:, None])


def _noise(design: Design, new: NewRows | None, kind: str) -> RowVariance | None:
    if kind != "response":
        return None
    left = design.terms.response
    source = design if new is None else new
    for name, text in (("se", left.se), ("precision", left.precision)):
        if text is not None and getattr(source, name) is None:
            raise DataError(f"The new data lack the column of {name}({text}), which the noise of a new response needs.")
    return row_variance(source, design.se_sigma)


@dataclass(frozen=True, eq=False)
class Source:
    """Computes the draws of a prediction, the same ones every time."""

    fit: Posterior
    rows: LinearPredictor
    kind: str
    new_groups: str
    noise: RowVariance | None
    draws: Ints
    first: int | None = None

    def head(self, count: int) -> Source:
        """The same draws of the first rows alone."""
        return replace(self, first=count)

    @property
    def factor_rows(self) -> tuple[FactorRows, ...]:
        """The grouping factors that take part, each once."""
        return self.rows.factors

    @property
    def block_rows(self) -> int:
        return max(1, BLOCK // max(len(self.draws), 1))

    @cached_property
    def order(self) -> Ints:
        """Rows of one group together where effects are drawn block by block."""
        if self.factor_rows and self._held is None:
            return np.argsort(self.factor_rows[0].codes, kind="stable")
        return np.arange(self.rows.n_rows, dtype=np.int64)

    def blocks(self, statistic: Callable[[Array], Array]) -> Iterator[tuple[Ints, Array]]:
        """Yield row numbers and statistic((rows, draws)), whose last axis is the rows."""
        size = self.block_rows
        pieces = []
        for number, start in enumerate(range(0, self.rows.n_rows, size)):
            rows = self.order[start : start + size]
            if self.first is None or (rows < self.first).any():
                pieces.append((number, rows))

        def work(piece: tuple[int, Ints]) -> tuple[Ints, Array]:
            number, rows = piece
            block = self.block(number, rows)
            if self.first is not None:
                keep = rows < self.first
                rows, block = rows[keep], block[keep]
            return rows, statistic(block)

        threads = max(1, min(self.fit.result.settings.threads, len(pieces)))
        with Progress(self.fit.result.settings.progress) as progress:
            if threads == 1:
                for done, piece in enumerate(pieces):
                    progress.update(done / len(pieces), "predictions")
                    yield work(piece)
                return
            self.prepare()
            with ThreadPoolExecutor(threads) as pool:
                for start in range(0, len(pieces), threads):  # a few at a time: finished blocks must not pile up
                    progress.update(start / len(pieces), "predictions")
                    yield from pool.map(work, pieces[start : start + threads])

    def prepare(self) -> None:
        """Compute what the blocks share, before threads ask for it."""
        _ = self.order, self._sigma, self._held, self._effect_draws
        if self.new_groups == "sample":
            for factor in self.factor_rows:
                if factor.labels is not None and (factor.codes < 0).any():
                    self._new_effects(factor)

    def block(self, number: int, rows: Ints) -> Array:
        """The draws (rows, draws) of block `number`."""
        eta = self.rows.common(self.fit.result.draws_beta[self.draws], rows)
        for factor in self.rows.factors:
            self._add_known(eta, factor, rows)
            if factor.labels is not None and (factor.codes[rows] < 0).any():
                self._add_new(eta, factor, rows, number)
        if self.noise is not None:
            stream = random_stream(self.fit, NOISE, number)
            eta += np.sqrt(_by_draw(self.noise.of(rows), self._sigma)) * stream.standard_normal(eta.shape)
        return eta

    @cached_property
    def _sigma(self) -> Array:
        return _sigma_draws(self.fit, self.draws)

    # groups that the fit knows

    @cached_property
    def _effect_draws(self) -> EffectDraws | JointEffectDraws:
        return effect_draws(self.fit, self.draws)

    @cached_property
    def _positions(self) -> dict[int, tuple[Ints, Ints]]:
        """By factor: the known groups that the rows need, and the positions of their effects."""
        structure = layout_of(self.fit.model)
        out = {}
        for factor in self.factor_rows:
            known = factor.codes[: self.first][factor.codes[: self.first] >= 0]
            needed = np.flatnonzero(np.bincount(known, minlength=1)) if known.size else np.empty(0, dtype=np.int64)
            out[factor.factor] = needed, structure.effects_of(factor.factor)[needed]
        return out

    @cached_property
    def _held(self) -> dict[int, Array] | None:
        """By factor, draws of all effects that are needed (groups, q, draws); None where they are too many to hold."""
        positions = [at for _, at in self._positions.values()]
        sizes = [at.size for at in positions]
        if sum(sizes) * len(self.draws) > MOST_EFFECTS and self._effect_draws.independent:
            return None
        flat = np.concatenate([at.ravel() for at in positions]) if positions else np.empty(0, dtype=np.int64)
        drawn = self._effect_draws.of(flat) if flat.size else np.empty((len(self.draws), 0))
        parts = np.split(drawn, np.cumsum(sizes)[:-1], axis=1) if positions else []
        return {
            factor: np.ascontiguousarray(part.T).reshape(*at.shape, len(self.draws))
            for (factor, (_, at)), part in zip(self._positions.items(), parts, strict=True)
        }

    def _add_known(self, eta: Array, factor: FactorRows, rows: Ints) -> None:
        codes = factor.codes[rows].astype(np.int64)
        held = self._held
        if held is not None:
            needed = self._positions[factor.factor][0]
            effects = held[factor.factor]
        else:
            needed = np.unique(codes[codes >= 0])
            structure = layout_of(self.fit.model)
            drawn = self._effect_draws.of(structure.effects_of(factor.factor)[needed])
            effects = np.ascontiguousarray(np.moveaxis(drawn, 0, 2))
        if not needed.size:
            return
        place = np.minimum(np.searchsorted(needed, codes), needed.size - 1)
        place = np.where((codes >= 0) & (needed[place] == codes), place, -1)
        self.rows.add_effects(eta, factor, effects, place, rows)

    # groups that it does not

    def _add_new(self, eta: Array, factor: FactorRows, rows: Ints, number: int) -> None:
        new = factor.codes[rows] < 0
        if self.new_groups == "sample":
            effects, place = self._new_effects(factor)
            self.rows.add_effects(eta, factor, effects, place[rows], rows)
        elif self.new_groups == "population" and self.kind == "response":
            # Integrated over the population: a row's effect is drawn afresh. (Its mean, for an identity link, is 0.)
            columns = self.rows.V[rows[new]][:, factor.columns]
            spread = np.einsum("rj,dji->rdi", columns, self._lambda(factor.factor))
            stream = random_stream(self.fit, NEW_GROUPS, factor.factor, number + 1)
            eta[new] += np.sqrt((spread**2).sum(axis=2)) * stream.standard_normal((int(new.sum()), eta.shape[1]))

    def _new_effects(self, factor: FactorRows) -> tuple[Array, Ints]:
        """Draws (new groups, q, draws), one for each new group, and the new group of each row (-1: it is known)."""
        cache: dict[int, tuple[Array, Ints]] = self.__dict__.setdefault("_new", {})
        if factor.factor not in cache:
            assert factor.labels is not None
            new = np.flatnonzero(factor.codes < 0)
            names, inverse = np.unique(factor.labels[new].astype(str), return_inverse=True)
            place = np.full(self.rows.n_rows, -1, dtype=np.int64)
            place[new] = inverse.ravel()
            lam = self._lambda(factor.factor)
            if len(names) * lam.shape[1] * len(lam) > MOST_RETURNED:
                raise ModelError(
                    f"{len(names):,} new groups times {len(lam):,} draws are too many; predict(draws=...) takes fewer."
                )
            z = np.empty((len(lam), len(names), lam.shape[1]))
            for k, name in enumerate(names):
                z[:, k] = self._normals_of(factor.factor, str(name))
            drawn = z @ np.swapaxes(lam, 1, 2)
            cache[factor.factor] = np.ascontiguousarray(np.moveaxis(drawn, 0, 2)), place
        return cache[factor.factor]

    def _normals_of(self, factor: int, label: str) -> Array:
        """Normal numbers (draws, q) of one new group: its own, whichever others are in the rows."""
        key = int.from_bytes(hashlib.blake2b(label.encode(), digest_size=16).digest(), "little")
        stream = random_stream(self.fit, NEW_GROUPS, factor, key)
        count = int(self.draws.max()) + 1 if len(self.draws) else 0
        width = self.fit.model.hyperparameters.widths[factor]
        return np.asarray(stream.standard_normal((count, width))[self.draws])

    def _lambda(self, factor: int) -> Array:
        """Lambda of a factor at the draws (draws, q, q)."""
        hyper = self.fit.model.hyperparameters
        width, start = hyper.widths[factor], hyper.lam_at[factor]
        lams = hyper.factors(self.fit.result.draws_theta[self.draws])
        return lams[:, start : start + width * width].reshape(-1, width, width)
