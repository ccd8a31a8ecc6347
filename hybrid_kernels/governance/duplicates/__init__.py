"""Near-duplicate rows, and training rows that leak from the evaluation files.

Candidates come from MinHash LSH; every decision is made on the texts themselves, so that nothing is removed on an
estimate. Only rows of one language are compared (of a translation: of the same two).

*Exact*: equal in every text column after `normalise`. Such copies stand behind the first of them in all that follows.

*Near*: in every text column the Jaccard similarity of the shingle sets reaches `duplicates.threshold`. A row is the
tuple of its texts. In natural language inference one premise comes with several hypotheses, and two of these may differ
in a negation alone ("Kuna haki za kupiga kura", "Hakuna haki za kupiga kura": the shingle sets are equal). So rows of a
pair that share the first text are duplicates only if they are equal throughout. Of translations both sides must reach
the threshold, which leaves alternative translations of one source alone; a pair with its sides swapped is not looked
for.

*Groups*: near-duplicates form connected groups, of which the first row in the order of the input is kept; a chain of
small edits is one group. No row is dropped for a representative that shares its first text: such rows, and what only
they connect, leave the group and form groups among themselves (`groups.py`). So no two kept rows are verified
near-duplicates. Each dropped row names its representative (`duplicate_of`) and the most similar member of its group
that it was verified against (`linked_to`).

*Leakage*: a training row that equals an evaluation row, or is near it by `leakage.threshold`, is removed and names that
row; this happens before groups are formed. By `leakage.match` all columns must match, under the rule of pairs above, or
one suffices. In the latter case a text of fewer than `leakage.min_shingles` shingles is no evidence by itself, or
"Yes." would remove every row that has it; it counts if all columns match. Evaluation rows are never removed, are not
compared with one another, and count whatever other steps say about them.

*Bounds*: within an LSH bucket all rows are compared up to `candidates.FULL` rows, and each with a bounded number beyond
(`candidates.py`); of each row at most `verify.MOST` candidates are verified, those with the most similar sketches. So a
million variants of one template cost a million times a constant.

Nothing depends on the number of tasks or workers, on the order in which tasks finish or on the engine. What a finished
task found stays in a file, and is not computed again.
"""

from hybrid_kernels.governance.duplicates.run import Found, find
from hybrid_kernels.governance.duplicates.signatures import MEASURED, rows_per_band, sign

__all__ = ["MEASURED", "Found", "find", "rows_per_band", "sign"]
