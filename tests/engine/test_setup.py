import os
import random

import numpy as np
import pytest
import torch

from tzrec_core.engine.setup import seed_everything, seed_step, torch_settings
from tzrec_core.engine.world import join_world
from tzrec_core.errors import ConfigError

CPU = torch.device("cpu")


def state():
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    )


def test_settings_hold_within_the_block_only(config):
    train_config = config(
        "train_config.deterministic=true",
        "train_config.cuda_matmul_allow_tf32=true",
        "train_config.cudnn_allow_tf32=false",
    ).train_config
    before = state()
    with pytest.raises(KeyError), torch_settings(train_config, CPU):
        assert state()[:5] == (True, False, True, False, ":4096:8")
        seed_everything(3)
        assert state() != before
        raise KeyError
    assert state() == before


def test_the_workspace_that_the_user_chose_stays(config, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with torch_settings(config("train_config.deterministic=true").train_config, CPU):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_each_rank_and_step_draws_its_own_and_again_the_same():
    def drawn(step, rank):
        seed_step(11, step, CPU, rank)
        return torch.rand(4).tolist()

    draws = [drawn(step, rank) for step in range(20) for rank in range(8)]
    assert draws == [drawn(step, rank) for step in range(20) for rank in range(8)]
    assert len({tuple(draw) for draw in draws}) == 160


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"process 2 of this machine has no GPU to itself: there are 1\. Start"):
        join_world()
