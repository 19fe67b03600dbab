"""What the README and the guides tell a newcomer to type works, and prints what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import partialpool as pp

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/guides/*.md"))]
NUMBER = re.compile(r"-?[\d,]*\.?\d+")


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    names: dict[str, object] = {"pp": pp}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_the_readme_shows_what_is_printed() -> None:
    """The same words, and numbers that differ by less than an sd's tenth (other machines round differently)."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"```\n(Posterior of .*?)```", text, flags=re.DOTALL)[0].rstrip().splitlines()
    fit = pp.fit("Reaction ~ Days + (Days | Subject)", pp.datasets.load("sleepstudy"), seed=1)
    printed = repr(fit).splitlines()
    assert [NUMBER.sub("#", line).split() for line in shown] == [NUMBER.sub("#", line).split() for line in printed]
    for name, row in fit.summary().iterrows():
        line = next(line for line in shown if line.startswith(f"{name} "))
        mean, sd, low, _, high = (float(word) for word in line[len(str(name)) :].split()[:5])
        assert [mean, low, high] == pytest.approx(list(row[["mean", "q05", "q95"]]), abs=0.1 * sd)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for path in sorted((ROOT / "examples").glob("*.py")):
        if path.name == "make_figures.py":  # writes into the checkout
            continue
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), {"__name__": "__main__"})
        assert capsys.readouterr().out
