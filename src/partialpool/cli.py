"""The command line. Results go to stdout, messages to stderr.

Exit codes: 0 done; 1 a mistake in formula, data, priors or files, told in one line; 2 a mistake in the command itself;
70 a fault of partialpool; 130 interrupted; 141 whoever read the output stopped reading.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partialpool.errors import ModelError, PartialPoolError, StorageError

if TYPE_CHECKING:
    import pandas

OK, MISTAKE, FAULT, INTERRUPTED, PIPE_CLOSED = 0, 1, 70, 130, 141
FORMATS = ("text", "csv", "json")
METHODS = ("auto", "marginal", "laplace", "whitened", "nuts")
PLOTS = ("shrinkage", "forest", "density", "fitted")
CRITERIA = ("loo", "logo", "waic", "dic", "kfold", "marginal_likelihood")
NEW_GROUPS = ("error", "average", "population", "sample")
#: Dots an inch of figures.
DPI = 150
DEMO_FORMULA = "Reaction ~ Days + (Days | Subject)"
DEMO_SEED = 1

DESCRIPTION = """\
Bayesian hierarchical models: type an lme4 or brms formula, get the whole posterior.

  partialpool demo
  partialpool fit "Reaction ~ Days + (Days | Subject)" sleepstudy.csv --out fit.pp
  partialpool summary fit.pp --groups Subject
  partialpool predict fit.pp new.csv --out predictions.csv
  partialpool plot fit.pp shrinkage --out shrinkage.png
  partialpool diagnose fit.pp
  partialpool check fit.pp
  partialpool compare fit.pp other.pp"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after ``partialpool``; those of the process by default.

    Examples
    --------
    >>> main(["priors", "Reaction ~ Days", "no-such-file.csv"])
    1
    """
    try:
        options = _parser().parse_args(arguments)
    except SystemExit as stop:  # argparse has printed its help or its complaint
        return int(stop.code or 0)
    try:
        with _warnings_in_one_line():
            command: Callable[[argparse.Namespace], None] = options.command
            command(options)
            sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted; nothing was saved" if getattr(options, "out", None) else "interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end; let it write to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        return _told(error, getattr(options, "traceback", False))
    return OK


def _told(error: Exception, with_traceback: bool) -> int:
    """Tell what went wrong, and the exit code for it."""
    if with_traceback:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, PartialPoolError):
        _say(f"error: {_one_line(error)}")
        return MISTAKE
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        _say(f"error: {error.strerror or error}{where}")
        return MISTAKE
    _say(f"internal error: {type(error).__name__}: {_one_line(error)}")
    if not with_traceback:
        _say("This is a fault of partialpool. Add --traceback to see where it arose, and please report it.")
    return FAULT


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _say(message: str) -> None:
    print(f"partialpool: {message}", file=sys.stderr)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show warnings as messages, without the line of code that gave them."""
    import warnings

    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
        yield


# -- the commands ------------------------------------------------------------------------------------------------------


def _fit(options: argparse.Namespace) -> None:
    import partialpool as pp

    out = _writable(options.out, options.force)
    fit = pp.fit(
        options.formula,
        options.data,
        family=options.family,
        priors=_priors(options.prior),
        method=options.method,
        draws=options.draws,
        ess=options.ess,
        seed=options.seed,
        threads=options.threads,
        progress=False if options.quiet else None,
    )
    if out is not None:
        fit.save(out, data=not options.no_data)
    if not (options.quiet and out is not None):
        print(fit)
    if options.quiet:
        return
    if out is None:
        _say("not saved; add --out fit.pp to keep the fit")
    else:
        _say(f"saved {out}; next: {_program()} plot {_quoted(out)} forest")


def _summary(options: argparse.Namespace) -> None:
    import partialpool as pp

    fit = pp.load(options.fit)
    if options.groups is None:
        if options.effects is not None:
            raise ModelError("--effects chooses what --groups shows; add --groups FACTOR.")
        if options.format == "text":
            print(fit)
        else:
            _write_frame(fit.summary(), options.format)
        return
    frame = fit.groups(options.groups, kind="coefficient" if options.effects == "coefficient" else "effect")
    _write_frame(frame, options.format)


def _predict(options: argparse.Namespace) -> None:
    import partialpool as pp

    out = _writable(options.out, options.force)
    fit = pp.load(options.fit)
    prediction = fit.predict(options.newdata, kind=options.kind, new_groups=options.new_groups)
    frame = _beside(_table(Path(options.newdata)), prediction.to_frame())
    if out is None:
        frame.to_csv(sys.stdout, index=False, lineterminator="\n")
    else:
        frame.to_csv(out, index=False, lineterminator="\n")
        _say(f"wrote {len(frame):,} rows to {out}")


