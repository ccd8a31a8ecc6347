import io

from rich.console import Console

from hybrid_kernels.benchmarking import display, session
from tests.benchmarking.support import FLOOR, QUICK, side, toy_case

LONG = "PEFT OFT, series (approximate)"


def test_names_of_sides_are_whole_at_80_columns_beside_the_times_of_a_gpu():
    written = []
    session.run([toy_case(sides={LONG: lambda: side(lambda: None)})], QUICK, written.append)
    (records,) = written
    for record in records:
        record["device"], record["graph"] = "cuda", {"median_seconds": 0.0123}
        record["roofline"] = {"share": 0.75, "bound": "compute"}
    console = Console(width=80, file=io.StringIO())
    console.print(display.table(records))
    text = console.file.getvalue()
    lines = text.splitlines()
    assert sum(line.startswith(LONG) for line in lines) == 2 and max(map(len, lines)) <= 80
    assert (
        "12.300 ms" in text and "75% compute" in text and sum(line.startswith(FLOOR) for line in lines) == 2
    )
