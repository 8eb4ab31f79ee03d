import pickle

import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader
from torchrec import JaggedTensor, KeyedJaggedTensor, KeyedTensor
from torchrec.streamable import Pipelineable

from tzrec_core.data.batch import Batch


def _batch():
    return Batch(
        dense_features={"__BASE__": KeyedTensor(["price", "emb"], [1, 2], torch.arange(6.0).reshape(2, 3))},
        sparse_features={
            "__BASE__": KeyedJaggedTensor(
                keys=["tags", "seq__tags"],
                values=torch.tensor([1, 2, 3, 4, 5]),
                lengths=torch.tensor([2, 0, 1, 2]),
                weights=torch.tensor([0.5, 2.0, 1.0, 1.0, 1.0]),
            )
        },
        sequence_mulval_lengths={
            "__BASE__": KeyedJaggedTensor(
                keys=["seq__tags"], values=torch.tensor([1, 0, 2]), lengths=torch.tensor([1, 2])
            )
        },
        sequence_dense_features={
            "seq__price": JaggedTensor(torch.arange(3.0).reshape(3, 1), lengths=torch.tensor([1, 2]))
        },
        labels={"click": torch.tensor([0, 1])},
        jagged_labels={"watch": JaggedTensor(torch.tensor([1.0, 2.0, 3.0]), lengths=torch.tensor([3, 0]))},
        reserves=pa.record_batch({"id": pa.array(["a", "b"])}),
        tile_size=3,
        sample_weights={"w": torch.tensor([1.0, 0.5])},
        additional_infos={"hard_neg_indices": torch.tensor([[0, 1]])},
    )


_FLAT = {
    "price.values": [[0.0], [3.0]],
    "emb.values": [[1.0, 2.0], [4.0, 5.0]],
    "tags.values": [1, 2],
    "tags.lengths": [2, 0],
    "tags.weights": [0.5, 2.0],
    "seq__tags.values": [3, 4, 5],
    "seq__tags.key_lengths": [1, 0, 2],
    "seq__tags.seq_lengths": [1, 2],
    "seq__tags.weights": [1.0, 1.0, 1.0],
    "seq__price.values": [[0.0], [1.0], [2.0]],
    "seq__price.lengths": [1, 2],
    "watch.values": [1.0, 2.0, 3.0],
    "watch.lengths": [3, 0],
    "click": [0, 1],
    "w": [1.0, 0.5],
    "hard_neg_indices": [[0, 1]],
}


def _lists(batch):
    return {name: tensor.tolist() for name, tensor in batch.to_dict().items()}


def test_to_dict_gives_each_tensor_its_flat_name():
    assert _lists(_batch()) == _FLAT


def test_an_empty_batch_is_a_batch():
    batch = Batch()
    assert batch.to_dict() == {} and batch.tile_size == -1 and batch.reserves is None
    assert batch.to(torch.device("cpu")).to_dict() == {}


def test_it_is_what_torchrec_pipelines_move():
    assert issubclass(Batch, Pipelineable)


def test_moving_it_keeps_values_and_what_is_no_tensor():
    moved = _batch().to(torch.device("cpu"), non_blocking=True)
    assert _lists(moved) == _FLAT
    assert moved.tile_size == 3 and moved.reserves.column(0).to_pylist() == ["a", "b"]


def test_moving_it_moves_every_tensor():
    moved = _batch().to(torch.device("meta"))
    assert all(tensor.device.type == "meta" for tensor in moved.to_dict().values())


def test_it_survives_pickling():
    copy = pickle.loads(pickle.dumps(_batch()))
    assert _lists(copy) == _FLAT
    assert copy.reserves.equals(_batch().reserves) and copy.tile_size == 3


def test_it_survives_the_way_from_a_worker_process():
    loader = DataLoader([0], batch_size=None, num_workers=1, collate_fn=lambda _: _batch())
    (received,) = list(loader)
    assert _lists(received) == _FLAT
    assert received.reserves.column(0).to_pylist() == ["a", "b"]


def test_pinning_it_reaches_every_tensor(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    copy = _batch().pin_memory()
    assert _lists(copy) == _FLAT and copy.tile_size == 3
    assert sum(t.numel() for t in pinned) >= sum(t.numel() for t in _batch().to_dict().values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a CUDA device")
def test_pinning_it_pins_every_tensor():
    pinned = _batch().pin_memory()
    assert _lists(pinned) == _FLAT
    assert all(tensor.is_pinned() for tensor in pinned.to_dict().values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams need a CUDA device")
def test_a_stream_may_use_it():
    moved = _batch().to(torch.device("cuda"), non_blocking=True)
    moved.record_stream(torch.cuda.Stream())
    assert _lists(moved.to(torch.device("cpu"))) == _FLAT
