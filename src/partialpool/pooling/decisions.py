r"""The action of the least expected loss for each unit.

Losses by name have a known best action and are exact but for the integral of the quantile function below it:

.. math::
   E\,[u (\theta - a)_+ + o (a - \theta)_+] = u (E\theta - a) + (o + u) \int_0^{p} (a - Q(s))\, ds,
   \qquad a = Q(p),\; p = u / (o + u)

Any other loss is averaged over quantiles of each unit's posterior (`marginals.unit_points`), not over random draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partialpool.errors import ModelError
from partialpool.pooling.marginals import affordable, atom_places, chunks, probability_grid, unit_points

if TYPE_CHECKING:
    import pandas

    from partialpool.pooling.pooled import Pooled

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
Loss = str | Mapping[str, float] | Callable[[Any, Array], Any]

#: Quantiles of a unit's posterior over which a loss is averaged: at most, at least, and units times quantiles.
MOST_POINTS, FEWEST_POINTS, BUDGET = 400, 32, 2_000_000
#: Points of the integral of the quantile function, and where it has steps, at point masses.
INTEGRAL, INTEGRAL_STEPS = 32, 200


def decide(
    pooled: Pooled, loss: Loss = "squared", actions: Sequence[Any] | None = None, *, points: int | None = None
) -> pandas.DataFrame:
    """The best action for each unit under a loss, and what it is expected to cost.

    Parameters
    ----------
    pooled : Pooled
    loss : "squared", "absolute", {"over": cost, "under": cost}, or a callable
        "squared" is answered by the posterior mean, "absolute" by the median, {"over": o, "under": u}, what each unit
        of too high and of too low an answer costs, by the quantile at u / (o + u). A callable loss(action, theta) gives
        the loss of one action at each theta of an array (any shape) on the natural scale.
    actions : sequence, optional
        Labels or numbers, needed for a callable loss: one of them is chosen for each unit (the first where they tie).
    points : int, optional
        Quantiles of each unit's posterior over which a callable loss is averaged; 400 for few units (64 where they are
        dear: populations with point masses in full Bayes), 32 for a million.
        A jump of the loss costs at most its height times 0.94 / points, a smooth loss much less.

    Returns
    -------
    DataFrame
        unit, action, expected_loss, in the order of the data; for a callable also loss[action], one column an action.

    Raises
    ------
    ModelError
        For an unknown loss, a cost that is not positive, actions that are missing or superfluous, or a loss that
        returns something else than a number for each theta.

    Examples
    --------
    Close a ward whose true rate is above 2 per 1,000: to miss one costs 10, to close one in vain 1.

    >>> import numpy as np
    >>> import partialpool as pp
    >>> pooled = pp.pool([1, 4, 9], exposure=[2.0, 2.0, 2.0], population=pp.Gamma(4, rate=2), seed=1)
    >>> def cost(action, rate):
    ...     return np.where(rate > 2, 0.0, 1.0) if action == "close" else np.where(rate > 2, 10.0, 0.0)
    >>> pooled.decide(cost, actions=["leave", "close"])["action"].tolist()
    ['close', 'close', 'close']
    >>> pooled.decide({"over": 1, "under": 3}).columns.tolist()
    ['unit', 'action', 'expected_loss']
    """
    import pandas

    units = pooled.units.names
    if callable(loss):
        chosen = _actions(actions)
        expected = _expected_losses(pooled, loss, chosen, _points(pooled, points))
        best = np.argmin(expected, axis=0)
        table = pandas.DataFrame(
            {"unit": units, "action": pandas.Series(chosen).to_numpy()[best], "expected_loss": expected.min(axis=0)}
        )
        for action, row in zip(chosen, expected, strict=True):
            table[f"loss[{action}]"] = row
        return table
    if actions is not None:
        raise ModelError("actions= goes with a loss that is a function; a loss by name has every number as its action.")
    if isinstance(loss, str) and loss == "squared":
        mean, sd = pooled.posterior.moments()
        return pandas.DataFrame({"unit": units, "action": np.asarray(mean), "expected_loss": np.asarray(sd) ** 2})
    over, under = _costs(loss)
    action, expected_loss = _linear(pooled, over, under)
    return pandas.DataFrame({"unit": units, "action": action, "expected_loss": expected_loss})


def _costs(loss: Any) -> tuple[float, float]:
    if isinstance(loss, str):
        if loss == "absolute":
            return 1.0, 1.0
    elif isinstance(loss, Mapping) and set(loss) == {"over", "under"}:
        costs = []
        for name in ("over", "under"):
            cost = loss[name]
            if isinstance(cost, bool) or not isinstance(cost, int | float | np.number) or not 0 < float(cost) < np.inf:
                raise ModelError(f"The cost {name!r} must be a positive number; it is {cost!r}.")
            costs.append(float(cost))
        return costs[0], costs[1]
    raise ModelError(
        f'There is no loss {loss!r}. Losses are "squared", "absolute", {{"over": cost, "under": cost}} and any '
        "function loss(action, theta) with actions=."
    )


def _linear(pooled: Pooled, over: float, under: float) -> tuple[Array, Array]:
    """The quantile that is best and its expected loss."""
    share = under / (over + under)
    p, w = probability_grid(affordable(pooled, INTEGRAL_STEPS) if atom_places(pooled).size else INTEGRAL)
    mean = np.asarray(pooled.posterior.moments()[0])
    action, expected = np.empty(mean.size), np.empty(mean.size)
    for rows in chunks(mean.size, 65_536):
        values = np.asarray(pooled.posterior.quantiles(np.append(share * p, share), rows))
        action[rows] = values[-1]
        below = share * (values[-1] - w @ values[:-1])
        expected[rows] = under * (mean[rows] - action[rows]) + (over + under) * below
    return action, np.maximum(expected, 0.0)


def _actions(actions: Any) -> list[Any]:
    if actions is None or isinstance(actions, str) or not hasattr(actions, "__iter__"):
        raise ModelError('A loss that is a function needs actions=, a list to choose from, as ["treat", "wait"].')
    chosen = list(actions)
    if not chosen:
        raise ModelError("actions= is empty: there is nothing to choose from.")
    return chosen


def _points(pooled: Pooled, points: Any) -> int:
    if points is None:
        return affordable(pooled, max(FEWEST_POINTS, min(MOST_POINTS, BUDGET // pooled.units.n)))
    if isinstance(points, bool) or not isinstance(points, int | np.integer) or points < 2:
        raise ModelError(f"points must be a whole number of at least 2; it is {points!r}.")
    return int(points)


def _expected_losses(pooled: Pooled, loss: Callable[[Any, Array], Any], actions: list[Any], points: int) -> Array:
    """Expected loss of each action for each unit, (actions, J)."""
    count = pooled.units.n
    out = np.empty((len(actions), count))
    for rows in chunks(count, 2_000_000 // points):
        theta, weights = unit_points(pooled, points, rows)
        theta.flags.writeable = False
        for number, action in enumerate(actions):
            out[number, rows] = np.einsum("qj,qj->j", weights, _losses(loss, action, theta))
    return out


def _losses(loss: Callable[[Any, Array], Any], action: Any, theta: Array) -> Array:
    given = loss(action, theta)
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise ModelError(f"loss({action!r}, theta) returns {type(given).__name__}; it must return numbers.") from None
    if values.shape not in ((), theta.shape):
        raise ModelError(
            f"loss({action!r}, theta) returns an array {values.shape} for theta {theta.shape}; it must give one number "
            "for each theta, as np.where(theta > 2, 0.0, 1.0) does."
        )
    if np.isnan(values).any():
        raise ModelError(f"loss({action!r}, theta) is not a number (NaN) for some theta, such as those near its ends.")
    return np.broadcast_to(values, theta.shape)
