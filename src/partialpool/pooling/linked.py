r"""Populations on the link scale whose units integrate out by quadrature: normal, Student-t, a point plus a normal.

With eta the unit's parameter on the link scale (identity, logit, log) and f the likelihood,

.. math:: p(y_j \mid h) = \int f(y_j \mid \eta)\, p(\eta \mid h)\, d\eta

is a sum over the population's components, each integrated by `partialpool.algebra.unitpass`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from partialpool.algebra.unitpass import component_integrals
from partialpool.pooling.bounds import to_line
from partialpool.pooling.grid import GridPosterior
from partialpool.pooling.hyperpriors import HyperPriors, link_scale
from partialpool.pooling.mixtures import NormalMixturePosterior
from partialpool.pooling.models import PopulationModel, wanted
from partialpool.pooling.posteriors import UnitPosterior
from partialpool.pooling.shapes import FAMILIES, NORMAL, STUDENT, Components, ComponentShape, to_natural
from partialpool.pooling.units import Units

Array = NDArray[np.float64]

#: Up to so many units the place of nulls may have several peaks.
FEW_UNITS = 100
#: Components x units integrated at a time.
BLOCK = 2_000_000


def link_data(units: Units) -> tuple[Array, Array]:
    """Each unit's own value on the link scale and its standard error there, the data moved off their ends."""
    y, size = units.y, units.size
    if units.family == "normal":
        return y, size
    if units.family == "binomial":
        share = (y + 0.5) / (size + 1)
        return np.log(share / (1 - share)), 1 / np.sqrt((size + 1) * share * (1 - share))
    return np.log((y + 0.5) / size), 1 / np.sqrt(y + 0.5)


def spread_start(units: Units) -> float:
    """A first guess of the sd between units on the link scale."""
    value, se = link_data(units)
    total = float(np.var(value))
    noise = float(np.mean(se**2))
    return math.sqrt(max(total - noise, 0.05 * total, 1e-4 * noise))


