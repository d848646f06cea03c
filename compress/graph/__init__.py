"""Which channels belong together, and which are constant."""

from compress.graph.aten import channel_graph, check_inputs, consumers, count_macs, graph_of, trace
from compress.graph.channels import ChannelGraph, Consumer

__all__ = ["ChannelGraph", "Consumer", "channel_graph", "check_inputs", "consumers", "count_macs", "graph_of", "trace"]
