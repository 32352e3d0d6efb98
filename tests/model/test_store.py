"""Completing into a zarr store: the same values, block by block; whole or not there at all."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from lgdist_scvi import LGDiST
from lgdist_scvi.model.base._store import LayerStore

zarr = pytest.importorskip("zarr")

SUFFIXES = ("", "_std", "_lower", "_upper", "_provenance")
ASKED = {"n_samples": 3, "seed": 3, "silent": True}
pytestmark = pytest.mark.filterwarnings("ignore")


def layers_of(store: ad.AnnData, name: str = "completed") -> dict[str, np.ndarray]:
    return {suffix: np.asarray(store.layers[name + suffix]) for suffix in SUFFIXES}


def assert_same(first: dict, second: dict) -> None:
    assert set(first) == set(second)
    for suffix, layer in first.items():
        np.testing.assert_array_equal(layer, second[suffix])
        assert layer.dtype == second[suffix].dtype


@pytest.fixture(scope="module")
def done(trained) -> ad.AnnData:
    adata = trained.adata.copy()
    trained.complete(adata, **ASKED)
    return adata


@pytest.fixture(scope="module")
def stored(trained, tmp_path_factory) -> Path:
    """In four blocks."""
    path = tmp_path_factory.mktemp("store") / "out.zarr"
    trained.complete(store=path, block_size=60, **ASKED)
    return path


def test_one_block_is_bit_by_bit_what_memory_holds(trained, done, tmp_path, snapshot):
    before = snapshot(trained.adata)
    trained.complete(store=tmp_path / "out.zarr", **ASKED)
    store = ad.read_zarr(tmp_path / "out.zarr")
    assert_same(layers_of(store), layers_of(done))
    assert store.X is None
    assert list(store.obs_names) == list(done.obs_names) and list(store.var_names) == list(done.var_names)
    assert list(store.obs) == list(done.obs) and list(store.var) == list(done.var)
    np.testing.assert_array_equal(store.var["completed_skill"], done.var["completed_skill"])
    np.testing.assert_array_equal(store.obsm["spatial"], done.obsm["spatial"])
    for key, value in done.uns["completed"].items():
        assert np.array_equal(np.asarray(store.uns["completed"][key]), np.asarray(value)), key
    # nothing of it in the data, and nothing left beside the store
    assert snapshot(trained.adata) == before and "completed" not in trained.adata.uns
    assert os.listdir(tmp_path) == ["out.zarr"]


def test_blocks_give_what_memory_holds(done, stored):
    store = ad.read_zarr(stored)
    for suffix, layer in layers_of(store).items():
        expected = done.layers[f"completed{suffix}"]
        differs = ~np.isclose(layer, expected, rtol=1e-4, atol=1e-5)
        # rounding may move an end of an interval by a count
        assert differs.mean() <= (1e-3 if suffix in ("_lower", "_upper") else 0), suffix
    lazy = ad.experimental.read_lazy(stored).layers["completed"]
    assert lazy.chunksize == (60, done.n_vars)


def test_some_genes_without_intervals_in_half_the_size(trained, done, tmp_path):
    path, genes = tmp_path / "out.zarr", list(done.var_names[[7, 3, 20]])
    trained.complete(store=path, genes=genes, level=None, dtype="float16", layer_added="filled", **ASKED)
    store = ad.read_zarr(path)
    assert list(store.var_names) == list(done.var_names[[3, 7, 20]])  # in the order of the data
    assert set(store.layers) == {"filled", "filled_std", "filled_provenance"}
    assert store.layers["filled"].dtype == np.float16
    np.testing.assert_allclose(store.layers["filled"], done[:, store.var_names].layers["completed"], rtol=2e-3)
    assert done.uns["completed"]["n_obs"] == store.uns["filled"]["n_obs"] and "level" not in store.uns["filled"]


def test_the_posterior_mean_alone(trained, done, tmp_path):
    trained.complete(store=tmp_path / "out.zarr", level=None, n_samples=0, silent=True)
    store = ad.read_zarr(tmp_path / "out.zarr")
    assert set(store.layers) == {"completed", "completed_provenance"}
    np.testing.assert_array_equal(store.layers["completed"], done.layers["completed"])
    adata = trained.adata.copy()
    trained.complete(adata, level=None, n_samples=0, silent=True)
    assert "completed_std" not in adata.layers
    with pytest.raises(ValueError, match="n_samples"):
        trained.complete(adata, n_samples=0, silent=True)


def test_layers_are_added_to_the_store_of_the_data(trained, done, tmp_path):
    path = tmp_path / "data.zarr"
    trained.adata.write_zarr(path)
    before = ad.read_zarr(path)
    for name, seed in (("completed", 3), ("again", 4)):
        trained.complete(store=path, layer_added=name, **{**ASKED, "seed": seed})
    store = ad.read_zarr(path)
    assert_same(layers_of(store), layers_of(done))
    assert not np.array_equal(store.layers["again_std"], store.layers["completed_std"])
    np.testing.assert_array_equal(store.X.toarray(), before.X.toarray())
    assert {"completed", "again"} <= set(store.uns) and "again_skill" in store.var
    assert os.listdir(tmp_path) == ["data.zarr"]
    with pytest.raises(ValueError, match="exists, with other spots or genes than those to complete"):
        trained.complete(store=path, layer_added="other", genes=list(done.var_names[:3]), **ASKED)


def test_the_same_again_changes_nothing_and_anything_else_is_refused(trained, stored):
    written = {file: file.stat().st_mtime_ns for file in stored.rglob("*") if file.is_file()}
    trained.complete(store=stored, block_size=60, **ASKED)
    assert {file: file.stat().st_mtime_ns for file in stored.rglob("*") if file.is_file()} == written
    for other in ({"seed": 4}, {"block_size": 50}, {"fill": "masked"}):
        given = {"block_size": 60, **ASKED, **other}
        with pytest.raises(
            ValueError, match=rf"holds layers\['completed'\] already, with other {next(iter(other))} \("
        ):
            trained.complete(store=stored, **given)
    (stored.parent / "file").mkdir()
    with pytest.raises(ValueError, match="is no AnnData in zarr; name another store"):
        trained.complete(store=stored.parent / "file", **ASKED)
    (stored.parent / "file").rmdir()
    with pytest.raises(ValueError, match="client and block_size are of a store: name one"):
        trained.complete(trained.adata.copy(), block_size=3, **ASKED)


SCRIPT = """
import os, sys, warnings
warnings.simplefilter("ignore")
import anndata, torch
torch.set_num_threads(1)
from lgdist_scvi import LGDiST
from lgdist_scvi.model.base._store import LayerStore
folder = sys.argv[1]
model = LGDiST.load(folder, adata=anndata.read_h5ad(folder + "/data.h5ad"), accelerator="cpu")
for store in sys.stdin:
    process = os.fork()
    if not process:
        model.complete(store=store.strip(), block_size=10, n_samples=3, seed=3, silent=True)
        os._exit(0)
    print("started", process, flush=True)
    print("ended by", os.WTERMSIG(os.waitpid(process, 0)[1]), flush=True)
