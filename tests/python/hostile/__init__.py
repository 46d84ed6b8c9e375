"""Files that attack the loader, made by changing a valid one. `FILES` holds every case."""

from hostile.container import CONTAINER
from hostile.manifest import MANIFEST
from hostile.parts import Case, Parts

FILES: dict[str, Case] = {**CONTAINER, **MANIFEST}

__all__ = ["FILES", "Case", "Parts"]
