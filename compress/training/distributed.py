"""Training on several processes: who takes part, what each holds, and how checkpoints stay those of one process.

    ddp    every process holds the model, its gradients and its moments         gradients are averaged over all
    fsdp   every process holds 1 / world of them; a block is brought together when it is computed, and let go after it
           (ZeRO stage 3, arXiv 1910.02054; PyTorch FSDP, arXiv 2304.11277, as `fully_shard`)

A step sees the same `batch` rows on any number of processes: each takes batch / world of them, the loss and the
gradient are means over all, so the loss curves are those of one process but for the order in which floats are added.

A checkpoint is written as one process would: whole tensors under their own names, moments by the parameter's number.
The first process writes it and nobody else writes anything; every process reads its own part. So a run may go on with
another number of processes, or the other way of spreading.

    gloo on CPUs, nccl on GPUs (with gloo beside it for what lies on the host)

Not covered: tensor and pipeline parallelism; a stage that fits twice; models that do not fit into one host's memory,
where every process reads the whole source before it keeps its part; several GPUs, which nobody has run this on.
"""

import itertools
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedModel

from compress.models.block_linears import blocks
from compress.stage import StageError
from compress.training.launch import Launch, launch

PATIENCE = timedelta(hours=6)
"""How long a process waits for the others inside of training, such as for the first one to write a checkpoint."""
_groups = itertools.count()
Value = TypeVar("Value")


class FollowedError(Exception):
    """Ends a stage on every process but the first once training is over; the model is the first one's to save."""


@contextmanager
def together(device: Literal["cpu", "cuda"]) -> Iterator[Launch]:
    """All processes of a launch as one group, for as long as this lasts; a process on its own is no group."""
    here = launch()
    if here.world == 1 or distributed.is_initialized():  # Ray Train opens the group itself
        yield here
        return
    if device == "cuda":
        torch.cuda.set_device(here.local_rank)
    store, rank, size = next(iter(rendezvous("env://", timeout=PATIENCE)))
    store = PrefixStore(f"training/{here.attempt}/{next(_groups)}", store)  # it remembers the groups before this one
    _wait_for_all(store, here)
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield here
    finally:
        distributed.destroy_process_group()


def _wait_for_all(store: Store, here: Launch) -> None:
    """Wait in a way that can be interrupted, which opening a group cannot."""
    store.set(f"here/{here.rank}", "")
    until = time.monotonic() + PATIENCE.total_seconds()
    while not store.check([f"here/{rank}" for rank in range(here.world)]):
        if time.monotonic() > until:
            raise StageError(f"{here.world} processes: expected all of them within {PATIENCE}, and some did not come")
        time.sleep(0.05)


def world() -> int:
    """How many processes are in the group that is open; 1 where none is."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return world() == 1 or distributed.get_rank() == 0


def from_first(value: Value) -> Value:
    """The first process's value, on all of them."""
    if world() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def of_all(value: Value) -> list[Value]:
    """Everyone's value, on all processes; by rank."""
    values: list[Any] = [value] * world()
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Returns once every process has called it."""
    of_all(None)


def shard(objective: nn.Module, device: Literal["cpu", "cuda"]) -> None:
    """Keep 1 / world of every parameter of what is trained: each block by itself, and all the rest as one.

    To be called before anything else looks at the parameters, because they are others afterwards.
    """
    mesh = init_device_mesh(device, (world(),))
    for model in _models(objective):
        for _, block in blocks(model):
            _shard_one(block, mesh)
    _shard_one(objective, mesh)


def shard_frozen(model: PreTrainedModel, device: Literal["cpu", "cuda"]) -> None:
    """Keep 1 / world of the blocks of a model that is only run, by all processes alike.

    Embeddings, the last norm and the head stay whole: the loss reads the head outside of the model's forward pass.
    """
    mesh = init_device_mesh(device, (world(),))
    for _, block in blocks(model):
        _shard_one(block, mesh, reshard_after_forward=True)
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)
    _shard_one(model, mesh, ignored_params=set(model.parameters()))
    with torch.no_grad():  # the first pass tells which module is the root of the others
        model(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)


def _models(objective: nn.Module) -> list[PreTrainedModel]:
    """The outermost models inside a module."""
    found: dict[str, PreTrainedModel] = {}
    for name, module in objective.named_modules():
        if isinstance(module, PreTrainedModel) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return list(found.values())


def _shard_one(module: nn.Module, mesh: Any, **options: Any) -> None:
    sharded = fully_shard(module, mesh=mesh, **options)
    if mesh.device_type == "cpu":
        sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no mean


def reshard(module: nn.Module) -> None:
    """Let go of what a pass without a way back has left whole, so that the parameters are those that are trained."""
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was here."""
    return any(isinstance(each, FSDPModule) for each in module.modules())


