"""One run: a family trained on a task from a seed, saved now and then, resumed where it stopped.

Step s trains on clips s*batch_size to (s+1)*batch_size - 1 of the task, which are made or cut out when they
are asked for: of a generated task no clip is seen twice. Everything that a step does follows from the run and
the step: a run that is killed and resumed ends with the bits of one that was not.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode

from convgru_fused import use_backend
from convgru_fused.checks import check_choice, check_int, check_number
from convgru_fused.data import WithFlow
from convgru_fused.files import replace_file
from convgru_fused.kept import kept_bytes
from convgru_fused.models.pyramid import RecurrentPyramid

from .catalogue import FAMILIES, TASKS, WITH_FLOW, Clips, Items
from .processes import Processes

ALONE = Processes()
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
CHECKPOINT, RECORD = "checkpoint.pt", "result.json"
_KEPT_CLIPS = 4
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the dimensions of a weight
_TEST_SEEDS = 1 << 40  # test clips have seeds of their own, from here on


@dataclass(frozen=True)
class Run:
    """What is trained, on what, and how: all that a result depends on.

    Raises TypeError or ValueError naming the field, what was expected and what came.
    """

    family: str  # of catalogue.FAMILIES
    task: str  # of catalogue.TASKS
    seed: int = 0  # of the initial weights, the clips and dropout
    steps: int = 1000
    batch_size: int = 32  # of all processes together
    learning_rate: float = 1e-3  # the largest: it rises over a twentieth of the steps, then falls to zero
    weight_decay: float = 0.0
    clip_norm: float = 1.0  # of the gradient of all parameters
    test_clips: int = 512
    family_options: dict[str, Any] = field(default_factory=dict)
    task_options: dict[str, Any] = field(default_factory=dict)
    test_options: dict[str, Any] = field(default_factory=dict)  # of the task, other ones in tests
    further_tests: dict[str, dict[str, Any]] = field(default_factory=dict)  # the same of others, by name

    def __post_init__(self) -> None:
        check_choice("family", self.family, FAMILIES)
        check_choice("task", self.task, TASKS)
        check_int("seed", self.seed, 0, _TEST_SEEDS - 1)
        for name in ("steps", "batch_size", "test_clips"):
            check_int(name, getattr(self, name))
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            check_number(name, getattr(self, name), 0)

    @property
    def name(self) -> str:
        return f"{self.task}-{self.family}-{self.seed}"

    def clips(self, length: int, test: bool = False, **options: Any) -> Clips:
        seed, instead = (self.seed + _TEST_SEEDS, self.test_options) if test else (self.seed, {})
        return TASKS[self.task](length, seed, test, **{**self.task_options, **instead, **options})

    def items(self, length: int, test: bool = False, **options: Any) -> Items:
        """The clips, with their flow if the family takes it."""
        clips = self.clips(length, test, **options)
        return WithFlow(clips) if self.family in WITH_FLOW else clips

    def model(self) -> nn.Module:
        """With the weights that the run starts from."""
        task = self.clips(1)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return FAMILIES[self.family](task.num_classes, task.frame_shape, **self.family_options)

    def rate(self, step: int) -> float:
        """The learning rate of a step: a line up, a cosine down."""
        rise = max(1, self.steps // 20)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


@dataclass(frozen=True)
class Result:
    """What came out of a run."""

    run: Run
    parameters: int  # that were trained
    flops: int  # of a clip's way through the model: two for each multiply-add of convolutions and products
    losses: list[float]  # of every step, before it
    accuracy: float  # on the test clips
    shuffled_accuracy: float  # on the same with their frames shuffled
    reversed_accuracy: float  # on the same backwards, with the labels of what is then shown
    layer_accuracies: dict[str, float]  # of each layer's classifier, if the family has them
    further_accuracies: dict[str, float]  # on each of the further tests
    kept_bytes: int  # that a step keeps between forward and backward, for a clip
    seconds: float = field(compare=False)  # that the steps took

    def save(self, file: Path) -> None:
        replace_file(file, lambda part: part.write_text(json.dumps(asdict(self), indent=1)))

    @classmethod
    def of(cls, values: dict[str, Any]) -> Result:
        """From what asdict gives. Raises TypeError, ValueError or KeyError for something else."""
        return cls(**{**values, "run": Run(**values["run"])})

    @classmethod
    def load(cls, file: Path) -> Result:
        """Raises ValueError naming the file if it is no record."""
        try:
            return cls.of(json.loads(file.read_text()))
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{file}: expected the record of a run, got {error}") from error


def batches_of(
    clips: Items, first: int, run: Run, workers: int = 0, processes: Processes = ALONE
) -> Iterator[tuple[Any, Tensor]]:
    """This process's part of every step's batch, from step `first` on: clips, or clips and their flow, and
    labels."""
    size = run.batch_size // processes.size
    begins = range(first * run.batch_size + processes.rank * size, len(clips), run.batch_size)
    rest = Subset(clips, [begin + i for begin in begins for i in range(size)])
    # A generator of its own: the loader draws a number, which must not be one of dropout's.
    yield from DataLoader(rest, size, num_workers=workers, generator=torch.Generator())


@contextmanager
def _no_mkldnn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that there is no TF32 on a CPU
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def flops_of(model: nn.Module, items: Items) -> int:
    """Of a forward pass on one clip, `items`' first."""
    inputs = [tensor[None] for tensor in _inputs(items[0][0], next(model.parameters()).device)]
    was_training = model.training
    model.eval()
    # What the counter does not know, it does not count: so recurrences are to be plain products here.
    with use_backend("eager"), torch.no_grad(), FlopCounterMode(display=False) as counter, _no_mkldnn():
        model(*inputs)
    model.train(was_training)
    return counter.get_total_flops()