"""


class Completions:
    """A process that completes again and again, in processes of their own."""

    def __init__(self, saved: Path):
        command = [sys.executable, "-c", SCRIPT, str(saved)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)

    def told(self, what: str) -> int:
        for line in self.process.stdout:
            if line.startswith(what):
                return int(line.split()[-1])
        raise AssertionError("the process ended")

    def begin(self, store: Path, n_lines: int) -> int:
        """Begin a completion, and wait until its journal has some lines, or it has ended."""
        self.process.stdin.write(f"{store}\n")
        started = self.told("started")
        while n_written(store) < n_lines and Path(f"/proc/{started}").exists():
            time.sleep(0.001)
        return started

    def kill(self, started: int) -> int:
        """Kill it: the signal that ended it, 0 if it had come to its end."""
        with suppress(ProcessLookupError):
            os.kill(started, signal.SIGKILL)
        return self.told("ended by")

    def __enter__(self) -> Completions:
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def n_written(store: Path) -> int:
    journal = store.with_name(f"{store.name}.unfinished") / "journal.jsonl"
    try:
        return journal.read_bytes().count(b"\n")
    except OSError:
        return 0


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    trained.save(folder, overwrite=True)
    trained.adata.write_h5ad(folder / "data.h5ad")
    return folder


@pytest.fixture(scope="module")
def completions(saved) -> Iterator[Completions]:
    with Completions(saved) as process:
        yield process


@pytest.mark.parametrize("added", [False, True])
def test_killed_at_ten_random_moments_it_goes_on_and_gives_the_same_bits(added, completions, saved, tmp_path):
    whole, path = tmp_path / "whole.zarr", tmp_path / "out.zarr"
    rng, n_killed = np.random.default_rng(int(added)), 0
    began = time.monotonic()
    completions.begin(whole, 100)
    completions.told("ended by")
    of_block = (time.monotonic() - began) / 23
    expected = layers_of(ad.read_zarr(whole))
    if added:
        ad.read_h5ad(saved / "data.h5ad").write_zarr(path)
    # of 0 lines before the journal begins, of 23 when layers are moved to where they are read
    for n_lines in [*np.sort(rng.choice(20, 9, replace=False)), 23]:
        started = completions.begin(path, int(n_lines))
        time.sleep(rng.random() * of_block / 2)
        n_killed += completions.kill(started) == signal.SIGKILL
        readable = ad.read_zarr(path).layers if path.exists() else {}
        assert added or len(readable) in (0, len(SUFFIXES))
        for suffix in [each for each in SUFFIXES if f"completed{each}" in readable]:  # whole, or not there at all
            np.testing.assert_array_equal(readable[f"completed{suffix}"], expected[suffix])
    completions.begin(path, 100)
    assert completions.told("ended by") == 0
    assert n_killed >= 5  # the last ones may come too late
    assert_same(layers_of(ad.read_zarr(path)), expected)
    assert sorted(os.listdir(tmp_path)) == ["out.zarr", "whole.zarr"]


def test_two_calls_at_once_and_a_call_that_asks_for_something_else(completions, saved, tmp_path):
    """The second one says so; a killed one is in nobody's way, and what it began is gone on with."""
    loaded = LGDiST.load(saved, adata=ad.read_h5ad(saved / "data.h5ad"), accelerator="cpu")
    path, work = tmp_path / "out.zarr", tmp_path / "out.zarr.unfinished"
    started = completions.begin(path, 3)
    os.kill(started, signal.SIGSTOP)
    before = (work / "journal.jsonl").read_bytes()
    for asked in (ASKED, {**ASKED, "seed": 5}, {**ASKED, "layer_added": "other"}):
        with pytest.raises(RuntimeError, match=f"another call completes into .* now .process {started} on .*; wait"):
            loaded.complete(store=path, block_size=10, **asked)
    assert (work / "journal.jsonl").read_bytes() == before
    assert completions.kill(started) == signal.SIGKILL
    with (work / "journal.jsonl").open("ab") as file:  # a line that was being written
        file.write(b'{"block": 2')
    # other arguments, other data
    with pytest.raises(
        ValueError, match="was begun with other n_samples .3, now 4., seed .3, now 5.*ask the same again"
    ):
        loaded.complete(store=path, block_size=10, n_samples=4, seed=5, silent=True)
    other = loaded.adata.copy()
    other.X = other.X * 2
    with pytest.raises(ValueError, match="was begun with other data;"):
        loaded.complete(other, store=path, block_size=10, **ASKED)
    loaded.complete(store=path, block_size=10, **ASKED)
    loaded.complete(store=tmp_path / "whole.zarr", block_size=10, **ASKED)
    assert_same(layers_of(ad.read_zarr(path)), layers_of(ad.read_zarr(tmp_path / "whole.zarr")))
    assert sorted(os.listdir(tmp_path)) == ["out.zarr", "whole.zarr"]


