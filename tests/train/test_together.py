"""Two processes train one model, on this machine alone."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lgdist_scvi.train import EntrySplitter
from lgdist_scvi.train import _splitter as splitter_file

SCRIPT = Path(__file__).with_name("together.py")
_SPEC = importlib.util.spec_from_file_location("together", SCRIPT)
together = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(together)
LOOPBACK = {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
SLURM = {
    "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1",
    "SLURM_NODEID": "0",
}  # fmt: skip
BITS = ("weights", "predicted", "interval", "skill")


def environment(**further: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "PL_GLOBAL_SEED")}
    return {**kept, **LOOPBACK, **further}


def endings(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def lgdist(tmp_path_factory) -> list[dict[str, Any]]:
    """What both processes end with; the first one starts the other."""
    folder = tmp_path_factory.mktemp("together")
    call = [sys.executable, str(SCRIPT), "lgdist", str(folder)]
    done = subprocess.run(call, env=environment(), cwd=folder, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["0.json", "1.json"]  # no logs of anybody's
    return endings(folder)


def test_both_processes_end_with_the_same_model(lgdist):
    """Weights, region effects in predictions, calibration in intervals, skill: bit by bit, after two rounds."""
    for training, n_stages in (("stopped", 4), ("drawn", 2)):
        first, second = (ending[training] for ending in lgdist)
        for name in BITS:
            assert first[name] == second[name], (training, name)
        assert first["validation"] == second["validation"] and len(first["validation"]) == n_stages


def test_both_stop_at_the_same_time(lgdist):
    """No improvement counts, so that each stage ends with the third validation."""
    for ending in lgdist:
        epochs = ending["stopped"]["epochs"]
        stages = ("vae", "diffusion", "vae_round2", "diffusion_round2")
        assert {epochs[f"{stage}/validation_loss"] for stage in stages} == {3}


def test_each_trains_on_a_part_of_both_slides(lgdist):
    """An epoch is shared out: no spot is in both parts, and nearly all are in one; the next epoch shares out anew."""
    first, second = (ending["stopped"]["trained"] for ending in lgdist)
    slide = together.two_slides().obs["sample"].cat.codes.to_numpy()
    for stage in first:
        n_batches = len(first[stage]) // 3  # epochs
        assert len(first[stage]) == len(second[stage]) == 3 * n_batches
        parts = []
        for epoch in range(3):
            ours, theirs = (sum(one[stage][epoch * n_batches : (epoch + 1) * n_batches], []) for one in (first, second))
            assert len(ours) == len(set(ours)) == len(theirs) and not set(ours) & set(theirs)
            assert set(slide[ours]) == set(slide[theirs]) == {0, 1}
            parts.append(set(ours))
        assert parts[0] != parts[1]
        trained = set(sum(first[stage] + second[stage], []))
        assert len(trained) > 0.9 * len(slide)
    ours, theirs = (set(ending["stopped"]["validated"]) for ending in lgdist)
    assert len(ours) == len(theirs) and not ours & theirs


def test_drawn_parts_of_a_large_slide(lgdist):
    """Both processes draw the same runs of spots, and share them out."""
    first, second = (ending["drawn"]["trained"] for ending in lgdist)
    for stage in first:
        assert len(first[stage]) == len(second[stage]) == 3 * 3
        for epoch in range(3):
            ours, theirs = (sum(one[stage][3 * epoch : 3 * epoch + 3], []) for one in (first, second))
            assert len(ours) == len(theirs) == 48 and len({*ours, *theirs}) == 96


def test_rates_are_recovered_as_well_as_by_one(lgdist):
    model = together.lgdist(together.two_slides(), mask=False)
    model.train(max_epochs=30, batch_size=64, accelerator="cpu", enable_progress_bar=False)
    errors = [ending["error"] for ending in lgdist]
    assert errors[0] == errors[1]
    np.testing.assert_allclose(errors[0], together.error_of(model), rtol=0.05)


def test_other_data_and_other_held_out_entries_or_spots_are_refused(lgdist):
    for ending in lgdist:
        assert len(ending["refused"]) == 3
        for message, trained, history in ending["refused"]:
            assert message.startswith("the processes were given different data") and "needs a seed" in message
            assert not trained and history is None


def test_stem_in_processes_that_slurm_started(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    call = [sys.executable, str(SCRIPT), "stem", str(tmp_path)]
    pipes = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [
        subprocess.Popen(
            call, env=environment(**SLURM, MASTER_PORT=port, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)), **pipes
        )
        for rank in (0, 1)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said
    first, second = (ending["stem"] for ending in endings(tmp_path))
    for name in BITS:
        assert first[name] == second[name], name


class Places:
    """Stands for data of which batches are places."""

    def __init__(self, n: int) -> None:
        self.adata = self
        self.n_obs, self.shape = n, (n,)

    def create_torch_dataset(self, indices, data_and_attributes=None, load_sparse_tensor=False) -> torch.Tensor:
        return torch.from_numpy(np.asarray(indices))


@pytest.mark.parametrize("n_parts", [2, 3])
@pytest.mark.parametrize("n_spots, n_epoch", [(100, 1000), (1000, 160)])
def test_batches_in_parts(monkeypatch, n_parts, n_spots, n_epoch):
    """From one seed, also where an epoch draws some of the spots; runs of spots are drawn together."""
    monkeypatch.setattr(splitter_file, "_PER_EPOCH", n_epoch)
    monkeypatch.setattr(splitter_file, "_RUN", 20)
    loaders, validation = [], []
    for part in range(n_parts):
        splitter = EntrySplitter(Places(n_spots), np.array([3]), batch_size=16, seed=5, n_processes=n_parts)
        splitter.part, splitter.n_parts = part, n_parts
        loaders.append(splitter.train_dataloader())
        validation.append(torch.cat(list(splitter.val_dataloader())).tolist())
    drawn = min(n_spots - 1, n_epoch)
    epochs = []
    for _ in range(2):
        parts = [torch.cat(list(loader)).tolist() for loader in loaders]
        assert {len(part) for part in parts} == {drawn // n_parts}
        assert len({len(loader) for loader in loaders}) == 1
        together_drawn = sum(parts, [])
        assert len(set(together_drawn)) == len(together_drawn) and 3 not in together_drawn
        if n_epoch < n_spots:
            places = [spot - (spot > 3) for spot in together_drawn]
            assert len({place // 20 for place in places}) <= n_epoch // 20
        epochs.append(parts[0])
    assert epochs[0] != epochs[1]
    assert {len(part) for part in validation} == {min(512, n_spots - 1) // n_parts}
    assert len(set(sum(validation, []))) == sum(map(len, validation))


def test_parts_are_of_the_optimiser_alone():
    """What is set before and after a stage looks at all spots, also between two stages."""
    splitter = EntrySplitter(Places(100), np.array([3]), batch_size=16, n_processes=2)
    for _ in range(2):
        splitter.setup("fit")
        assert len(torch.cat(list(splitter.train_dataloader()))) == 99
        splitter.trainer = SimpleNamespace(global_rank=1, world_size=2)
        splitter.setup("fit")
        assert len(torch.cat(list(splitter.train_dataloader()))) == 49
        splitter.teardown("fit")


def test_too_few_spots_for_all_processes():
    with pytest.raises(ValueError, match="2 spots are left to train on, too few"):
        EntrySplitter(Places(2), np.array([], dtype=int), batch_size=16, n_processes=3)
