"""One file, no pickle, everything there after loading; damage is told in one sentence."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pandas as pd
import pytest

from partialpool.errors import ModelError, StorageError
from partialpool.model import Model
from partialpool.posterior.fitting import fit_model
from partialpool.posterior.storage import FORMAT, MANIFEST, load

FITS = ("slopes", "nested", "crossed", "schools")


def same_without_rows(first, second):
    """What a fit has even without its rows."""
    pd.testing.assert_frame_equal(first.summary(), second.summary())
    pd.testing.assert_frame_equal(first.variance_components(), second.variance_components())
    assert first.seed == second.seed
    assert repr(first.accuracy) == repr(second.accuracy)
    np.testing.assert_equal(first.log_marginal_likelihood, second.log_marginal_likelihood)
    name = first.parameters[0]
    assert first.probability(f"{name} > 9") == second.probability(f"{name} > 9")
    for factor in first.model.design.factors:
        for kind in ("effect", "coefficient"):
            pd.testing.assert_frame_equal(first.groups(factor.name, kind), second.groups(factor.name, kind))
        assert np.array_equal(first.group_draws(factor.name), second.group_draws(factor.name))
    new = first.model.design.data.iloc[[0, 5]]
    for kind in ("mean", "response"):
        pd.testing.assert_frame_equal(
            first.predict(new, kind=kind).to_frame(), second.predict(new, kind=kind).to_frame()
        )


@pytest.mark.parametrize("name", FITS)
def test_everything_works_after_loading(name, request, tmp_path):
    fit = request.getfixturevalue(name)
    fit.save(tmp_path / "fit.pp")
    again = load(tmp_path / "fit.pp")
    same_without_rows(fit, again)
    assert repr(fit) == repr(again)
    assert fit._repr_html_() == again._repr_html_()
    pd.testing.assert_frame_equal(fit.residuals(), again.residuals())
    pd.testing.assert_frame_equal(fit.predict(kind="response").to_frame(), again.predict(kind="response").to_frame())
    tree, other = fit.to_arviz(), again.to_arviz()
    assert list(tree.children) == list(other.children)
    for group in tree.children:
        assert tree[group].to_dataset().equals(other[group].to_dataset()), group
    if not fit.model.design.terms.response.se:
        assert fit.model.maximum_likelihood().log_likelihood == again.model.maximum_likelihood().log_likelihood


@pytest.mark.parametrize("name", FITS)
def test_without_rows(name, request, tmp_path):
    fit = request.getfixturevalue(name)
    fit.save(tmp_path / "fit.pp", data=False)
    again = load(str(tmp_path / "fit.pp"))
    same_without_rows(fit, again)
    for method in (again.predict, again.residuals):
        with pytest.raises(ModelError, match="saved without them"):
            method()
    assert "saved without its rows" in repr(again)
    assert "left out" in again.to_arviz().attrs["note"]
    with pytest.raises(ModelError, match="data=False"):
        again.save(tmp_path / "more.pp")
    again.save(tmp_path / "more.pp", data=False)
    same_without_rows(fit, load(tmp_path / "more.pp"))


def test_no_rows_are_in_a_file_without_rows(slopes, tmp_path):
    slopes.save(tmp_path / "fit.pp", data=False)
    with zipfile.ZipFile(tmp_path / "fit.pp") as archive:
        for name in archive.namelist():
            if name.startswith("design/"):
                values = np.lib.format.read_array(archive.open(name), allow_pickle=False)
                assert values.shape[0] < 100, name


def test_sigma_beside_known_errors_needs_its_rows(tmp_path):
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(12), 3)
    data = {"y": rng.normal(size=36) + rng.normal(size=12)[group], "e": rng.uniform(0.3, 0.6, 36), "g": group}
    fit = fit_model(Model.from_formula("y | se(e, sigma=True) ~ 1 + (1 | g)", data), draws=100, ess=20, seed=1)
    assert fit.groups("g")["no_pooling"].notna().all()
    fit.save(tmp_path / "whole.pp")
    pd.testing.assert_frame_equal(load(tmp_path / "whole.pp").groups("g"), fit.groups("g"))
    fit.save(tmp_path / "fit.pp", data=False)
    again = load(tmp_path / "fit.pp")
    assert "saved without its rows" in repr(again)
    pd.testing.assert_frame_equal(again.summary(), fit.summary())
    with pytest.raises(ModelError, match="saved without them"):
        again.groups("g")


def test_fewer_rows_than_given_and_other_columns(sleepstudy, tmp_path):
    data = sleepstudy.assign(half=np.where(sleepstudy.index % 2, "odd", "even"), weight=1.0 + sleepstudy.index % 3)
    data.loc[7, "Days"] = np.nan
    model = Model.from_formula("log(Reaction) | precision(weight) ~ Days + I(Days^2) + half + (1 | Subject)", data)
    fit = fit_model(model, draws=200, ess=50, seed=1)
    fit.save(tmp_path / "fit.pp")
    again = load(tmp_path / "fit.pp")
    assert repr(again) == repr(fit)
    pd.testing.assert_frame_equal(again.residuals(), fit.residuals())
    pd.testing.assert_frame_equal(again.predict(data.iloc[:3]).to_frame(), fit.predict(data.iloc[:3]).to_frame())


def test_the_file_is_the_same_every_time_and_replaces_the_old_one(slopes, tmp_path):
    path = tmp_path / "fit.pp"
    path.write_text("old")
    slopes.save(path)
    first = path.read_bytes()
    slopes.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["fit.pp"]
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert len(first) == path.stat().st_size
    assert MANIFEST in names


def spoil(path, what):
    raw = path.read_bytes()
    if what == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif what == "flipped":
        path.write_bytes(raw[:2000] + bytes(255 - byte for byte in raw[2000:2010]) + raw[2010:])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "foreign":
        path.write_text("Reaction,Days\n1,2\n")
    elif what == "another zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello.txt", "hello")
    elif what == "later":
        rewrite(path, lambda manifest: manifest | {"format": FORMAT + 1})
    elif what == "foreign manifest":
        rewrite(path, lambda manifest: ["something else"])
    elif what == "an array is missing":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist() if name != "result/theta.npy"}
        write(path, members)
    elif what == "a pickle":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        import io

        stream = io.BytesIO()
        np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        write(path, members | {"result/theta.npy": stream.getvalue()})


def rewrite(path, change):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[MANIFEST] = json.dumps(change(json.loads(members[MANIFEST]))).encode()
    write(path, members)


def write(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "damaged or incomplete"),
        ("flipped", "damaged or incomplete"),
        ("empty", "not a fit"),
        ("foreign", "not a fit"),
        ("another zip", "not a fit"),
        ("later", "later version of partialpool.*upgrade"),
        ("foreign manifest", "not a fit"),
        ("an array is missing", "damaged or incomplete"),
        ("a pickle", "damaged or incomplete"),
    ],
)
def test_a_bad_file_is_refused(slopes, tmp_path, what, message):
    path = tmp_path / "fit.pp"
    slopes.save(path)
    spoil(path, what)
    with pytest.raises(StorageError, match=message) as caught:
        load(path)
    assert "fit.pp" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_are_wrong(slopes, tmp_path):
    with pytest.raises(StorageError, match="no file"):
        load(tmp_path / "nowhere.pp")
    with pytest.raises(StorageError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(StorageError, match="no folder"):
        slopes.save(tmp_path / "nowhere" / "fit.pp")
    with pytest.raises(StorageError, match="is a folder"):
        slopes.save(tmp_path)


def test_a_failed_write_leaves_the_old_file(slopes, tmp_path, monkeypatch):
    path = tmp_path / "fit.pp"
    slopes.save(path)
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(StorageError, match="No space left"):
        slopes.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["fit.pp"]
