import json
import time

import pytest

from hybrid_kernels.benchmarking import session
from hybrid_kernels.benchmarking.session import Options, Progress
from tests.benchmarking.support import FLOOR, OURS, QUICK, out_of_memory, side, toy_case


def run(cases, options=QUICK, earlier=(), progress=None):
    written = []
    outcome = session.run(cases, options, written.append, progress, earlier)
    return outcome, written


def test_all_sides_of_a_pass_are_written_at_once_with_everything_that_is_known():
    case = toy_case()
    outcome, written = run([case], Options(passes=("forward", "both"), rounds=4))
    assert outcome.measured == [f"{case.id} forward", f"{case.id} both"]
    assert [[record["side"] for record in records] for records in written] == [[FLOOR, OURS]] * 2
    floor, ours = json.loads(json.dumps(written[1]))
    assert ours["case"] == "operator/toy/m8-k16/float32/cpu" and ours["pass"] == "both"
    assert (ours["floor"], ours["ours"], ours["kind"], ours["name"]) == (FLOOR, OURS, "operator", "toy")
    assert ours["shape"] == {"m": 8, "k": 16} and ours["dtype"] == "float32" and ours["device"] == "cpu"
    assert len(ours["seconds"]) == ours["rounds"] == 4
    low, high = ours["quartiles_seconds"]
    assert min(ours["seconds"]) <= low <= ours["median_seconds"] <= high <= max(ours["seconds"])
    assert ours["ratios"][OURS]["median"] == 1.0
    assert ours["ratios"][FLOOR]["median"] == ours["median_seconds"] / floor["median_seconds"]
    assert ours["parameters"] == 64 and floor["parameters"] is None
    assert ours["peak_bytes"] >= floor["peak_bytes"] > 0
    assert any(text.startswith("low_rank_linear: ") for text in ours["ran"]) and floor["ran"] == []
    assert isinstance(ours["declined"], dict)
    assert ours["graph"] is ours["roofline"] is ours["profile"] is None
    assert ours["date"] == floor["date"] and {"machine", "versions", "commit"} <= ours.keys()


def test_a_profile_says_where_the_time_goes():
    _, ((_, ours),) = run([toy_case()], Options(rounds=2, profile=True))
    assert ours["profile"] and {"name", "calls", "share", "own"} == ours["profile"][0].keys()


def test_a_backend_that_was_passed_over_comes_with_the_reason(monkeypatch):
    from hybrid_kernels.ops import backend

    operator = backend.OPERATORS["low_rank_linear"]
    unwilling = backend.Implementation("cuda", lambda *args: None, lambda *args: "it is too small")
    monkeypatch.setattr(operator, "implementations", (unwilling, *operator.implementations))
    _, ((floor, ours),) = run([toy_case()])
    assert ours["declined"]["low_rank_linear: cuda"] == "it is too small" and floor["declined"] == {}


def test_sides_that_fail_are_recorded_and_the_others_measured():
    def not_installed():
        raise ImportError("No module named 'peer'")

    calls = []

    def fails_later():
        calls.append(0)
        time.sleep(1e-4)
        if len(calls) > 8:
            raise ValueError("not any more")

    sides = {
        "absent": not_installed,
        "too large": lambda: side(out_of_memory),
        "too large to build": out_of_memory,
        "fails later": lambda: side(fails_later),
        "fine": lambda: side(lambda: None),
    }
    _, (records,) = run([toy_case(sides=sides)])
    found = {record["side"]: record for record in records}
    assert found["absent"]["failed"] == "ImportError: No module named 'peer'"
    assert "failure" not in found["absent"] and "median_seconds" not in found["absent"]
    for name in ("too large", "too large to build"):
        assert found[name]["failure"] == "memory" and "allocate" in found[name]["failed"]
    assert found["fails later"]["failed"] == "ValueError: not any more"
    assert "seconds" not in found["fails later"] and "machine" in found["fails later"]
    for name in (FLOOR, OURS, "fine"):
        assert found[name]["median_seconds"] > 0


def test_a_case_whose_inputs_cannot_be_made_is_recorded_and_the_next_one_measured():
    outcome, written = run([toy_case("huge", drawn=out_of_memory), toy_case()])
    ((record,), others) = written
    assert record["side"] == OURS and record["failure"] == "memory" and len(others) == 2
    assert len(outcome.measured) == 2


def test_only_passes_that_a_case_has_are_measured():
    outcome, _ = run(
        [toy_case(passes=("both",)), toy_case("other")], Options(passes=("forward", "both"), rounds=1)
    )
    assert [name.split()[1] for name in outcome.measured] == ["both", "forward", "both"]


def test_sides_are_left_out_by_how_their_names_begin_but_never_our_own():
    def make():
        raise AssertionError("it was left out")

    case = toy_case(sides={"peer one": make, "peer two": make})
    _, (records,) = run([case], Options(rounds=1, without=("peer", "ours")))
    assert [record["side"] for record in records] == [FLOOR, OURS]


def test_what_is_measured_already_is_not_measured_again():
    built = []

    def make():
        built.append(0)
        return side(lambda: None)

    first, second = toy_case("first", {"peer": make}), toy_case("second", {"peer": make})
    _, written = run([first])
    earlier = [record for records in written for record in records]
    outcome, again = run([first, second], earlier=earlier)
    assert outcome.measured_before == [f"{first.id} both"] and outcome.measured == [f"{second.id} both"]
    assert len(built) == 2 and {record["name"] for record in again[0]} == {"second"}
    # Another side, another number of rounds, another commit: not the same measurement.
    more = toy_case("first", {"peer": make, "another": make})
    assert run([more], earlier=earlier)[0].measured
    assert run([first], Options(rounds=QUICK.rounds + 1), earlier)[0].measured
    other = [{**record, "commit": "def5678"} for record in earlier]
    assert run([first], earlier=other)[0].measured


def test_after_the_limit_no_case_is_begun():
    outcome, written = run([toy_case()], Options(rounds=1, limit=-1.0))
    assert written == [] and len(outcome.not_begun) == 1 and outcome.measured == []


def test_an_interrupt_ends_the_session_and_what_is_written_stays():
    written = []

    def interrupt():
        raise KeyboardInterrupt

    cases = [toy_case("first"), toy_case("second", {"stopped": lambda: side(interrupt)}), toy_case("third")]
    with pytest.raises(KeyboardInterrupt):
        session.run(cases, QUICK, written.append)
    assert [records[0]["name"] for records in written] == ["first"]


def test_a_table_is_shown_before_writing_fails():
    shown = []

    class Shown(Progress):
        def finished(self, records, before):
            shown.append(records)

    def full(records):
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        session.run([toy_case(), toy_case("next")], QUICK, full, Shown())
    assert len(shown) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"passes": ("sideways",)}, "passes is \\('sideways',\\); it may have 'forward'"),
        ({"passes": ()}, "passes is"),
        ({"rounds": 0}, "rounds is 0; it must be at least 1"),
        ({"seconds_each": 0.0}, "seconds_each is 0.0"),
    ],
)
def test_options_say_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        Options(**fields)
