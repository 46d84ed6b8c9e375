"""What the teacher answers to batches that come again in every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Answer:
    """What losses need of the teacher on one batch.

    Attributes:
        output: what it returned; None where no loss compares outputs.
        features: by loss and layer: what the layer returned, None where it was not run.
    """

    output: Tensor | None
    features: Mapping[Hashable, Tensor | None]


class TeacherMemory:
    """Keeps answers by the content of their batch, so that an epoch after the first need not run the teacher.

    The first answers that fit stay; nothing makes way, since every epoch would then only push out what it needs next.
    Under ``torch.autocast`` all answers are rounded to bfloat16, the first ones and those that don't fit too: a batch
    is answered alike in every epoch, and after a restart.

    Args:
        gigabytes: how much may be kept, 10^9 bytes each.
    """

    def __init__(self, gigabytes: float) -> None:
        self._room = gigabytes * 1e9
        self._answers: dict[bytes, Answer] = {}

    def find(self, inputs: Any) -> Answer | None:
        """The answer to a batch of this content, if it was kept; in float32 where it was rounded."""
        found = self._answers.get(_digest(inputs))
        return None if found is None else _mapped(found, lambda value: value.float())

    def keep(self, inputs: Any, answer: Answer) -> Answer:
        """Keep an answer where there is room; returns it as :meth:`find` would."""
        small = _mapped(answer, lambda value: value.bfloat16()) if _coarse(answer) else answer
        size = sum({id(value): value.nbytes for value in _tensors(small)}.values())
        if size <= self._room:
            self._room -= size
            self._answers[_digest(inputs)] = small
        return _mapped(small, lambda value: value.float())


def _tensors(answer: Answer) -> list[Tensor]:
    return [value for value in (answer.output, *answer.features.values()) if value is not None]


def _coarse(answer: Answer) -> bool:
    return any(torch.is_autocast_enabled(value.device.type) for value in _tensors(answer))


def _mapped(answer: Answer, change: Callable[[Tensor], Tensor]) -> Answer:
    """The same tensor under two names stays one."""
    done: dict[int, Tensor] = {}

    def once(value: Tensor | None) -> Tensor | None:
        if value is None or not value.is_floating_point() or value.dtype == torch.float64:
            return value
        if id(value) not in done:
            done[id(value)] = change(value)
        return done[id(value)]

    return Answer(once(answer.output), {name: once(value) for name, value in answer.features.items()})


def _digest(inputs: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, inputs)
    return digest.digest()


def _add(digest: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
        if part.numel():
            plain = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(plain.numpy().tobytes())
    elif isinstance(part, Mapping):
        for key, value in part.items():
            digest.update(f"{key!r}:".encode())
            _add(digest, value)
    elif isinstance(part, tuple | list):
        digest.update(f"[{len(part)}".encode())
        for value in part:
            _add(digest, value)
    else:
        digest.update(repr(part).encode())
