"""A search over a handful of rows, and what it must find: every pair compared, in plain Python."""

from itertools import combinations

import numpy as np
import pyarrow as pa

from hybrid_kernels.governance.batch import Batch, Columns
from hybrid_kernels.governance.duplicates import find, sign
from hybrid_kernels.governance.engine import InProcess
from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.storage import RowStore, write_table
from hybrid_kernels.governance.text import normalise, shingles

SENTENCE = "The old bridge over the river was closed for repairs until the end of spring."


def columns_of(rows, translation=False):
    return Columns(tuple("ab"[: len(rows[0])]), translation=translation)


def policy(**sections):
    return GovernancePolicy.model_validate(sections)


def languages_of(rows, languages):
    """Per column the language of each row; `languages`: one for all, or per row one or one a column."""
    if isinstance(languages, str):
        languages = [languages] * len(rows)
    width = len(rows[0])
    each = [language if isinstance(language, tuple) else (language,) * width for language in languages]
    return tuple([row[i] for row in each] for i in range(width))


def signed(rows, languages="en", rules=None, translation=False, leakage=False):
    columns = columns_of(rows, translation)
    texts = tuple([row[i] for row in rows] for i in range(len(columns.texts)))
    batch = Batch(texts, tuple([None] * len(rows) for _ in texts), columns, ("en",))
    return sign(batch, languages_of(rows, languages), rules or GovernancePolicy(), leakage)


def prepare(folder, rows, languages="en", rules=None, translation=False, leakage=False, shard=5):
    """(store, files of signatures)."""
    shards, signatures, counts = [], [], []
    for start in range(0, len(rows), shard):
        part = rows[start : start + shard]
        of_part = languages if isinstance(languages, str) else languages[start : start + shard]
        texts = {
            f"text_{i}": pa.array([row[i] for row in part], pa.large_string()) for i in range(len(part[0]))
        }
        shards.append(folder / f"rows-{start}.arrow")
        write_table(pa.table(texts), shards[-1])
        signatures.append(folder / f"signatures-{start}.arrow")
        write_table(signed(part, of_part, rules, translation, leakage), signatures[-1])
        counts.append(len(part))
    return RowStore(shards, counts, len(rows[0])), signatures


def search(
    folder,
    rows,
    languages="en",
    *,
    rules=None,
    evaluation=(),
    dead=(),
    translation=False,
    engine=None,
    shard=5,
):
    """`find` over rows; `evaluation`, `dead`: row numbers."""
    rules = rules or GovernancePolicy()
    flags = np.zeros((2, len(rows)), bool)
    flags[0, list(evaluation)] = True
    flags[1, list(dead)] = True
    store, signatures = prepare(folder, rows, languages, rules, translation, bool(evaluation), shard)
    columns = columns_of(rows, translation)
    return find(
        store, signatures, ~flags[1], flags[0], columns, rules, engine or InProcess(), folder / "found"
    )


def instead(found):
    """{row: the row it is dropped for}."""
    return dict(zip(found.row.tolist(), found.duplicate_of.tolist(), strict=True))


def similarities(first, second, size=3):
    """The Jaccard similarity in each column."""
    result = []
    for a, b in zip(first, second, strict=True):
        left, right = shingles(a, size), shingles(b, size)
        result.append(len(left & right) / len(left | right))
    return result


def expected(rows, languages="en", *, evaluation=(), dead=(), threshold=0.8, pair=False):
    """{row: (the row it is dropped for, kind)} by the rules that the package states, all columns matching."""
    tongues = list(zip(*languages_of(rows, languages), strict=True))
    present = [i for i, row in enumerate(rows) if None not in row and (i in evaluation or i not in set(dead))]

    def equal(i, j):
        return all(normalise(a) == normalise(b) for a, b in zip(rows[i], rows[j], strict=True))

    def alike(i, j):
        return pair and normalise(rows[i][0]) == normalise(rows[j][0]) and not equal(i, j)

    def linked(i, j):
        near = min(similarities(rows[i], rows[j])) >= threshold
        return tongues[i] == tongues[j] and not alike(i, j) and (near or equal(i, j))

    result = {}
    training = [i for i in present if i not in evaluation]
    for i in training:
        leaks = [
            (-min(similarities(rows[i], rows[j])), not equal(i, j), j)
            for j in evaluation
            if j in present and linked(i, j)
        ]
        if leaks:
            result[i] = (min(leaks)[-1], "leakage")
    left = [i for i in training if i not in result]
    near = {i: set() for i in left}
    for i, j in combinations(left, 2):
        if linked(i, j):
            near[i].add(j)
            near[j].add(i)

    done = set()
    for i in left:
        if i in done:
            continue
        done.add(i)
        reached = [i]
        while reached:
            for j in sorted(near[reached.pop()]):
                if j not in done and not alike(i, j):
                    done.add(j)
                    reached.append(j)
                    result[j] = (i, "duplicates")
    return result
