"""``fit.plot``: the figures of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Plots:
    """The figures of a fit; each method returns a matplotlib Figure, to be shown or saved with ``.savefig(path)``.

    Nothing global is touched: pyplot is not used, and no style is set.

    Parameters
    ----------
    fit : Posterior

    Examples
    --------
    >>> import partialpool as pp
    >>> fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    >>> figure = fit.plot.shrinkage()
    >>> figure.axes[0].get_xlabel()
    'Intercept (Reaction)'
    """

    __slots__ = ("_fit",)

    def __init__(self, fit: Any) -> None:
        self._fit = fit

    def shrinkage(
        self,
        factor: str | None = None,
        term: str | None = None,
        *,
        ax: Axes | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Where each group's own rows put it, and where partial pooling does.

        Parameters
        ----------
        factor : str, optional
            The grouping factor; the first by default.
        term : str, optional
            One of its terms, "Intercept" or a slope. By default the only one, or the first two against each other
            with the ellipses that hold half and 90% of the population.
        ax : matplotlib Axes, optional
            Draw into these axes.
        figsize : (width, height) in inches, optional

        Raises
        ------
        ModelError
            If there is no such factor or term.
        """
        from partialpool.present.shrinkage import shrinkage

        return shrinkage(self._fit, factor, term, ax, figsize)

    def forest(
        self,
        factor: str | None = None,
        *,
        ax: Axes | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Means and 90% intervals: of the groups of a factor, sorted; of the parameters where no factor is given.

        Parameters
        ----------
        factor : str, optional
            The grouping factor whose effects are drawn, at most 60 (the lowest and the highest).
        ax : matplotlib Axes, optional
            Draw into these axes, where one panel is enough.
        figsize : (width, height) in inches, optional
        """
        from partialpool.present.forest import group_forest, parameter_forest

        if factor is None:
            return parameter_forest(self._fit, ax, figsize)
        return group_forest(self._fit, factor, ax, figsize)

    def density(
        self, names: str | Sequence[str] | None = None, *, figsize: tuple[float, float] | None = None
    ) -> Figure:
        """Posterior densities, with the prior in grey: what the data have changed.

        Parameters
        ----------
        names : str or sequence of str, optional
            Parameters by the names of `summary()`; by default all, up to 24.
        figsize : (width, height) in inches, optional

        Raises
        ------
        ModelError
            If there is no such parameter.
        """
        from partialpool.present.density import densities

        return densities(self._fit, [names] if isinstance(names, str) else names, figsize)

    def fitted(self, *, ax: Axes | None = None, figsize: tuple[float, float] | None = None) -> Figure:
        """The data and the fit.

        With one numeric predictor and one grouping factor: a panel a group (at most 24) with its rows, its line with a
        90% band, and the population's line. Otherwise, or where `ax` is given: observed against fitted values.
        """
        from partialpool.present.fitted import fitted

        return fitted(self._fit, ax, figsize)

    def __repr__(self) -> str:
        return "Plots: .shrinkage(factor, term), .forest(factor), .density(names), .fitted()"