def test_a_file_system_without_locks_says_so(trained, tmp_path, monkeypatch):
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="cannot be locked .*No locks available.*: begin no other completion"):
        trained.complete(store=tmp_path / "out.zarr", **ASKED)
    assert os.listdir(tmp_path) == ["out.zarr"]


def test_other_weights_and_another_format_are_refused(saved, tmp_path):
    loaded = LGDiST.load(saved, adata=ad.read_h5ad(saved / "data.h5ad"), accelerator="cpu")
    path, work = tmp_path / "out.zarr", tmp_path / "out.zarr.unfinished"
    with limited_files(1, at_once=True), pytest.raises(OSError, match="0 of 22 blocks are finished"):
        loaded.complete(store=path, block_size=10, **ASKED)
    loaded.complete(store=path, block_size=10, **ASKED)
    path.rename(tmp_path / "finished.zarr")
    with limited_files(4000), pytest.raises(OSError, match="File too large.*make room or give access"):
        loaded.complete(store=path, block_size=200, **ASKED)
    header = json.loads((work / "journal.jsonl").read_bytes().split(b"\n")[0])
    (work / "journal.jsonl").write_text(json.dumps({**header, "store": 0, "weights": "others"}) + "\n")
    with pytest.raises(ValueError, match=r"with other store \(0, now 1\), weights; ask the same"):
        loaded.complete(store=path, block_size=200, **ASKED)