def _kept_bytes(run: Run, device: torch.device) -> int:
    """What a training step keeps for its backward pass, for a clip, on average over some. On a model of its
    own, for one that is sharded has no memory that could be told apart."""
    model, items = in_channels_last(run.model().to(device).train()), run.items(_KEPT_CLIPS)
    clips = [_inputs(items[index][0], device) for index in range(_KEPT_CLIPS)]
    inputs = [torch.stack(tensors) for tensors in zip(*clips, strict=True)]
    return kept_bytes(lambda: model(*inputs), without=(*inputs, *model.parameters())) // _KEPT_CLIPS


def _inputs(item: Any, device: Any) -> list[Tensor]:
    """What a model is called with: a clip, or a clip and its flow."""
    return [tensor.to(device) for tensor in ([item] if isinstance(item, Tensor) else item)]


def evaluate(model: nn.Module, clips: Items, batch_size: int = 64, device: Any = "cpu") -> float:
    """The part of the clips that a model gets right; of videos, by the mean probabilities of their clips."""
    return _accuracies(model, lambda *inputs: model(*inputs)[:, None], clips, batch_size, device)[0]


def evaluate_layers(
    model: nn.Module, clips: Items, batch_size: int = 64, device: Any = "cpu"
) -> tuple[float, dict[str, float]]:
    """The same, and that of each layer's classifier by its name; of a model that has none, no more."""
    if not isinstance(model, RecurrentPyramid):
        return evaluate(model, clips, batch_size, device), {}

    def all_scores(clip: Tensor) -> Tensor:
        layers = model.layer_scores(clip)
        return torch.cat([model.combined(layers)[:, None], layers], dim=1)

    whole, *layers = _accuracies(model, all_scores, clips, batch_size, device)
    return whole, dict(zip(model.layer_names, layers, strict=True))


def _accuracies(
    model: nn.Module, scores_of: Callable[..., Tensor], clips: Items, batch_size: int, device: Any
) -> list[float]:
    """Of every classifier whose log-probabilities scores_of gives, (N,L,num_classes)."""
    was_training = model.training
    model.eval()
    right: Any = 0
    with torch.inference_mode():
        for item, label in DataLoader(clips, batch_size, generator=torch.Generator()):
            inputs = _inputs(item, device)
            parts = inputs[0].size(1) if inputs[0].dim() == 6 else 1
            scores = scores_of(*(tensor.reshape(-1, *tensor.shape[-4:]) for tensor in inputs))
            probabilities = scores.float().exp().unflatten(0, (-1, parts)).mean(1)
            chosen = probabilities.view(len(label), -1, scores.size(-1)).argmax(2).cpu()
            right = right + (chosen == label[:, None]).sum(0)
    model.train(was_training)
    return [int(count) / len(clips) for count in right]


def in_channels_last(model: nn.Module) -> nn.Module:
    """The model with the weights of its convolutions in channels last, in which they are quicker."""
    for parameter in model.parameters():
        if layout := _LAYOUTS.get(parameter.dim()):
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return model


def optimizer_of(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, run.learning_rate, weight_decay=run.weight_decay)


