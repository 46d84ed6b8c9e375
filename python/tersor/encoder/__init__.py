"""Encoder blocks: which modules are one, how their call is read, and what they compute.

A family is one file here: it knows a form of block by its structure, such as Hugging Face's BERT or torch's own
nn.TransformerEncoderLayer. tersor.nn.EncoderBlock is what takes their place.
"""

from tersor.encoder import bart, bert, distilbert, mpnet, plain, torch_layer, vit  # noqa: F401  (they register themselves)
from tersor.encoder.family import FAMILIES, Anatomy, Family, find_family, register_family

__all__ = ["FAMILIES", "Anatomy", "Family", "find_family", "register_family"]
