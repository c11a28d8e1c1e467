"""What every test shares: a clean environment and reproducible Hypothesis runs.

``TAZZA_FULL=1`` (set by ``.ci/run --full``) asks for large counts and fresh random examples; without it every run
draws the same examples, so that a red test is red again.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

FULL = os.environ.get("TAZZA_FULL") == "1"

_KEPT = ("TAZZA_FULL", "TAZZA_COMPILE", "TAZZA_INTEROP", "TAZZA_CUDNN")

# A developer's own settings must not decide what the tests see.
for _name in [name for name in os.environ if name.startswith("TAZZA_") and name not in _KEPT]:
    del os.environ[_name]

settings.register_profile(
    "tazza",
    deadline=None,  # a slow example is the machine's matter; pytest-timeout bounds the whole test
    derandomize=not FULL,
    max_examples=300 if FULL else 50,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tazza")
