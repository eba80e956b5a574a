"""Pictures are rendered from a scenario, small, and the same every time."""

import pytest

from sim import pictures
from sim.forms import Unreadable

SCENARIO = """
name: small
duration: 20s
workload: {open_loop: {rate: 4/s}}
"""


@pytest.mark.parametrize("what", pictures.PICTURES)
def test_a_picture_is_small_and_the_same_every_time(tmp_path, what):
    (tmp_path / "small.yaml").write_text(SCENARIO)
    paths = [tmp_path / "docs" / name for name in ("one.png", "two.png")]
    for path in paths:
        pictures.render(what, tmp_path / "small.yaml", path)
    one, two = (path.read_bytes() for path in paths)
    assert one.startswith(b"\x89PNG")
    assert len(one) < 200_000
    assert one == two


def test_a_broken_scenario_renders_nothing(tmp_path):
    (tmp_path / "broken.yaml").write_text("name: x")
    with pytest.raises(Unreadable, match="duration"):
        pictures.render("timeline", tmp_path / "broken.yaml", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