def _table(path: Path) -> pandas.DataFrame:
    """A file that the library has just read, with all of its columns."""
    import pandas

    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1] in (".parquet", ".pq"):
        return pandas.read_parquet(path)
    # As text: what is only passed through must come out as it went in.
    return pandas.read_csv(path, sep="\t" if ".tsv" in suffixes else ",", dtype=str, keep_default_na=False)


def _beside(table: pandas.DataFrame, predictions: pandas.DataFrame) -> pandas.DataFrame:
    """The new rows and what is predicted of them, in one table."""
    import pandas

    if set(table.columns) & set(predictions.columns):
        predictions = predictions.add_prefix("predicted_")
    return pandas.concat([table.reset_index(drop=True), predictions.reset_index(drop=True)], axis=1)


def _plot(options: argparse.Namespace) -> None:
    target = options.out or f"{Path(options.fit).stem}-{options.kind}.png"
    out = _picture(target, options.force)
    asked = {"factor": options.factor, "term": options.term, "names": options.names}
    takes = {"shrinkage": ("factor", "term"), "forest": ("factor",), "density": ("names",), "fitted": ()}[options.kind]
    for name, value in asked.items():
        if value and name not in takes:
            raise ModelError(f"--{name} does not belong to the plot {options.kind!r}; leave it out.")
    import partialpool as pp

    fit = pp.load(options.fit)
    figure = getattr(fit.plot, options.kind)(**{name: asked[name] for name in takes if asked[name]})
    figure.savefig(out, dpi=DPI)
    print(out)


def _diagnose(options: argparse.Namespace) -> None:
    import partialpool as pp

    out = _picture(options.out, options.force)
    _answer(pp.load(options.fit).diagnose(), options.format, out)


def _check(options: argparse.Namespace) -> None:
    import partialpool as pp

    out = _picture(options.out, options.force)
    found = pp.load(options.fit).check(
        options.statistic, options.factor, groups=options.groups, draws=options.draws, seed=options.seed
    )
    _answer(found, options.format, out)


def _compare(options: argparse.Namespace) -> None:
    import partialpool as pp

    out = _picture(options.out, options.force)
    fits = {name: pp.load(path) for name, path in zip(_short_names(options.fits), options.fits, strict=True)}
    found = pp.compare(
        fits, options.criterion, factor=options.factor, folds=options.folds, by=options.by, seed=options.seed,
        threads=options.threads,
    )  # fmt: skip
    _answer(found, options.format, out)


def _short_names(paths: Sequence[str]) -> list[str]:
    """What saved fits are called: their files' names without ending, the whole path where two are the same.

    Examples
    --------
    >>> _short_names(["a.pp", "old/a.pp", "b.pp"]), _short_names(["old/a.pp", "b.pp"])
    (['a.pp', 'old/a.pp', 'b.pp'], ['a', 'b'])
    """
    if len(paths) < 2:
        raise ModelError("compare takes two saved fits at least, as in: partialpool compare a.pp b.pp")
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if list(paths).count(path) > 1)
        raise ModelError(f"{twice} is given twice; compare takes different fits.")
    stems = [Path(path).stem for path in paths]
    return stems if len(set(stems)) == len(stems) else list(paths)


def _answer(report: Any, form: str, out: Path | None) -> None:
    """Print an answer, and draw it where that is asked for."""
    if form == "text":
        print(report)
    else:
        _write_frame(report.table, form)
    if out is not None:
        report.plot().savefig(out, dpi=DPI)
        _say(f"wrote {out}")


def _print_priors(options: argparse.Namespace) -> None:
    import partialpool as pp

    model = pp.Model.from_formula(options.formula, options.data, family=options.family, priors=_priors(options.prior))
    if options.format == "text":
        print(model.priors)
    else:
        _write_frame(model.priors.to_frame(), options.format)


