"""Structured removal: whole channels, neurons, heads and recurrent units, with all that is coupled to them."""

from tersor.prune.structured.channels import prune_channels
from tersor.prune.structured.result import ChannelResult, GroupRow

__all__ = ["ChannelResult", "GroupRow", "prune_channels"]
