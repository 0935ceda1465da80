"""Hypothesis draws the same examples in CI every time; elsewhere it goes on looking."""

import os

from hypothesis import settings

pytest_plugins = ["fixtures_cli"]  # a folder and a caller for tests of the command line

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