def _demo(options: argparse.Namespace) -> None:
    import partialpool as pp

    folder = Path(options.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise StorageError(f"{str(folder)!r} is a file; give --out a folder.") from None
    data = pp.datasets.load("sleepstudy")
    names = {kind: folder / name for kind, name in _DEMO_FILES.items()}
    data.to_csv(names["data"], index=False, lineterminator="\n")
    print("Eighteen people slept three hours a night; their reaction time was measured for ten days.")
    print(f"How fast does it rise, and how much do people differ?  {DEMO_FORMULA}\n")
    fit = pp.fit(DEMO_FORMULA, data, seed=DEMO_SEED)
    print(f"{fit}\n")
    fit.save(names["fit"])
    fit.plot.shrinkage().savefig(names["plot"], dpi=DPI)
    print("Written:")
    told = (("data", "the data"), ("fit", "the fit"), ("plot", "each person's line, pulled towards the others"))
    width = max(len(str(path)) for path in names.values())
    for kind, what in told:
        print(f"  {str(names[kind]).ljust(width)}  {what}")
    program, stored = _program(), _quoted(names["fit"])
    print("\nNext:")
    print(f"  {program} summary {stored} --groups Subject")
    print(f"  {program} plot {stored} fitted --out {_quoted(folder / 'fitted.png')}")
    print(f'  {program} fit "Reaction ~ Days + (1 | Subject)" {_quoted(names["data"])}')
    print(f"  {program} --help")


_DEMO_FILES = {"data": "sleepstudy.csv", "fit": "sleepstudy.pp", "plot": "shrinkage.png"}


# -- helpers -----------------------------------------------------------------------------------------------------------


def _priors(given: Sequence[str] | None) -> dict[str, str] | None:
    """``NAME=DISTRIBUTION`` texts as a mapping; the library reads the distributions."""
    if not given:
        return None
    priors: dict[str, str] = {}
    for text in given:
        name, distribution = _split_prior(text)
        if name in priors:
            raise ModelError(f"--prior {name} is given twice; keep one.")
        priors[name] = distribution
    return priors


def _split_prior(text: str) -> tuple[str, str]:
    """Cut at the first ``=`` outside of brackets."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if character == "=" and depth == 0:
            return text[:at].strip(), text[at + 1 :].strip()
    raise ModelError(f"--prior {text!r} has no '='; write it as --prior 'sd(Subject)=HalfNormal(30)'.")


def _writable(target: str | None, force: bool) -> Path | None:
    """A path that may be written, checked before the work is done."""
    if target is None:
        return None
    path = Path(target)
    if path.is_dir():
        raise StorageError(f"{target!r} is a folder; give --out a file in it.")
    if not path.parent.is_dir():
        raise StorageError(f"There is no folder {str(path.parent)!r} to write {path.name!r} in; make it first.")
    if path.exists() and not force:
        raise StorageError(f"{target!r} is there already; add --force to overwrite it, or give another --out.")
    return path


def _picture(target: str | None, force: bool) -> Path | None:
    """The same of a figure, whose kind its ending says."""
    path = _writable(target, force)
    if path is None:
        return None
    from matplotlib.backend_bases import FigureCanvasBase

    if path.suffix.lstrip(".").lower() not in FigureCanvasBase.get_supported_filetypes():
        raise StorageError(f"A figure cannot be written as {path.name!r}; end the name in .png, .pdf or .svg.")
    return path


def _write_frame(frame: pandas.DataFrame, form: str) -> None:
    if form == "csv":
        frame.to_csv(sys.stdout, index=_index_says_something(frame), lineterminator="\n")
    elif form == "json":
        records = frame.reset_index() if _index_says_something(frame) else frame
        print(records.to_json(orient="records", indent=1, double_precision=15))
    else:
        from partialpool.present.tables import summary_text

        print(summary_text(frame))


def _index_says_something(frame: pandas.DataFrame) -> bool:
    return frame.index.name is not None or len(frame.index.names) > 1


def _program() -> str:
    """How this program was called, to be typed again."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        interpreter = Path(sys.executable)
        here = Path.cwd()
        near = interpreter.relative_to(here) if interpreter.is_relative_to(here) else interpreter
        return f"{_quoted(near)} -m partialpool"
    return "partialpool"


def _quoted(path: Path) -> str:
    import shlex

    text = str(path)
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)


# -- the words ---------------------------------------------------------------------------------------------------------


