"""A folder in which a recipe under way keeps what it has finished, so that an interrupted one goes on from there."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tersor import text
from tersor.checkpoint import load, save
from tersor.errors import CheckpointError, RecipeError
from tersor.pipeline import Run
from tersor.recipe import Recipe
from tersor.report import StepRow

_SCHEMA = "tersor.work/1"


class WorkFolder:
    """The finished steps of one recipe on one float model.

    ``progress.json`` names the file with the model after the last finished step; it is written when that file is
    whole, so a process may be killed at any moment. A training within a step keeps its own state beside it.

    Args:
        path: the folder; made where it is missing. None keeps nothing.

    Raises:
        RecipeError: it belongs to another recipe or model, or can't be used.
    """

    def __init__(self, path: Path | None, recipe: Recipe, model: nn.Module) -> None:
        self._path = path
        self._what = {"schema": _SCHEMA, "recipe": recipe.to_dict(), "model": "" if path is None else _digest(model)}
        self._what = json.loads(json.dumps(self._what))
        self._found: dict[str, Any] = {"finished": 0, "rows": [], "notes": [], "warnings": []}
        if path is None:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / "progress.json").exists():
                found = json.loads((path / "progress.json").read_text(encoding="utf-8"))
                self._compare(found)
                self._found = found
        except (OSError, ValueError) as error:
            raise RecipeError(f"the work folder {path} can't be used: {error}") from error

    @property
    def finished(self) -> int:
        """How many steps are done already."""
        return int(self._found["finished"])

    def resume(self, run: Run) -> list[StepRow]:
        """Give the run the model, notes and rows after the last finished step.

        Raises:
            RecipeError: the file can't be loaded.
        """
        if self.finished and self._path is not None:
            try:
                run.model = load(self._file(self.finished), copy.deepcopy(run.teacher))
            except CheckpointError as error:
                raise RecipeError(
                    f"the finished steps in {self._path} can't be loaded ({error}); give another folder"
                ) from error
            run.notes += self._found["notes"]
            run.warnings += self._found["warnings"]
        return [StepRow(**row) for row in self._found["rows"]]

    def training_state(self, index: int) -> Path | None:
        """Where the training within step number ``index`` writes its state."""
        return None if self._path is None else self._path / f"step-{index + 1}.training"

    def done(self, index: int, run: Run, rows: Sequence[StepRow]) -> None:
        """Keep the model after step number ``index``.

        Raises:
            CheckpointError: a file can't hold it.
        """
        if self._path is None:
            return
        save(run.model, self._file(index + 1))
        content = self._what | {"finished": index + 1, "rows": [dataclasses.asdict(row) for row in rows]}
        content |= {"notes": run.notes, "warnings": run.warnings}
        text.write(self._path / "progress.json", json.dumps(content, indent=2) + "\n")
        for old in (self._file(index), self.training_state(index)):
            if old is not None:
                old.unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        assert self._path is not None
        return self._path / f"step-{number}.tersor"

    def _compare(self, found: Any) -> None:
        if not isinstance(found, dict) or found.get("schema") != _SCHEMA:
            raise RecipeError(f"the work folder {self._path} holds a progress.json of something else")
        for key in ("recipe", "model"):
            if found.get(key) != self._what[key]:
                raise RecipeError(f"the work folder {self._path} belongs to another {key}; give another, or delete it")


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.numel():
            plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(memoryview(plain.numpy()))
    return digest.hexdigest()
