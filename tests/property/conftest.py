"""Hypothesis profiles: `dev` (default), `ci` (where CI is set) and `nightly`; HYPOTHESIS_PROFILE chooses another."""

import os

from hypothesis import HealthCheck, settings

# on two shared cores an example's time says nothing
_CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("dev", max_examples=50, **_CALM)
# the same examples for everyone: a pull request fails for what it changed
settings.register_profile("ci", max_examples=100, derandomize=True, database=None, print_blob=True, **_CALM)
# where CI is set, the base profile is derandomised and without a database; a night explores and remembers
settings.register_profile(
    "nightly",
    parent=settings.get_profile("default"),
    max_examples=2_000,
    derandomize=False,
    print_blob=True,
    **_CALM,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
