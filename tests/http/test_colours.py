"""The colours of states: told apart by everybody, in light and dark, and read on their grounds."""

from __future__ import annotations

import itertools
import re

import pytest
from coloraide import Color

from stepfold.http.pages.render import ICONS
from stepfold.http.pages.static import FILES

CSS = FILES["dashboard.css"][0].decode()
FAR = 10.0
"""CIEDE2000; below 2 people hardly see a difference."""
CONTRAST = 4.5
"""WCAG 2.2 AA for text."""


def colour(name: str, theme: str) -> Color:
    found = re.search(rf"--{name}: light-dark\((#[0-9a-f]+), (#[0-9a-f]+)\)", CSS)
    assert found is not None, name
    return Color(found[1 if theme == "light" else 2])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("eyes", ["", "protan", "deutan", "tritan"])
def test_any_two_states_are_told_apart_by_their_colours(theme: str, eyes: str) -> None:
    seen = {name: colour(name, theme).filter(eyes) if eyes else colour(name, theme) for name in ICONS}
    near = {
        (one, other): round(distance, 1)
        for one, other in itertools.combinations(seen, 2)
        if (distance := seen[one].delta_e(seen[other], method="2000")) < FAR
    }
    assert near == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_of_states_are_read_on_their_grounds(theme: str) -> None:
    faint = {
        (name, ground): round(contrast, 2)
        for name in ICONS
        for ground in (f"{name}-bg", "card", "paper", "sunk")
        if (contrast := colour(name, theme).contrast(colour(ground, theme))) < CONTRAST
    }
    assert faint == {}


def test_no_state_is_told_by_its_colour_alone() -> None:
    assert len(set(ICONS.values())) == len(ICONS)
