"""Pictures are rendered from a scenario, small, and the same every time."""

import pytest

from sim import pictures
from sim.forms import Unreadable

SCENARIO = """
name: small
duration: 20s
workload: {open_loop: {rate: 4/s}}
"""
QUICK = ("timeline", "metastability", "heat", "fits")
MANY = ("load", "pareto", "comparison")  # of many runs


def rendered_twice(folder, what):
    (folder / "small.yaml").write_text(SCENARIO)
    paths = [folder / "docs" / name for name in ("one.png", "two.png")]
    for path in paths:
        pictures.render(what, folder / "small.yaml", path)
    return [path.read_bytes() for path in paths]


@pytest.mark.parametrize("what", QUICK)
def test_a_picture_is_small_and_the_same_every_time(tmp_path, what):
    one, two = rendered_twice(tmp_path, what)
    assert one.startswith(b"\x89PNG")
    assert len(one) < 120_000
    assert one == two


@pytest.mark.parametrize("what", [MANY[0], *(pytest.param(each, marks=pytest.mark.nightly) for each in MANY[1:])])
def test_a_picture_of_many_runs_is_the_same_every_time(tmp_path, monkeypatch, what):
    for name, few in (("SEEDS", 2), ("PAIRS", 3), ("TRIALS", 2), ("RATES", "2/s,4/s")):
        monkeypatch.setattr(pictures, name, few)
    one, two = rendered_twice(tmp_path, what)
    assert one.startswith(b"\x89PNG")
    assert one == two


def test_every_picture_is_tested():
    assert set(pictures.PICTURES) == {*QUICK, *MANY}


def test_a_broken_scenario_renders_nothing(tmp_path):
    (tmp_path / "broken.yaml").write_text("name: x")
    with pytest.raises(Unreadable, match="duration"):
        pictures.render("timeline", tmp_path / "broken.yaml", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
