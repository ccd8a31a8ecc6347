"""The report's tables, computed from the cells of one run or several; `report` renders them.

`load_study` reads the runs; `Setting` is a set of cells that can be compared. `Table` is plain data.
"""

from hybrid_kernels.evaluation.tables.study import Cell, Run, Setting, load_study
from hybrid_kernels.evaluation.tables.table import Column, Row, Table, Value

__all__ = ["Cell", "Column", "Row", "Run", "Setting", "Table", "Value", "load_study"]
