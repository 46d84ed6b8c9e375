"""Files that attack the loader, made by changing a valid one. `FILES` holds every case."""

from hostile.container import CONTAINER
from hostile.edits import EDITS
from hostile.layers import LAYERS
from hostile.manifest import MANIFEST
from hostile.parts import Case, Parts

FILES: dict[str, Case] = {**CONTAINER, **MANIFEST, **EDITS, **LAYERS}

__all__ = ["FILES", "Case", "Parts"]
