"""Inputs of governance as sources of rows, and what is kept of them in the same format.

>>> sources = open_sources(["train/", "more/*.csv.gz"], Columns(("text",)))
>>> for table, position in sources[0].batches():  # position: where to go on after a crash
...     ...
>>> sources[0].write_kept(kept, folder / sources[0].output_name, None)
"""

from hybrid_kernels.governance.sources.base import Source
from hybrid_kernels.governance.sources.opening import open_sources
from hybrid_kernels.governance.sources.tabular import InMemory

__all__ = ["InMemory", "Source", "open_sources"]