class limited_files:
    """Files may not grow beyond some bytes, as on a disk that is full, from when a store is begun."""

    def __init__(self, size: int, at_once: bool = False):
        self.size, self.at_once = size, at_once

    def __enter__(self):
        self.before, self.begin = resource.getrlimit(resource.RLIMIT_FSIZE), LayerStore.begin
        if self.at_once:
            self.limit()
        else:
            LayerStore.begin = lambda *args: (self.begin(*args), self.limit())

    def limit(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        LayerStore.begin = self.begin
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_full_disk_leaves_what_is_finished(trained, stored, tmp_path):
    path, journal = tmp_path / "out.zarr", tmp_path / "out.zarr.unfinished" / "journal.jsonl"
    # blocks of random noise cannot be packed: a chunk takes about 8 kB, and the journal less
    with limited_files(5000), pytest.raises(OSError, match="blocks are finished and kept: make room") as error:
        trained.complete(store=path, block_size=60, **ASKED)
    assert error.value.errno == errno.EFBIG
    assert "\n" not in str(error.value) and not path.exists()
    layers = zarr.open_group(journal.with_name("store.zarr"), mode="r")
    assert list(layers) == ["layers"] and not dict(layers.attrs)  # half a layer is not read as an AnnData
    lines = journal.read_bytes().split(b"\n")
    assert lines[-1] == b"" and all(json.loads(line) for line in lines[:-1])
    trained.complete(store=path, block_size=60, **ASKED)
    assert_same(layers_of(ad.read_zarr(path)), layers_of(ad.read_zarr(stored)))


def test_no_skilled_gene(trained, tmp_path, monkeypatch):
    table = trained.skill_table()
    monkeypatch.setattr(trained, "skill_table", lambda *args, **kwargs: table.assign(skill=-1.0))
    with pytest.raises(ValueError, match="no gene shows clear skill.*name the genes"):
        trained.complete(store=tmp_path / "out.zarr", genes="skilled", **ASKED)
    assert not os.listdir(tmp_path)


def test_what_others_wrote_is_not_deleted(trained, tmp_path):
    work = tmp_path / "out.zarr.unfinished"
    work.mkdir()
    (work / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds what no completion wrote \(notes.txt\); move it away"):
        trained.complete(store=tmp_path / "out.zarr", **ASKED)
    assert (work / "notes.txt").read_text() == "mine"


def test_killed_before_it_was_tidied_up(trained, stored, tmp_path):
    """All layers are where they are read, and the journal is still there, or already gone."""
    before = layers_of(ad.read_zarr(stored))
    path, work = tmp_path / "out.zarr", tmp_path / "out.zarr.unfinished"
    shutil.copytree(stored, path)
    lines = [_attribute(path), *({"block": number, "filled": 1} for number in range(4))]
    for journal in (True, False):
        work.mkdir()
        if journal:
            (work / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        trained.complete(store=path, block_size=60, **ASKED)
        assert_same(layers_of(ad.read_zarr(path)), before)
        assert "completed" in ad.read_zarr(path).uns and not work.exists()


def _attribute(path: Path) -> dict:
    import zarr

    return dict(zarr.open_group(path, mode="r")["layers/completed"].attrs)["completion"]


def test_without_zarr_a_sentence_says_how_to_get_it(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r'needs zarr: pip install "lgdist-scvi\[scale\]"'):
        trained.complete(store=tmp_path / "out.zarr", **ASKED)


def test_a_folder_that_cannot_be_written(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written .*make room or give access"):
        trained.complete(store=tmp_path / "file" / "out.zarr", **ASKED)


def test_nothing_of_a_users_store_is_written_over(trained, done, tmp_path):
    for part, key in (("uns", "completed"), ("var", "completed_skill")):
        mine = ad.AnnData(obs=trained.adata.obs.copy(), var=trained.adata.var.copy(), shape=trained.adata.shape)
        getattr(mine, part)[key] = {"mine": 1} if part == "uns" else np.arange(mine.n_vars)
        path = tmp_path / f"{part}.zarr"
        mine.write_zarr(path)
        with pytest.raises(ValueError, match=f"holds {part}/{key} already, which would be written over"):
            trained.complete(store=path, **ASKED)
        trained.complete(store=path, layer_added="other", **ASKED)
        store = ad.read_zarr(path)
        assert list(store.var_names) == list(mine.var_names) and "other_skill" in store.var
        assert_same(layers_of(store, "other"), layers_of(done))


def test_another_name_does_not_go_on_from_layers_in_the_making(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(LayerStore, "finish", lambda *_: None)  # as if killed before
    trained.complete(store=tmp_path / "out.zarr", layer_added="first", **ASKED)
    with pytest.raises(ValueError, match=r"was begun with other layer_added \(first, now second\)"):
        trained.complete(store=tmp_path / "out.zarr", layer_added="second", **ASKED)


def test_what_zarr_cannot_hold_is_told_before_anything_is_completed(trained, tmp_path):
    adata = trained.adata.copy()
    adata.uns["odd"] = {1, 2}
    with pytest.raises(ValueError, match="adata.uns holds what zarr cannot"):
        trained.complete(adata, store=tmp_path / "out.zarr", **ASKED)
    del adata.uns["odd"]
    trained.complete(adata, store=tmp_path / "out.zarr", **ASKED)


def test_layers_are_added_to_a_table_of_spatialdata(trained, done, tmp_path):
    import spatialdata
    from spatialdata.models import TableModel

    path, table = tmp_path / "slide.zarr", tmp_path / "slide.zarr" / "tables" / "table"
    adata = trained.adata.copy()
    before = TableModel.parse(adata)
    spatialdata.SpatialData(tables={"table": before}).write(path)
    with pytest.raises(ValueError, match=f"is no AnnData in zarr; name a table of it, {table}$"):
        trained.complete(store=path, **ASKED)
    trained.complete(store=table, **ASKED)
    whole = spatialdata.read_zarr(path)
    assert_same(layers_of(whole["table"]), layers_of(done))
    np.testing.assert_array_equal(whole["table"].X.toarray(), before.X.toarray())
