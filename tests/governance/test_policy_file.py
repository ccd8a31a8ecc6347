"""Policies as YAML: they come back as they were written, and errors say what to do."""

from pathlib import Path

import pytest
import yaml

from hybrid_kernels.governance.policy import GovernancePolicy
from hybrid_kernels.governance.policy_file import default_yaml, describe, dump_policy, load_policy, policy_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "governance.yaml"


@pytest.fixture
def load(tmp_path):
    """Loads text, or bytes, as a file."""

    def loaded(content):
        path = tmp_path / "policy.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_policy(path)

    return loaded


@pytest.fixture
def error_of(load, tmp_path):
    """The message of the error without the file's name, which it must begin with."""

    def message(content):
        with pytest.raises(ValueError) as caught:
            load(content)
        text = str(caught.value)
        assert text.startswith(str(tmp_path / "policy.yaml"))
        return text.removeprefix(str(tmp_path / "policy.yaml")).lstrip(": ")

    return message


def changed():
    """Another value for every key."""
    values = {}
    for key in describe():
        section, _, field = key.path.partition(".")
        old = key.default
        if isinstance(old, dict):
            continue
        new = {
            "romanised": "keep",
            "wrong_script": "keep",
            "code_switched": "reject",
            "match": "any",
            "action": "flag",
            "kinds": ["ip"],
            "model": "a: b # 'c'\n\u2028 é",
        }.get(field)
        if new is None:
            new = not old if isinstance(old, bool) else old + 1 if isinstance(old, int) else old * 0.7 + 0.01
        (values.setdefault(section, {}) if field else values)[field or section] = new
    return GovernancePolicy.model_validate(values)


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "quality:\n", "{}", b"\xef\xbb\xbf"])
def test_what_is_left_out_has_its_default(load, content):
    assert load(content) == GovernancePolicy()


def test_round_trip_of_every_key(load):
    policy, default = changed(), GovernancePolicy()
    for name, value in policy:
        same = [value == getattr(default, name)]
        if hasattr(value, "model_fields_set"):
            same = [inner == getattr(getattr(default, name), key) for key, inner in value]
        assert not any(same), name
    assert load(dump_policy(policy)) == policy


def test_the_default_is_documented_key_by_key(load):
    text = default_yaml()
    assert load(text) == GovernancePolicy()
    assert yaml.safe_load(text) == GovernancePolicy().model_dump(mode="json")
    lines = text.splitlines()
    for key in describe():
        name = key.path.split(".")[-1]
        at = [i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:")]
        assert at and all(lines[i - 1].strip().startswith("# ") for i in at), key.path
    joined = " ".join(line.strip().removeprefix("# ") for line in lines)
    assert all(key.description and key.description in joined for key in describe())
    assert "lowest share of letters in the language's own script: a number from 0 to 1" in joined
    assert max(map(len, lines)) <= 100


def test_the_example_is_the_default():
    """Made by `hybrid-kernels govern-policy > examples/governance.yaml`."""
    assert EXAMPLE.read_text(encoding="utf-8") == default_yaml()


def test_describe():
    keys = {key.path: key for key in describe()}
    assert list(keys)[:2] == ["quality", "quality.enabled"] and list(keys)[-1] == "seed"
    assert len(keys) == sum(
        1 + len(value) if isinstance(value, dict) else 1 for value in GovernancePolicy().model_dump().values()
    )
    assert keys["duplicates.threshold"] == (
        "duplicates.threshold",
        0.8,
        "a number, above 0, at most 1",
        "Jaccard similarity that *every* text column must reach",
    )
    assert keys["personal_data.kinds"].allowed == "a list of email, phone, iban or ip"
    assert keys["perplexity.model"].allowed == "a text or null"
    assert keys["leakage"].allowed.startswith("a mapping with the keys enabled, threshold")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("qualty: {}", "qualty: unknown key; did you mean quality?"),
        ("quality: {min_leters: 3}", "quality.min_leters: unknown key; did you mean quality.min_letters?"),
        ("shingle_size: 3", "shingle_size: unknown key; did you mean duplicates.shingle_size?"),
        ("duplicates: {zzz: 3}", "known are enabled, near, threshold, shingle_size, bands"),
        (
            "duplicates: {threshold: 2}",
            "duplicates.threshold: it is 2, and may be a number, above 0, at most 1",
        ),
        ("language: {romanised: drop}", "language.romanised: it is 'drop', and may be keep or reject"),
        (
            "personal_data: {kinds: [ip, mail]}",
            "personal_data.kinds: it is 'mail', and may be a list of email",
        ),
        ("quality: 5", "quality: it is 5, and may be a mapping with the keys enabled"),
        ("quality: {enabled: [1]}", "quality.enabled: it is [1], and may be true or false"),
        ("quality: {enabled: null}", "quality.enabled: it is None, and may be true or false"),
        ("quality: {max_digits: no}", "quality.max_digits: it is False, and may be a number from 0 to 1"),
        ("quality: {min_letters: yes}", "quality.min_letters: it is True, and may be a whole number"),
        ("thresholds: {spread: .inf}", "thresholds.spread: it is inf, and may be a number, above 0"),
        ("seed: -1", "seed: it is -1, and may be a whole number, at least 0"),
        ("seed: 1.5", "seed: it is 1.5, and may be a whole number, at least 0"),
        ("- quality", "holds list ['quality']; it may be a mapping with the keys quality, thresholds"),
        ("quality", "holds str 'quality'; it may be a mapping"),
        ("a: [", "is not YAML: line 1, column 5:"),
        (
            "seed: 1\nquality:\n  enabled: true\n  enabled: true",
            "line 4, column 3: the key 'enabled' stands there twice",
        ),
        ("seed: 1\nseed: 1", "line 2, column 1: the key 'seed' stands there twice, first in line 1"),
        ("1: 2", "a key must be a name"),
        ("[a]: 2", "a key must be a name"),
        ("quality: !!python/object:os.system {}", "could not determine a constructor"),
        (b"seed: \xff", "is not UTF-8"),
        ("seed: 1\0", "is not YAML"),
    ],
)
def test_errors_say_where_what_and_what_may_be(error_of, content, expected):
    assert expected in error_of(content)


def test_all_problems_at_once(error_of):
    message = error_of("quality: {max_digits: 2}\nseed: x\nlanguag: {}\n")
    assert message.splitlines() == [
        "3 problems",
        "  quality.max_digits: it is 2, and may be a number from 0 to 1",
        "  seed: it is 'x', and may be a whole number, at least 0",
        "  languag: unknown key; did you mean language?",
    ]


def test_long_values_are_cut(error_of):
    assert len(error_of(f"seed: {'x' * 10_000}")) < 200


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_policy(tmp_path / "none.yaml")
    with pytest.raises(OSError):
        load_policy(tmp_path)


def test_values_from_elsewhere():
    assert policy_of({"seed": 3, "quality": None}, "--set").seed == 3
    with pytest.raises(ValueError, match=r"^--set: seed: it is 'x'"):
        policy_of({"seed": "x"}, "--set")
