from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ippo_lightning.report.display import number, percent, plain, points
from ippo_lightning.storage.untrusted_text import cut, visible_text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, None, "0.5", [0.5], 10**400])
def test_what_is_no_finite_number_is_missing(value):
    assert number(value) is None


def test_a_finite_number_stays():
    assert number(3) == 3.0
    assert number(-0.25) == -0.25


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\x00b", "a␀b"),
        ("\x1b[31mred", "␛[31mred"),
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("\x7f", "␡"),
        ("\x85", "⟨U+0085⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("one\ntwo", "one↵\ntwo"),
        ("a" + "\u0301" * 5, "a" + "\u0301" * 3 + "⟨U+0301⟩" * 2),
    ],
)
def test_characters_that_hide_or_command_become_visible(hostile, shown):
    assert visible_text(hostile) == shown


def test_ordinary_writing_of_any_language_is_left_alone():
    text = "7+12=19; naïve Größe, שלום, 日本, ∑ ≤"
    assert visible_text(text) == text


def test_settings_keep_their_lines():
    assert visible_text("a:\n\tb\r", multiline=True) == "a:\n\tb␍"


@given(st.text(alphabet=st.characters()))
def test_nothing_shown_can_control_a_terminal_or_break_the_encoding(text):
    shown = visible_text(text)
    shown.encode("utf-8")
    assert all(character == "\n" or unicodedata.category(character) not in {"Cc", "Cf", "Cs"} for character in shown)


def test_a_long_text_is_cut_and_says_so():
    assert cut("x" * 1_000_000, 10) == "x" * 10 + "… (+999,990 characters)"
    assert cut("short", 10) == "short"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0228, "+2.3"), (-0.239, "\N{MINUS SIGN}23.9"), (0.0001, "±0.0"), (-0.0001, "±0.0"), (None, "\N{EN DASH}")],
)
def test_differences_carry_their_sign(value, shown):
    assert points(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.684, "1.68"),
        (0, "0"),
        (1.0, "1"),
        (153600.0, "153,600"),
        (0.0341, "0.0341"),
        (-2e-5, "\N{MINUS SIGN}0.0000200"),
        (4.756e-4, "0.000476"),
        (9.75e-7, "9.75 \N{MULTIPLICATION SIGN} 10⁻⁷"),
        (-1.234e12, "\N{MINUS SIGN}1.23 \N{MULTIPLICATION SIGN} 10¹²"),
    ],
)
def test_plain_numbers_have_three_digits(value, shown):
    assert plain(value) == shown


def test_fractions_are_shown_in_percent():
    assert percent(0.923) == "92.3"
    assert percent(None) == "\N{EN DASH}"
