"""Building the float model of a file again, for models of the library transformers.

Only a class that transformers itself exports is used, found by its name; a file can name no other module, no code
and no address. Its parameters are built on the meta device, so they cost no memory before the file fills them.
"""

from __future__ import annotations

import copy
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from tersor.checkpoint.manifest import Rebuild
from tersor.checkpoint.strict_json import Json, clip, show
from tersor.errors import CheckpointError

ATTENTIONS = ("eager", "sdpa")
MAX_CONFIG_INT = 1 << 31
MAX_BUFFER_BYTES = 256 << 20  # beside what the file itself holds

# Configuration keys that make transformers fetch weights or code, or allocate at will, unless they say None or False.
_REFUSED_KEYS = frozenset(
    {
        "architecture",
        "attn_implementation",
        "auto_map",
        "backbone",
        "experts_implementation",
        "model_args",
        "name_or_path",
        "num_labels",
        "quantization_config",
        "trust_remote_code",
        "use_kernels",
        "use_pretrained_backbone",
        "use_timm_backbone",
    }
)
# Keys that carry nothing that the model needs (num_labels repeats id2label), or the path of somebody's folder.
_DROPPED_KEYS = frozenset(
    {"_attn_implementation_autoset", "_commit_hash", "_name_or_path", "name_or_path", "num_labels"}
)


def describe(model: nn.Module) -> Rebuild | None:
    """How to build ``model`` again, or None where a file cannot say it."""
    transformers = sys.modules.get("transformers")
    cls = type(model)
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    if getattr(transformers, cls.__name__, None) is not cls:
        return None
    try:
        config = json.loads(json.dumps(_without_dropped(model.config.to_dict()), allow_nan=False))
        _check_config(config)
    except (TypeError, ValueError, CheckpointError):
        return None
    attention = getattr(model.config, "_attn_implementation", None)
    return Rebuild(cls.__name__, config, attention if attention in ATTENTIONS else None)


def rebuild(described: Rebuild | None, check: Callable[[nn.Module], object], file_bytes: int) -> nn.Module:
    """The float model, its parameters on the meta device and its buffers real.

    It is built twice: first on meta alone, where a lie about sizes costs nothing, and, when ``check`` has found that
    it fits the file, with real buffers.

    Args:
        described: what the manifest says, or None.
        check: makes the file's edits and raises CheckpointError when the model does not fit the file.
        file_bytes: size of the file; nothing much larger is built for it.

    Raises:
        CheckpointError: the file does not say how, transformers is missing, or it does not build such a model.
    """
    if described is None:
        raise CheckpointError("the file does not say how to build its model; pass a fresh one: load(path, model=...)")
    _check_config(described.config)
    if described.attention is not None and described.attention not in ATTENTIONS:
        raise CheckpointError(f"the file asks for the attention {show(described.attention)}; known: {ATTENTIONS}")
    cls = _model_class(described.model_class)
    most_tensors = file_bytes // 8 + 64  # a name and a shape take more than that
    with torch.device("meta"):
        sketch = _build(cls, described, most_tensors)
    buffer_bytes = sum(buffer.nbytes for buffer in sketch.buffers())  # before an edit takes some away
    check(sketch)
    if buffer_bytes > file_bytes + MAX_BUFFER_BYTES:
        raise CheckpointError(f"the model of the file's configuration has {buffer_bytes} bytes of buffers; refused")
    with torch.device("cpu"):
        return _build(cls, described, most_tensors)


def _model_class(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise CheckpointError(
            f"the file's model is the {name} of transformers, which is not installed: "
            "pip install tersor[transformers], or pass model="
        ) from error
    cls = getattr(transformers, name, None)
    if not isinstance(cls, type) or not issubclass(cls, transformers.PreTrainedModel):
        raise CheckpointError(f"transformers {transformers.__version__} has no model class {show(name)}; pass model=")
    return cls


def _build(cls: Any, described: Rebuild, most_tensors: int) -> nn.Module:
    try:
        config = cls.config_class.from_dict(copy.deepcopy(described.config))
        if described.attention is not None:
            config._attn_implementation = described.attention
        with parameters_on_meta(most_tensors):
            model: nn.Module = cls(config)
    except CheckpointError:
        raise
    except Exception as error:  # whatever the library raises for a configuration that it does not like
        raise CheckpointError(
            f"transformers could not build {described.model_class} from the file's configuration: "
            f"{type(error).__name__}: {clip(str(error))}; pass model="
        ) from error
    return model


@contextmanager
def parameters_on_meta(most: int | None = None) -> Iterator[None]:
    """Modules built in this block, by this thread, have parameters without memory; their buffers are real.

    That is what ``load`` wants for a large model: ``with parameters_on_meta(): model = make_model()``. Under
    ``torch.device("meta")`` non-persistent buffers would lose their values, and no file holds them.

    Raises:
        CheckpointError: more than ``most`` parameters are registered.
    """
    thread, count = threading.get_ident(), 0

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        nonlocal count
        if parameter is None or threading.get_ident() != thread:
            return None
        count += 1
        if most is not None and count > most:
            raise CheckpointError(f"the model of the file's configuration has more than {most} parameters; refused")
        if parameter.is_meta or type(parameter) is not nn.Parameter:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _without_dropped(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _without_dropped(item) for key, item in value.items() if key not in _DROPPED_KEYS}
    if isinstance(value, (list, tuple)):
        return [_without_dropped(item) for item in value]
    return value


def _check_config(value: Json) -> None:
    """Raises CheckpointError for what makes transformers fetch something, or loop over a huge number."""
    if isinstance(value, int) and abs(value) > MAX_CONFIG_INT:
        raise CheckpointError(f"the model configuration holds the number {show(value)}; refused")
    for key, item in value.items() if isinstance(value, dict) else ():
        if (key.startswith("_") or key in _REFUSED_KEYS) and item is not None and item is not False:
            raise CheckpointError(
                f"the model configuration sets {show(key)}, which is not allowed in a file; pass model="
            )
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_config(item)