def take_step(
    run: Run,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    item: Any,
    label: Tensor,
    device: torch.device,
    amp: torch.dtype | None = None,
) -> Tensor:
    """One step of a run on a batch; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = run.rate(step)
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, amp, enabled=amp is not None):
        scores = model(*_inputs(item, device))
    loss = F.nll_loss(scores.float(), label.to(device))
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], run.clip_norm)
    optimizer.step()
    return loss


def train(
    run: Run,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    save_every: int = 100,
    amp: torch.dtype | None = None,
    processes: Processes = ALONE,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Result:
    """Trains a model, or goes on where the folder's checkpoint is; evaluates it, and leaves its record there.

    Args:
        run: what to train.
        folder: for the checkpoint and the record; made if it is not there.
        workers: processes that make clips.
        save_every: steps between checkpoints.
        amp: autocast's dtype, or None.
        processes: that train together; each takes its part of every batch.
        on_step: called after every step.

    Raises:
        ValueError: the folder has the checkpoint of another run, or one that cannot be read; or the batch
            cannot be divided among the processes.
    """
    if run.batch_size % processes.size:
        raise ValueError(
            f"batch_size: expected a multiple of {processes.size} processes, got {run.batch_size}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device(device)
    model = run.model().to(device).train()
    if not processes.sharded:  # which only PyTorch's default layout can be
        in_channels_last(model)
    together = processes.wrap(model)
    optimizer = optimizer_of(run, model)
    losses: list[float] = []
    seconds = 0.0
    torch.manual_seed(run.seed * processes.size + processes.rank)  # of dropout
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        losses, seconds = _restore(checkpoint, run, model, optimizer, device, processes)
    clips = run.items(run.steps * run.batch_size)
    batches = batches_of(clips, len(losses), run, workers, processes)
    began = perf_counter()
    for step, (item, label) in enumerate(batches, start=len(losses)):
        loss = take_step(run, step, together, optimizer, item, label, device, amp)
        losses.append(processes.mean(loss))
        on_step(step, losses[-1])
        seconds, began = seconds + perf_counter() - began, perf_counter()
        if len(losses) % save_every == 0 or len(losses) == run.steps:
            _save(checkpoint, run, model, optimizer, losses, seconds, processes)
    tests = {
        order: run.items(run.test_clips, test=True, order=order)
        for order in ("forward", "shuffled", "reversed")
    }
    accuracy, layer_accuracies = evaluate_layers(model, tests["forward"], device=device)
    result = Result(
        run=run,
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        flops=flops_of(model, run.items(1)),
        losses=losses,
        accuracy=accuracy,
        shuffled_accuracy=evaluate(model, tests["shuffled"], device=device),
        reversed_accuracy=evaluate(model, tests["reversed"], device=device),
        layer_accuracies=layer_accuracies,
        further_accuracies={
            # What was tested already need not be again.
            name: accuracy
            if run.test_options == {**run.test_options, **options}
            else evaluate(model, run.items(run.test_clips, test=True, **options), device=device)
            for name, options in run.further_tests.items()
        },
        kept_bytes=_kept_bytes(run, device),
        seconds=seconds,
    )
    if processes.rank == 0:
        result.save(folder / RECORD)
    return result


def _save(
    file: Path,
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: list[float],
    seconds: float,
    processes: Processes,
) -> None:
    """By the first process; the others wait until the file is there. What is sharded is put together."""
    weights, moments = get_state_dict(model, optimizer, options=_WHOLE)
    random = processes.gather(torch.get_rng_state())
    state = {
        "run": asdict(run),
        "model": weights,
        "optimizer": moments,
        "losses": losses,
        "seconds": seconds,
        "random": random,
    }
    if processes.rank == 0:
        replace_file(file, lambda part: torch.save(state, part))
    processes.wait()


def _restore(
    file: Path,
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    processes: Processes,
) -> tuple[list[float], float]:
    """The losses so far, and what they took; model, optimizer and random numbers as they were."""
    try:
        state = torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # whatever a file can be wrong with
        raise ValueError(f"{file}: expected a checkpoint, got {error}") from error
    if state["run"] != asdict(run):
        different = [name for name, value in asdict(run).items() if state["run"].get(name) != value]
        raise ValueError(f"{file}: expected the checkpoint of this run, got one with another {different[0]}")
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=_WHOLE,
    )
    if len(state["random"]) != processes.size:
        raise ValueError(
            f"{file}: expected a checkpoint of {processes.size} processes, got {len(state['random'])}"
        )
    torch.set_rng_state(state["random"][processes.rank].cpu())
    return state["losses"], state["seconds"]
