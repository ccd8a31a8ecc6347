"""Connected groups of near-duplicates and the row that stands for each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from hybrid_kernels.governance.duplicates.files import Rows


def representatives(left: Rows, right: Rows, first: NDArray[np.uint64] | None, nodes: int) -> Rows:
    """Per node the node that stands for it, itself if it is kept.

    The nodes are rows in input order. Of a connected group the first stands for all. Where first texts count, no node
    is represented by one with the same first text: such nodes leave the group of the first node, and with them what is
    connected to it through them only. Of what is left the first node gathers a group in the same way, and so on.

    Args:
        left, right: the edges.
        first: what tells the first text of each node from others; None: nothing is shared.
        nodes: their number.
    """
    graph = csr_array((np.ones(len(left), bool), (left, right)), shape=(nodes, nodes))
    count, labels = connected_components(graph, directed=False)
    lowest = np.full(count, nodes)
    np.minimum.at(lowest, labels, np.arange(nodes))
    result = lowest[labels]
    if first is not None:
        conflict = (first == first[result]) & (result != np.arange(nodes))
        torn = np.isin(labels, labels[conflict])
        _part(graph + graph.T, np.flatnonzero(torn), first, result)
    return result


def _part(graph: csr_array, nodes: Rows, first: NDArray[np.uint64], result: Rows) -> None:
    """Set `result` for some nodes, ascending and with all nodes of their components, by a walk from each first node."""
    result[nodes] = -1
    starts, neighbours = graph.indptr, graph.indices
    for node in nodes.tolist():
        if result[node] >= 0:
            continue
        result[node], reached = node, [node]
        while reached:
            current = reached.pop()
            near = neighbours[starts[current] : starts[current + 1]]
            near = near[(result[near] < 0) & (first[near] != first[node])]
            result[near] = node
            reached += near.tolist()
