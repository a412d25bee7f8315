"""Pictures that everybody can read: colours that are apart, one line where several coincide."""

import itertools
from typing import Any

import numpy as np
import pytest

from experiments import conditions, figures
from experiments.conditions import Case

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
VISIONS = {
    "any": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
APART = 10
"""CIELAB distance that is plain beside each other; a just noticeable one is about 2."""


DRAWN = [row for row in conditions.DEFENCES.values() if row.drawn]


def seen(color: str, vision: str) -> np.ndarray:
    """The colour in CIELAB, as somebody sees it."""
    srgb = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(VISIONS[vision]) @ linear, 0, 1)
    x, y, z = np.cbrt(TO_XYZ @ linear / TO_XYZ.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_are_apart_for_any_colour_vision(vision: str) -> None:
    for one, other in itertools.combinations(DRAWN, 2):
        distance = np.linalg.norm(seen(one.color, vision) - seen(other.color, vision))
        assert distance > APART, (one.label, other.label, distance)


def test_colours_that_look_alike_to_some_would_be_found() -> None:
    # the lists' and MixNN's of before
    old = [seen(color, "deuteranopia") for color in ("#00798c", "#30638e")]
    assert np.linalg.norm(old[0] - old[1]) < 25
    green, red = (seen(color, "deuteranopia") for color in ("#7a9a01", "#c67700"))
    assert np.linalg.norm(green - red) < np.linalg.norm(
        seen("#7a9a01", "any") - seen("#c67700", "any")
    )


def test_no_two_defences_share_marker_and_line() -> None:
    rows = DRAWN
    assert len({(row.markers[0], row.line) for row in rows}) == len(rows)


def test_lines_that_coincide_are_one_under_all_names() -> None:
    names = ("none", "shuffle", "mixnn", "noisy")
    cases = [Case(name, "passive", (("sigma", 0.1),) if name == "noisy" else ()) for name in names]
    line = np.linspace(20, 80, 5)
    lines = dict(zip(cases, (line, line + 0.2, line - 0.2, line + 5), strict=True))
    groups = figures.alike(lines)
    assert groups == [cases[:3], cases[3:]]
    name = " ".join(figures._name(groups[0]).split())
    assert name == "plain FL = shuffle (control) = MixNN"
    # MixNN is what a reader looks for, dashed and on top
    leader = figures._leader(groups[0])
    assert leader.defence == "mixnn"
    styles: Any = [figures._style(case, {key: {} for key in cases}) for case in cases]
    assert styles[2]["linestyle"] == "--"
    assert styles[2]["zorder"] > styles[0]["zorder"]


def test_a_line_that_is_not_there_coincides_with_no_other() -> None:
    cases = [Case("none", "passive"), Case("mixnn", "passive")]
    lines = dict(zip(cases, (np.ones(3), np.ones(4)), strict=True))
    assert figures.alike(lines) == [[case] for case in cases]