class LinkModel(PopulationModel):
    """A population of components on the link scale.

    x is the coefficients (or the mean; nothing where it is known), log sd, and then log nu (student_t) or the logit of
    the share of nulls (point_normal).
    """

    def __init__(
        self, units: Units, priors: HyperPriors, kind: str, threads: int = 1, likelihood_alone: bool = False
    ) -> None:
        super().__init__(units, priors, threads, likelihood_alone)
        self.kind = kind
        self.known = priors.known.get("mean")
        p = 1 if units.X is None else units.X.shape[1]
        self.free = 0 if self.known is not None else p
        self.extra = kind in ("student_t", "point_normal") and "null_share" not in priors.known
        self.sd_at = self.free
        self.d = self.free + 1 + int(self.extra)
        centre = link_scale(units)[0]
        own, se = link_data(units)
        self.start, self.spread = np.zeros(self.d), np.full(self.d, 0.5)
        if self.free:
            self.start[0] = float(np.average(own, weights=1 / (se**2 + np.var(own) + 1e-300))) if p == 1 else centre
            self.spread[0] = math.sqrt(float(np.var(own) + np.mean(se**2)) / units.n)
        if p > 1 and self.free:
            assert units.X is not None
            self.spread[1:p] = self.spread[0] / np.std(units.X[:, 1:], axis=0)
        spread = spread_start(units)
        self.start[self.sd_at] = to_line(spread, *self.sd_bounds)
        if kind == "student_t":
            self.start[-1] = math.log(8.0)
        elif kind == "point_normal":
            self.start[self.sd_at] = to_line(2 * spread, *self.sd_bounds)
        self.code = FAMILIES.index(units.family)

    def _parts(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """Location (K, 1) or (K, J), sd (K,), nu (K,) and share of nulls (K,)."""
        if self.known is not None:
            location = np.full((len(x), 1), self.known)
        else:
            location = x[:, :1] if self.units.X is None else self.locations(x[:, : self.free])
        sd = self.sd_of(x[:, self.sd_at])
        nu, share = np.full(len(x), np.inf), np.zeros(len(x))
        if self.kind == "student_t":
            nu = np.exp(np.clip(x[:, -1], -3, 14))
        elif self.kind == "point_normal":
            share = to_natural("binomial", x[:, -1]) if self.extra else np.full(len(x), self.priors.known["null_share"])
        return location, sd, nu, share

    def components(self, x: Array) -> Components:
        """The components of nodes x (K, d)."""
        location, sd, nu, share = self._parts(x)
        count = len(x)
        node = np.arange(count)
        kind = np.full(count, STUDENT if self.kind == "student_t" else NORMAL)
        nu = np.where(np.isfinite(nu), nu, 1.0)
        place = location[:, 0] if location.shape[1] == 1 else location
        if self.kind != "point_normal":
            return Components(node, np.ones(count), kind, place, sd, nu)
        return Components(
            np.concatenate([node, node]), np.concatenate([share, 1 - share]), np.concatenate([kind, kind]),
            np.concatenate([place, place]), np.concatenate([np.zeros(count), sd]), np.concatenate([nu, nu]),
        )  # fmt: skip

    def log_likelihood(self, x: Array) -> Array:
        """See `PopulationModel`."""
        parts = 2 if self.kind == "point_normal" else 1
        size = max(1, BLOCK // (parts * self.units.n))
        return np.concatenate([self._log_likelihood(x[low : low + size]) for low in range(0, len(x), size)])

    def _log_likelihood(self, x: Array) -> Array:
        return np.asarray(self.unit_logs(x).sum(axis=1))

    def unit_logs(self, x: Array) -> Array:
        """log p(y_j | x), (K, J)."""
        c = self.components(x)
        logs = component_integrals(
            self.code, self.units.y, self.units.size, c.kind, c.location, c.spread, c.nu, threads=self.threads
        )
        if self.kind != "point_normal":
            return logs
        with np.errstate(divide="ignore"):
            logs = logs + np.log(c.weight)[:, None]
        return np.logaddexp(logs[: len(x)], logs[len(x) :])

    def log_prior(self, x: Array) -> Array:
        """See `PopulationModel`."""
        total = self.sd_prior(x[:, self.sd_at])
        if self.free:
            total = total + (
                self.coefficient_priors(x[:, : self.free])
                if self.units.X is not None
                else self.priors["mean"].log_density(x[:, 0])
            )
        if self.kind == "student_t":
            total = total + self.priors["nu"].log_density(np.exp(x[:, -1])) + x[:, -1]
        elif self.extra:
            log_share, log_rest = -np.logaddexp(0, -x[:, -1]), -np.logaddexp(0, x[:, -1])
            total = total + self.priors["null_share"].log_density(np.exp(log_share)) + log_share + log_rest
        return np.asarray(total)

    def parameters(self, x: Array) -> dict[str, Array]:
        """See `PopulationModel`."""
        location, sd, nu, share = self._parts(x)
        if self.units.X is not None and self.free:
            out = {name: x[:, i] for i, name in enumerate(self.units.x_names)}
        else:
            out = {"mean": location[:, 0]}
        out["sd"] = sd
        if self.kind == "student_t":
            out["nu"] = nu
        if self.kind == "point_normal":
            out["null_share"] = share
        return out

    def likelihood_of(self, params: Mapping[str, float]) -> float:
        """See `PopulationModel`."""
        names = ("mean",) if self.units.X is None else self.units.x_names
        extra = {"student_t": ("nu",), "point_normal": ("null_share",)}.get(self.kind, ())
        values = wanted(params, (*names, "sd", *extra))
        p = len(names)
        with np.errstate(divide="ignore"):
            tail = [np.log(values[p])]
            if self.kind == "student_t":
                tail.append(np.log(values[-1]))
            elif extra:
                tail.append(np.log(values[-1]) - np.log1p(-values[-1]))
        full = LinkModel(self.units, HyperPriors(self.priors.table), self.kind, self.threads, likelihood_alone=True)
        return float(full.log_likelihood(np.array([[*values[:p], *tail]]))[0])

    def shape(self, x: Array, weights: Array, row: Array) -> ComponentShape:
        """See `PopulationModel`."""
        c = self.components(x)
        if c.location.ndim == 2:
            own = x[:, : self.free] @ row
            c = replace(c, location=own[c.node])
        return ComponentShape(self.units.family, weights, c)

    @property
    def other_starts(self) -> list[Array]:
        """See `PopulationModel`: any unit's own value may be that of the nulls."""
        if self.kind != "point_normal" or not self.free or self.units.X is not None or self.units.n > FEW_UNITS:
            return []
        values = np.unique(np.quantile(link_data(self.units)[0], np.linspace(0, 1, 5)))
        return [np.array([value, *self.start[1:]]) for value in values]

    @property
    def cost(self) -> int:
        """See `PopulationModel`."""
        # in units of some 10 ns: closed forms, the trapezoid rule, panels
        each = 1 if self.units.family == "normal" else 60
        return self.units.n * {"student_t": 150, "point_normal": 2 * each}.get(self.kind, each)

    def posterior(self, x: Array, weights: Array) -> UnitPosterior:
        """See `PopulationModel`."""
        c = self.components(x)
        variance = self._parts(x)[1] ** 2 if self.kind == "normal" else None
        if self.units.family == "normal" and self.kind != "student_t":
            return NormalMixturePosterior(self.units.y, self.units.size, weights, c, threads=self.threads)
        return GridPosterior(
            self.code, self.units.y, self.units.size, weights, c.node, c.weight, c.kind, c.location, c.spread, c.nu,
            variance, threads=self.threads,
        )  # fmt: skip