class _Version(argparse.Action):
    """``--version``, read only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it and leave."""
        from partialpool import __version__

        print(f"partialpool {__version__}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help="show where errors arose")
    parser = argparse.ArgumentParser(
        prog="partialpool",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[shared], allow_abbrev=False)
        command.set_defaults(command=run)
        return command

    _describe_fit(add("fit", _fit, "fit a model, print its summary, save it"))
    _describe_summary(add("summary", _summary, "print the summary of a saved fit, or of its groups"))
    _describe_predict(add("predict", _predict, "predict new rows from a saved fit"))
    _describe_plot(add("plot", _plot, "draw a saved fit"))
    _describe_diagnose(add("diagnose", _diagnose, "say whether a saved fit can be trusted, and what to mend"))
    _describe_check(add("check", _check, "say whether a saved fit reproduces its data"))
    _describe_compare(add("compare", _compare, "say which of several saved fits predicts best"))
    priors = add("priors", _print_priors, "print the priors a model would have")
    _add_model(priors)
    _add_format(priors)
    demo = add("demo", _demo, "fit the shipped sleepstudy data; write the data, the fit and a plot")
    demo.add_argument("--out", metavar="FOLDER", default="partialpool-demo", help="folder to write to (%(default)s)")
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("formula", metavar="FORMULA", help='as in lme4 and brms: "y ~ x + (x | group)"')
    command.add_argument("data", metavar="DATA", help="path of a .csv, .tsv or .parquet file")
    command.add_argument("--family", default="gaussian", help="distribution of the response (%(default)s)")
    command.add_argument(
        "--prior",
        metavar="NAME=DIST",
        action="append",
        help="a prior, as in --prior 'sd(Subject)=HalfNormal(30)'; may be repeated",
    )


def _add_format(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=FORMATS, default="text", help="of the output (%(default)s)")


def _add_out(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--out", metavar="FILE", help=text)
    command.add_argument("--force", action="store_true", help="overwrite FILE where it exists")


def _describe_fit(command: argparse.ArgumentParser) -> None:
    _add_model(command)
    command.add_argument("--method", choices=METHODS, default="auto", help="of inference (%(default)s)")
    command.add_argument("--draws", type=int, default=4000, help="posterior draws to keep (%(default)s)")
    command.add_argument("--ess", type=float, default=1000, help="effective sample size to reach (%(default)s)")
    command.add_argument("--seed", type=int, help="make the result repeatable")
    command.add_argument("--threads", type=int, help="processor cores to use (all)")
    _add_out(command, "save the fit here, as fit.pp")
    command.add_argument("--no-data", action="store_true", help="leave the rows out of the saved fit")
    command.add_argument("--quiet", action="store_true", help="no messages; with --out, no summary either")


def _describe_summary(command: argparse.ArgumentParser) -> None:
    command.add_argument("fit", metavar="FIT", help="a saved fit")
    command.add_argument("--groups", metavar="FACTOR", help="show the groups of this factor instead")
    command.add_argument(
        "--effects",
        choices=("effect", "coefficient"),
        help="with --groups: deviations from the population (effect), or population plus deviation (coefficient)",
    )
    _add_format(command)


def _describe_predict(command: argparse.ArgumentParser) -> None:
    command.add_argument("fit", metavar="FIT", help="a saved fit")
    command.add_argument("newdata", metavar="NEWDATA", help="path of a .csv, .tsv or .parquet file")
    command.add_argument(
        "--kind", choices=("mean", "response", "linear"), default="mean", help="what to predict (%(default)s)"
    )
    command.add_argument(
        "--new-groups",
        choices=NEW_GROUPS,
        default="error",
        help="for groups the fit has not seen: refuse; the average group; integrate over the population of groups; "
        "or draw each anew (%(default)s)",
    )
    _add_out(command, "write a CSV file instead of printing it")


def _describe_plot(command: argparse.ArgumentParser) -> None:
    command.add_argument("fit", metavar="FIT", help="a saved fit")
    command.add_argument("kind", metavar="KIND", choices=PLOTS, help=", ".join(PLOTS))
    command.add_argument("--factor", help="grouping factor (shrinkage, forest)")
    command.add_argument("--term", help="one term of the factor (shrinkage)")
    command.add_argument("--names", nargs="+", metavar="NAME", help="parameters (density)")
    _add_out(command, ".png, .pdf or .svg (FIT-KIND.png)")


def _describe_diagnose(command: argparse.ArgumentParser) -> None:
    command.add_argument("fit", metavar="FIT", help="a saved fit")
    _add_format(command)
    _add_out(command, "draw prior and posterior of the hyperparameters: .png, .pdf or .svg")


def _describe_check(command: argparse.ArgumentParser) -> None:
    command.add_argument("fit", metavar="FIT", help="a saved fit")
    command.add_argument(
        "--statistic",
        metavar="NAME",
        action="append",
        help="mean, sd, zeros, max, ... (all that suit); may be repeated",
    )
    command.add_argument("--factor", help="grouping factor of statistics about groups (all)")
    command.add_argument(
        "--groups",
        choices=("same", "new"),
        default="same",
        help="replicates for these groups or for new ones (%(default)s)",
    )
    command.add_argument("--draws", type=int, help="replicates (1000)")
    command.add_argument("--seed", type=int, help="of the replicates (the fit's)")
    _add_format(command)
    _add_out(command, "draw the checks: .png, .pdf or .svg")


def _describe_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("fits", metavar="FIT", nargs="+", help="saved fits of the same rows, two at least")
    command.add_argument("--criterion", choices=CRITERIA, default="loo", help="what to compare them by (%(default)s)")
    command.add_argument("--factor", help="grouping factor (logo; kfold by groups)")
    command.add_argument("--folds", type=int, default=10, help="of kfold (%(default)s)")
    command.add_argument("--by", choices=("rows", "stratified", "groups"), help="how kfold cuts (rows)")
    command.add_argument("--seed", type=int, default=0, help="of folds and refits (%(default)s)")
    command.add_argument("--threads", type=int, help="processor cores to use (all)")
    _add_format(command)
    _add_out(command, "draw the differences: .png, .pdf or .svg")
