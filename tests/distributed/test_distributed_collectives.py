"""Where a collective takes place, and how the connections to other ranks are closed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ippo_lightning.distributed.collectives import _device_for, end_process_group, gather_rows


def test_a_process_group_is_closed_and_closing_none_does_nothing(tmp_path: Path) -> None:
    end_process_group()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    rows, own = gather_rows(torch.tensor([1.0, 2.0]))
    assert rows.tolist() == [1.0, 2.0]
    assert own == slice(0, 2)
    end_process_group()
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("backend", "device"), [("cuda:nccl", "cuda:0"), ("cpu:gloo,cuda:nccl", "cpu"), ("cpu:gloo,cuda:gloo", "cpu")]
)
def test_a_cpu_tensor_moves_where_the_group_cannot_reduce_it(
    backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda: backend)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert _device_for(torch.zeros(1)) == torch.device(device)
