"""The table of keyboards against xkeyboard-config, where a machine has it."""

import ctypes
import ctypes.util
import unicodedata
from pathlib import Path

import pytest

from hybrid_kernels.evaluation.robustness.keyboard import neighbours
from hybrid_kernels.evaluation.robustness.layouts import LAYOUT_OF, LAYOUTS

LIBRARY = ctypes.util.find_library("xkbcommon")
SYMBOLS = Path("/usr/share/X11/xkb/symbols")
# Keycodes of evdev: from 1, Q, A and Z to the right.
ROWS = range(10, 22), range(24, 36), range(38, 49), range(52, 62)


class Names(ctypes.Structure):
    _fields_ = [(name, ctypes.c_char_p) for name in ("rules", "model", "layout", "variant", "options")]


def keys(layout, level):
    """Rows of the characters on the keys, "" where a key has none."""
    xkb = ctypes.CDLL(LIBRARY)
    xkb.xkb_context_new.restype = xkb.xkb_keymap_new_from_names.restype = ctypes.c_void_p
    xkb.xkb_keymap_new_from_names.argtypes = ctypes.c_void_p, ctypes.POINTER(Names), ctypes.c_int
    pointer = ctypes.POINTER(ctypes.c_uint32)
    xkb.xkb_keymap_key_get_syms_by_level.argtypes = (
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(pointer)
    )  # fmt: skip
    names = Names(b"evdev", b"pc105", layout.encode(), b"", None)
    keymap = xkb.xkb_keymap_new_from_names(xkb.xkb_context_new(0), ctypes.byref(names), 0)
    rows = []
    for row in ROWS:
        characters = []
        for key in row:
            symbols = pointer()
            n = xkb.xkb_keymap_key_get_syms_by_level(keymap, key, 0, level, ctypes.byref(symbols))
            characters.append(chr(xkb.xkb_keysym_to_utf32(symbols[0])) if n == 1 else "\0")
        rows.append(characters)
    return rows


@pytest.mark.skipif(
    LIBRARY is None or not SYMBOLS.is_dir(), reason="no libxkbcommon or no xkeyboard-config on this machine"
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_are_where_the_layout_has_them(layout):
    for i, row in enumerate(LAYOUTS[layout]):
        for ours, theirs in zip(row.split(), keys(layout, i // 4)[i % 4], strict=False):
            assert ours == (theirs if has_place(theirs) else "-"), (row, theirs)


def has_place(character):
    """Letters and marks; no ligatures (ﻻ) and ordinals (º), none of the vowel signs and marks of Arabic, no sara am."""
    if unicodedata.name(character, "").startswith("DEVANAGARI LETTER"):
        return True
    kept = unicodedata.category(character) in ("Ll", "Lu", "Lo", "Mn", "Mc")
    is_arabic_mark = unicodedata.category(character) == "Mn" and "ARABIC" in unicodedata.name(character)
    return kept and not is_arabic_mark and unicodedata.normalize("NFKC", character) == character


def test_every_letter_of_a_layout_has_a_place_once():
    for layout, rows in LAYOUTS.items():
        found = [key for row in rows for key in row.split() if key != "-"]
        assert len(found) == len(set(found)), layout
        assert {len(rows)} <= {4, 8}
    assert set(LAYOUT_OF.values()) == set(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_neighbours_are_mutual(layout):
    near = neighbours(layout)
    assert all(key in near[other] and other != key for key, others in near.items() for other in others)
