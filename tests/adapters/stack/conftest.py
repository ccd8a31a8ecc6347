"""Machines that measure have no need of what these tests import beyond PEFT."""

import importlib.util

if any(importlib.util.find_spec(name) is None for name in ("accelerate", "aenum", "peft", "transformers")):
    collect_ignore_glob = ["test_*.py"]
