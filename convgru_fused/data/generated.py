"""What the generated tasks share: a clip for each seed and index, and the order of its frames as a control.

Each task is a Dataset of clips (T,C,H,W), float32 in 0..1, and labels. Labels take turns, so that the
classes are balanced. Item i depends on the seed and i alone: not on the length, other items or workers.
Take another seed for the test set.

`order` is that control. "shuffled": the frames of every clip in a random order in which no two neighbours are
still beside each other, either way round. "reversed": backwards, with the label of what is then shown; who
has learned the task is right on it too.
"""

from __future__ import annotations

import hashlib
import operator

import torch
from torch import Tensor
from torch.utils.data import Dataset

from convgru_fused.checks import check_choice, check_int

ORDERS = ("forward", "reversed", "shuffled")


class LabelledClips(Dataset[tuple[Tensor, int]]):
    """What all datasets of clips share.

    Attributes:
        classes: names of the labels. frames: T. frame_shape: (C,H,W). length: how many items.
    """

    classes: tuple[str, ...]
    frames: int
    frame_shape: tuple[int, int, int]
    length: int

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return self.length

    def checked_index(self, index: int) -> int:
        """index as an int. Raises IndexError if there is no such item."""
        index = operator.index(index)
        if not 0 <= index < self.length:
            raise IndexError(f"index: expected 0 to {self.length - 1}, got {index}")
        return index


class GeneratedTask(LabelledClips):
    """What the tasks share.

    Args:
        length: how many clips.
        seed: any int of at least 0.
        order: "forward", "reversed" or "shuffled".

    Attributes: those of `LabelledClips`.
    """

    def __init__(self, length: int, seed: int, order: str) -> None:
        check_int("length", length)
        check_int("seed", seed, 0)
        check_choice("order", order, ORDERS)
        self.length = length
        self.seed = seed
        self.order = order

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = self.checked_index(index)
        generator = generator_of(self.seed, index)
        label = index % self.num_classes
        clip = self.draw(label, generator)
        if self.order == "reversed":
            return self.reverse(clip), self.reversed_label(label)
        if self.order == "shuffled":
            clip = clip[shuffle(self.frames, generator)]
        return clip, label

    def draw(self, label: int, generator: torch.Generator) -> Tensor:
        """A clip (T,C,H,W) of that class."""
        raise NotImplementedError

    def reverse(self, clip: Tensor) -> Tensor:
        """The clip (T,C,H,W) backwards."""
        return clip.flip(0)

    def reversed_label(self, label: int) -> int:
        """The class of a clip of class `label` that is played backwards."""
        raise NotImplementedError


def generator_of(seed: int, index: int) -> torch.Generator:
    """Of the random numbers of one item."""
    # torch's CPU generator reads 32 bits of its seed, so both numbers are mixed into that many.
    digest = hashlib.blake2b(f"{seed},{index}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def shuffle(frames: int, generator: torch.Generator) -> Tensor:
    """A permutation that leaves no two neighbours beside each other, by trial: one in seven does. With fewer
    than four frames there is none, and any will do."""
    while True:
        order = torch.randperm(frames, generator=generator)
        if frames < 4 or (order.diff().abs() > 1).all():
            return order
