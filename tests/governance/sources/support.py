"""What the tests of sources share."""

import bz2
import gzip
import lzma

import numpy as np
import pyarrow as pa

from hybrid_kernels.governance.batch import Columns
from hybrid_kernels.governance.sources import open_sources

TEXT = Columns(("text",))
PAIR = Columns(("premise", "hypothesis"))


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def unzstd(data):
    return pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}
DECOMPRESS = {
    "": bytes,
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": unzstd,
}


def opened(path, content, columns=TEXT, **options):
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    [source] = open_sources([path], columns, **options)
    return source


def read(source, start=None):
    """Rows as dictionaries, all batches."""
    return [row for table, _ in source.batches(start) for row in table.to_pylist()]


def problems(source):
    return [row["problem"] for row in read(source)]


def texts(source, column=0):
    return [row[f"text_{column}"] for row in read(source)]


def kept_bytes(source, kept, folder, changes=None):
    result = source.write_kept(np.array(kept, bool), folder / source.output_name, changes)
    return (folder / source.output_name).read_bytes(), result
