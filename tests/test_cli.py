from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import partialpool as pp
from partialpool.cli import main

FORMULA = "Reaction ~ Days + (Days | Subject)"
DATA = str(Path(__file__).parent / "data" / "sleepstudy.csv")
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "fit.pp"
    assert main(["fit", FORMULA, DATA, "--seed", "1", "--draws", "1000", "--out", str(path), "--quiet"]) == 0
    return str(path)


def process(command: list[str] | str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own, which finds the package in any folder."""
    paths = [str(Path(pp.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment, **options)


def told(capsys: Output) -> str:
    """What was said on stderr; stdout must be empty."""
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def one_error(capsys: Output) -> str:
    text = told(capsys)
    assert text.startswith("partialpool: error: ") and text.count("\n") == 1 and "Traceback" not in text
    return text


# -- what works ----------------------------------------------------------------------------------------------------


def test_fit_prints_the_summary_and_saves(tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "fit.pp"
    assert main(["fit", FORMULA, DATA, "--seed", "1", "--draws", "500", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "sd(Days|Subject)" in captured.out and "180 rows" in captured.out
    assert f"saved {out}" in captured.err and "error" not in captured.err
    assert len(pp.load(out).draws("Days")) == 500


def test_fit_without_out_says_that_nothing_was_kept(capsys: Output) -> None:
    assert main(["fit", "Reaction ~ Days + (1 | Subject)", DATA, "--seed", "1"]) == 0
    assert "--out" in capsys.readouterr().err


def test_quiet_says_nothing(tmp_path: Path, capsys: Output) -> None:
    assert main(["fit", FORMULA, DATA, "--quiet", "--out", str(tmp_path / "a.pp")]) == 0
    assert tuple(capsys.readouterr()) == ("", "")


def test_a_seed_repeats_the_fit(saved: str, tmp_path: Path) -> None:
    again = tmp_path / "again.pp"
    assert main(["fit", FORMULA, DATA, "--seed", "1", "--draws", "1000", "--out", str(again), "--quiet"]) == 0
    assert (pp.load(saved).draws("sigma") == pp.load(again).draws("sigma")).all()


def test_priors_reach_the_model(capsys: Output) -> None:
    priors = ["--prior", "sd(Subject)=half_normal(sigma=30)", "--prior", "beta = Normal(0, 5)"]
    assert main(["priors", FORMULA, DATA, *priors]) == 0
    text = capsys.readouterr().out
    assert text.count("HalfNormal(30)") == 2 and "Normal(0, 5)" in text and "default" in text


def test_summary_in_three_forms(saved: str, capsys: Output) -> None:
    fit = pp.load(saved)
    assert main(["summary", saved]) == 0
    assert capsys.readouterr().out == f"{fit}\n"
    assert main(["summary", saved, "--format", "csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out), index_col="parameter")
    pd.testing.assert_frame_equal(frame, fit.summary(), check_dtype=False)
    assert main(["summary", saved, "--format", "json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["parameter"] for record in records] == list(fit.summary().index)
    assert records[1]["mean"] == pytest.approx(fit.summary().loc["Days", "mean"])


def test_summary_of_groups(saved: str, capsys: Output) -> None:
    assert main(["summary", saved, "--groups", "Subject"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 37 and lines[0].split()[:3] == ["group", "term", "n"]
    assert main(["summary", saved, "--groups", "Subject", "--effects", "coefficient", "--format", "csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert frame.loc[frame["term"] == "Intercept", "mean"].min() > 150


def test_predict_puts_predictions_beside_the_new_rows(saved: str, tmp_path: Path, capsys: Output) -> None:
    new = tmp_path / "new.csv"
    new.write_text("Subject,Days,note\n308,10,007\n999,10,\n")
    assert main(["predict", saved, str(new), "--new-groups", "population", "--kind", "response"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Subject,Days,note,mean,sd,q05,q50,q95"
    assert lines[1].startswith("308,10,007,") and lines[2].startswith("999,10,,")
    out = tmp_path / "out.csv"
    assert main(["predict", saved, str(new), "--new-groups", "average", "--out", str(out)]) == 0
    assert "2 rows" in told(capsys)
    assert len(pd.read_csv(out)) == 2


def test_columns_of_the_same_name_are_kept_apart(saved: str, tmp_path: Path, capsys: Output) -> None:
    new = tmp_path / "new.csv"
    new.write_text("Subject,Days,mean\n308,1,5\n")
    assert main(["predict", saved, str(new)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("Subject,Days,mean,predicted_mean,predicted_sd")


@pytest.mark.parametrize("kind", ["shrinkage", "forest", "density", "fitted"])
def test_plot_writes_a_file_and_prints_its_name(
    saved: str, kind: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plot", saved, kind]) == 0
    assert capsys.readouterr().out == f"fit-{kind}.png\n"
    assert (tmp_path / f"fit-{kind}.png").read_bytes().startswith(b"\x89PNG")


def test_plot_options(saved: str, tmp_path: Path, capsys: Output) -> None:
    out = str(tmp_path / "a.svg")
    assert main(["plot", saved, "shrinkage", "--term", "Days", "--factor", "Subject", "--out", out]) == 0
    assert main(["plot", saved, "density", "--names", "Days", "sigma", "--out", out, "--force"]) == 0
    capsys.readouterr()
    assert main(["plot", saved, "fitted", "--term", "Days", "--out", out, "--force"]) == 1
    assert "--term" in one_error(capsys)


def test_demo_writes_what_it_says_and_can_be_run_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = process([sys.executable, "-m", "partialpool", "demo", "--out", "demo"], cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == ""
    files = {path.name for path in (tmp_path / "demo").iterdir()}
    assert files == {"sleepstudy.csv", "sleepstudy.pp", "shrinkage.png"}
    assert all(name in done.stdout for name in files) and "sd(Days|Subject)" in done.stdout
    suggested = [line.strip() for line in done.stdout.split("Next:")[1].splitlines() if line.strip()]
    assert len(suggested) == 4
    for line in suggested:  # what the demo tells a newcomer to type must work
        again = process(line, shell=True, cwd=tmp_path)
        assert again.returncode == 0, (line, again.stderr)


@pytest.fixture(scope="module")
def simpler(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "simpler.pp"
    arguments = ["fit", "Reaction ~ Days + (1 | Subject)", DATA, "--seed", "1", "--draws", "1000", "--out", str(path)]
    assert main([*arguments, "--quiet"]) == 0
    return str(path)


def test_diagnose_in_three_forms_and_a_picture(saved: str, tmp_path: Path, capsys: Output) -> None:
    assert main(["diagnose", saved]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Diagnosis of") and "Trust it: every check" in text
    assert main(["diagnose", saved, "--format", "csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out), index_col="check")
    assert (frame["verdict"] == "ok").all() and "Pareto k" in frame.index
    out = tmp_path / "diagnosis.png"
    assert main(["diagnose", saved, "--format", "json", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)[0]["verdict"] == "ok" and f"wrote {out}" in captured.err
    assert out.read_bytes().startswith(b"\x89PNG")


def test_check_and_compare(saved: str, simpler: str, capsys: Output) -> None:
    assert main(["check", saved, "--statistic", "mean", "--statistic", "maximum", "--draws", "100"]) == 0
    text = capsys.readouterr().out
    assert "100 replicates" in text and "maximum" in text and "minimum" not in text
    assert main(["compare", saved, simpler, "--criterion", "waic"]) == 0
    text = capsys.readouterr().out
    assert text.index("fit") < text.index("simpler")
    assert main(["compare", saved, simpler, "--criterion", "waic", "--format", "csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out), index_col="model")
    assert frame.index.tolist() == ["fit", "simpler"] and frame.loc["fit", "elpd"] > frame.loc["simpler", "elpd"]


def test_fits_of_the_same_name_are_called_by_their_paths(saved: str, tmp_path: Path, capsys: Output) -> None:
    twin = tmp_path / "fit.pp"
    twin.write_bytes(Path(saved).read_bytes())
    assert main(["compare", saved, str(twin), "--criterion", "waic", "--format", "csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out), index_col="model")
    assert set(frame.index) == {saved, str(twin)}


def test_mistakes_with_several_fits(saved: str, simpler: str, capsys: Output) -> None:
    for arguments, expected in (
        (["compare", saved], "two saved fits"),
        (["compare", saved, saved], "given twice"),
        (["compare", saved, "nothing.pp"], "nothing.pp"),
        (["compare", saved, simpler, "--criterion", "logo", "--factor", "Subjct"], "Did you mean 'Subject'"),
        (["check", saved, "--statistic", "maxmum"], "Did you mean 'maximum'"),
        (["check", saved, "--draws", "-3"], "draws"),
        (["diagnose", DATA], "sleepstudy.csv"),
        (["diagnose", saved, "--out", saved], "--force"),
    ):
        assert main(arguments) == 1, arguments
        assert expected in one_error(capsys), arguments


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fit", "Reaction ~ Dais + (1 | Subject)", DATA], "Did you mean 'Days'"),
        (["fit", "Reaction ~ Days + (1 | Subject", DATA], "parenthes"),
        (["fit", FORMULA, "sleepstdy.csv"], "no file"),
        (["fit", FORMULA, DATA, "--prior", "sd(Subjct)=HalfNormal(1)"], "sd(Subject)"),
        (["fit", FORMULA, DATA, "--prior", "sd(Subject)"], "="),
        (["fit", FORMULA, DATA, "--prior", "sigma=Normall(0, 1)"], "Normal"),
        (["fit", FORMULA, DATA, "--prior", "sd=HalfNormal(1)", "--prior", "sd=HalfNormal(2)"], "twice"),
        (["fit", FORMULA, DATA, "--draws", "0"], "draws"),
        (["fit", FORMULA, DATA, "--family", "poison"], "family"),
        (["fit", FORMULA, DATA, "--out", "/no/such/folder/fit.pp"], "no folder"),
        (["summary", "nothing.pp"], "nothing.pp"),
        (["summary", DATA], "sleepstudy.csv"),
        (["plot", "nothing.pp", "forest", "--out", "plot.png"], "nothing.pp"),
        # before anything is read or computed
        (["plot", "nothing.pp", "forest", "--out", "plot.xyz"], ".png, .pdf or .svg"),
        (["diagnose", "nothing.pp", "--out", "plot.xyz"], ".png, .pdf or .svg"),
        (["check", "nothing.pp", "--out", "plot.xyz"], ".png, .pdf or .svg"),
        (["compare", "nothing.pp", "none.pp", "--out", "plot.xyz"], ".png, .pdf or .svg"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(
    arguments: list[str], expected: str, capsys: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    assert expected.lower() in one_error(capsys).lower()
    assert not list(tmp_path.iterdir())


def test_mistakes_with_a_saved_fit(saved: str, tmp_path: Path, capsys: Output) -> None:
    new = tmp_path / "new.csv"
    new.write_text("Subject,Days\n999,1\n")
    assert main(["predict", saved, str(new)]) == 1
    assert "999" in one_error(capsys)
    new.write_text("Subject,days\n308,1\n")
    assert main(["predict", saved, str(new)]) == 1
    assert "Days" in one_error(capsys)
    assert main(["summary", saved, "--groups", "Subjects"]) == 1
    assert "Did you mean 'Subject'" in one_error(capsys)
    assert main(["summary", saved, "--effects", "effect"]) == 1
    assert "--groups" in one_error(capsys)
    assert main(["plot", saved, "forest", "--out", str(tmp_path / "plot.xyz")]) == 1
    assert ".png" in one_error(capsys)


def test_a_file_is_not_overwritten_unless_forced(saved: str, tmp_path: Path, capsys: Output) -> None:
    out = tmp_path / "precious"
    out.write_text("years of work")
    for arguments in (["fit", FORMULA, DATA], ["predict", saved, DATA], ["plot", saved, "forest"]):
        assert main([*arguments, "--out", str(out)]) == 1
        assert "--force" in one_error(capsys)
    assert out.read_text() == "years of work"
    assert main(["predict", saved, DATA, "--out", str(out), "--force"]) == 0
    assert out.read_text().startswith("Reaction,Days,Subject,mean")


def test_a_folder_is_no_file(saved: str, tmp_path: Path, capsys: Output) -> None:
    assert main(["plot", saved, "forest", "--out", str(tmp_path), "--force"]) == 1
    assert "folder" in one_error(capsys)
    (tmp_path / "file").write_text("")
    assert main(["demo", "--out", str(tmp_path / "file")]) == 1
    assert "is a file" in one_error(capsys)


@pytest.mark.parametrize(
    "arguments", [[], ["fits"], ["fit", FORMULA], ["fit", FORMULA, DATA, "--draws", "many"], ["plot", "fit.pp", "pie"]]
)
def test_a_mistake_in_the_command_is_exit_code_2(arguments: list[str], capsys: Output) -> None:
    assert main(arguments) == 2
    assert "usage: partialpool" in told(capsys)


def test_help_and_version(capsys: Output) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"partialpool {pp.__version__}\n"
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("fit", "summary", "predict", "plot", "diagnose", "check", "compare", "priors", "demo"):
        assert f"    {command} " in text
        assert main([command, "--help"]) == 0
        assert f"usage: partialpool {command}" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from partialpool.cli import main; main(['--help'])\n"
        "print([name for name in ('numpy', 'pandas', 'matplotlib', 'numba') if name in sys.modules], file=sys.stderr)\n"
    )
    done = process([sys.executable, "-c", code])
    assert done.stderr == "[]\n"


def test_a_fault_says_how_to_see_it(saved: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(pp, "load", broken)
    assert main(["summary", saved]) == 70
    text = told(capsys)
    assert "internal error: ZeroDivisionError: division by zero" in text and "--traceback" in text
    assert 'File "' not in text
    assert main(["summary", saved, "--traceback"]) == 70
    assert "in broken" in told(capsys)
    assert main(["--traceback", "summary", saved]) == 70
    assert "in broken" in told(capsys)


def test_an_error_of_the_system_is_one_line(saved: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "fit.pp")

    monkeypatch.setattr(pp, "load", full)
    assert main(["summary", saved]) == 1
    assert one_error(capsys) == "partialpool: error: No space left on device (fit.pp)\n"


def test_interruption(saved: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pp, "load", stopped)
    assert main(["summary", saved]) == 130
    assert told(capsys) == "partialpool: interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_control_c_in_a_running_process() -> None:
    """The first fit of a process takes long enough to be interrupted in it."""
    code = (
        "import time, partialpool as pp\n"
        "from partialpool.cli import main\n"
        "def slow(*_, **__):\n    print('fitting', flush=True); time.sleep(60)\n"
        "pp.fit = slow\n"
        f"raise SystemExit(main(['fit', {FORMULA!r}, {DATA!r}]))\n"
    )
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stdout.readline() == "fitting\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130 and err == "partialpool: interrupted\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_stops_is_no_error(saved: str) -> None:
    command = f"{sys.executable} -m partialpool summary {saved} --groups Subject --format json | head -n 1"
    done = process(command, shell=True)
    assert done.stdout == "[\n" and done.stderr == ""


def test_a_closed_pipe_has_its_own_exit_code(saved: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(pp, "load", closed)
    with open(tmp_path / "stand-in", "w") as stand_in:
        monkeypatch.setattr(sys, "stdout", stand_in)
        assert main(["summary", saved]) == 141


def test_warnings_are_messages(saved: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    def warned(*_: object, **__: object) -> None:
        warnings.warn("the fit is old", stacklevel=2)
        raise pp.StorageError("and broken.")

    monkeypatch.setattr(pp, "load", warned)
    assert main(["summary", saved]) == 1
    assert told(capsys) == "partialpool: warning: the fit is old\npartialpool: error: and broken.\n"