def whole(tensor: Tensor) -> Tensor:
    """A tensor as one process would have it; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(full: Tensor, other: Tensor) -> Tensor:
    """A tensor that every process has, in parts where `other` is; nothing is sent."""
    if not isinstance(other, DTensor):
        return full
    return cast(Tensor, distribute_tensor(full, other.device_mesh, other.placements, src_data_rank=None))


@torch.no_grad()
def full_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter whole and on the host, each once; empty on all processes but the first."""
    reshard(module)
    first, found = is_first(), {}
    for name, parameter in module.named_parameters():
        tensor = whole(parameter.detach())
        if first:
            found[name] = tensor.cpu().contiguous()
    return found


@torch.no_grad()
def load_parameters(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Take over what `full_parameters` gave; every process has read it."""
    reshard(module)
    parameters = dict(module.named_parameters())
    assert parameters.keys() == saved.keys(), f"expected {', '.join(parameters)}, got {', '.join(saved)}"
    for name, parameter in parameters.items():
        parameter.copy_(shard_like(saved[name].to(parameter.device), parameter))


@torch.no_grad()
def full_moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state as one process would have it; the moments are on the first process only."""
    state, first = optimizer.state_dict(), is_first()
    moments: dict[int, dict[str, Any]] = {}
    for number, of_one in state["state"].items():
        moments[number] = {}
        for name, value in of_one.items():
            full = whole(value) if isinstance(value, Tensor) else value
            if first:
                moments[number][name] = full.cpu() if isinstance(full, Tensor) else full
    return {**state, "state": moments}


@torch.no_grad()
def load_moments(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Take over what `full_moments` gave; every process has read it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    moments = {}
    for number, parameter in zip(numbers, parameters, strict=True):
        moments[number] = {
            name: shard_like(value.to(parameter.device), parameter)
            if isinstance(value, Tensor) and value.shape == parameter.shape
            else value
            for name, value in saved["state"].get(number, {}).items()
        }
    optimizer.load_state_dict({**saved, "state": moments})


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `limit`; returns the norm before that."""
    found = [parameter for parameter in parameters if parameter.grad is not None]
    norm = whole(get_total_norm([cast(Tensor, parameter.grad) for parameter in found]))
    clip_grads_with_norm_(found, limit, norm)
    return norm


def make_whole(module: nn.Module) -> None:
    """Give the first process plain, whole parameters on the host back, so that the model can be saved.

    Raises:
        FollowedError: on every other process, whose work is over.
    """
    full = full_parameters(module) if is_sharded(module) else None
    if not is_first():
        raise FollowedError
    if full is None:
        return
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    plain = {name: nn.Parameter(tensor) for name, tensor in full.items()}
    for owner in module.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):  # what was tied stays tied
            setattr(owner, name, plain[names[id(parameter)]])
    for each in module.modules():
        if isinstance(each, FSDPModule):
            _unshard_one(each)


def _unshard_one(module: FSDPModule) -> None:
    """Undo what `fully_shard` did to a module besides its parameters: hooks and a subclass made for it."""
    state: Any = module._get_fsdp_state()
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    module.__class__ = type(module).__mro__[2]


def random_states() -> dict[str, Any]:
    """The state of every random generator of this process, in the form of the Trainer's checkpoints."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.random.get_rng_state_all()
    return states


def save_random_states(folder: Path) -> None:
    """The first process writes everyone's generators."""
    found = of_all(random_states())
    if is_first():
        for rank, states in enumerate(found):
            torch.save(states, folder / f"rng_state_{rank}.pth")
