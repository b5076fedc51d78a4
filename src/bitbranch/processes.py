"""What the processes of one training tell one another; in a single process every function hands back what it gets.

The processes are those that ``torchrun`` starts, or any others that have called ``init_process_group``. Each sees its
part of every batch, and all keep the same network: what a quantizer or a BatchNorm takes from data is taken from the
parts of all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(days=2)
"""How long the others wait where one process works alone."""


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if count() > 1 else 0


def total(x: Tensor) -> Tensor:
    """The sum over the processes of a tensor of the same shape in each."""
    if count() == 1:
        return x
    out = x.detach().clone().contiguous()
    dist.all_reduce(out)
    return out


def mean(x: Tensor) -> Tensor:
    """The mean over the processes of a tensor of the same shape in each."""
    return total(x) / count() if count() > 1 else x


def largest(x: Tensor) -> Tensor:
    """The elementwise maximum over the processes of a tensor of the same shape in each."""
    if count() == 1:
        return x
    out = x.detach().clone().contiguous()
    dist.all_reduce(out, op=dist.ReduceOp.MAX)
    return out


def gather(x: Tensor) -> Tensor:
    """The tensors of all processes, of one shape, one behind the other."""
    if count() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(count())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def barrier() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        dist.barrier()


def share(network: nn.Module) -> None:
    """Give every process the parameters and buffers of process 0, in place.

    Buffers whose length only a solver decides may have another one in process 0, which alone has called it.
    """
    if count() == 1:
        return
    shapes = [{name: tensor.shape for name, tensor in network.state_dict().items()}]
    dist.broadcast_object_list(shapes, 0)
    state = network.state_dict()
    if any(tensor.shape != shapes[0][name] for name, tensor in state.items()):
        network.load_state_dict({name: tensor.new_zeros(shapes[0][name]) for name, tensor in state.items()})
    for tensor in network.state_dict().values():
        whole = tensor.contiguous()
        dist.broadcast(whole, 0)
        tensor.copy_(whole)


@contextmanager
def joined() -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started, if it did, and yield this one's device; leave them at the end.

    With GPUs each process has one of its own, and they talk through NCCL, else through Gloo.
    """
    gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    dist.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
    try:
        yield device
    finally:
        dist.destroy_process_group()
