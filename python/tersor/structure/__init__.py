"""Changes to the structure of a model that a file can hold: edits, each with a kind and a JSON configuration.

Whatever drops blocks, narrows channels or puts other modules in a model's place does it with :func:`edit` (or
:func:`replace_module`). The edit is recorded on the model; ``tersor.save`` stores the records, and ``tersor.load``
replays them on a fresh float model before it fills the tensors.
"""

from tersor.structure.float_modules import FLOAT_MODULES, build_module, describe_module, register_float_module
from tersor.structure.registry import (
    EDITS,
    edit,
    foreign_records,
    origin,
    records,
    register_edit,
    replay,
)
from tersor.structure.replace import replace_module
from tersor.structure.snapshot import Snapshot

__all__ = [
    "EDITS",
    "FLOAT_MODULES",
    "Snapshot",
    "build_module",
    "describe_module",
    "edit",
    "foreign_records",
    "origin",
    "records",
    "register_edit",
    "register_float_module",
    "replace_module",
    "replay",
]
