"""A traced network in which int8 graphs stand for the operations that they compute."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from tersor.convnet.trace import trace
from tersor.errors import StructureError
from tersor.modules import replace
from tersor.nn.int8_graph import Int8Graph
from tersor.structure import checks, register_edit

EDIT = "int8_convnet"


class Int8Network(nn.Module):
    """What a traced network becomes: `body` computes what its forward did.

    `body` is an Int8Graph where all of the network runs on bytes, else a torch.fx.GraphModule whose children are the
    float layers that are left, under the names that they had, and graphs named `int8_0`, `int8_1`, ...
    """

    body: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the float network's."""
        return self.body(*args, **kwargs)


@register_edit(EDIT)
def build(model: nn.Module, config: dict[str, Any]) -> None:
    """``{"path": NAME, "segments": [{"nodes": [...], "source": NODE, "result": NODE, "graph": {...}}]}``.

    Traces the module `path`, "" being the model, and puts graphs without weights, see
    `tersor.nn.int8_graph_config.checked_graph`, in the place of nodes. The model itself becomes an Int8Network in
    place; a module inside it is replaced by one.
    """
    checks.keys(config, {"path", "segments"})
    module = checks.submodule(model, config["path"])
    traced = trace(module)
    if traced is None:
        raise StructureError(f"{config['path']!r} can't be traced by torch.fx")
    if not isinstance(config["segments"], list):
        raise StructureError("segments must be a list")
    for position, segment in enumerate(config["segments"]):
        _place(traced, f"int8_{position}", segment)
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()
    network = Int8Network()
    network.body = _body(traced)
    network.training = module.training
    if config["path"]:
        replace(model, module, network)
        return
    for table in ("_modules", "_parameters", "_buffers"):
        model.__dict__[table] = network.__dict__[table]
    model.__dict__["_non_persistent_buffers_set"] = set()
    model.__class__ = Int8Network


def _body(traced: fx.GraphModule) -> nn.Module:
    """The graph alone where nothing else is left."""
    nodes = [node for node in traced.graph.nodes if node.op != "output"]
    if [node.op for node in nodes] == ["placeholder", "call_module"]:
        (output,) = (node for node in traced.graph.nodes if node.op == "output")
        only = traced.get_submodule(str(nodes[1].target))
        if isinstance(only, Int8Graph) and output.args == (nodes[1],):
            return only
    return traced


def _place(traced: fx.GraphModule, name: str, segment: Any) -> None:
    checks.keys(segment, {"nodes", "source", "result", "graph"}, "a segment")
    by_name = {node.name: node for node in traced.graph.nodes}
    names = segment["nodes"]
    if not isinstance(names, list) or not names:
        raise StructureError("the nodes of a segment must be a list of names")
    for item in (*names, segment["source"], segment["result"]):
        if not isinstance(item, str) or item not in by_name:
            raise StructureError(f"the traced network has no node {item!r}; it is not the one that was converted")
    nodes = [by_name[item] for item in names]
    source, result = by_name[segment["source"]], by_name[segment["result"]]
    try:
        graph = Int8Graph.from_config(segment["graph"])
    except ValueError as error:
        raise StructureError(f"the graph of {name}: {error}") from error
    inside = set(nodes)
    if source in inside or result not in inside or any(node.op in ("placeholder", "output") for node in nodes):
        raise StructureError(f"the nodes of {name} don't lie between its source and its result")
    if any(user not in inside for node in nodes if node is not result for user in node.users):
        raise StructureError(f"the nodes of {name} are read from outside")
    traced.add_module(name, graph)
    with traced.graph.inserting_after(result):
        call = traced.graph.call_module(name, (source,))
    result.replace_all_uses_with(call)
    for node in reversed([node for node in traced.graph.nodes if node in inside]):
        traced.graph.erase_node(node)
