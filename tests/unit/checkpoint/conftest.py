# SPDX-License-Identifier: Apache-2.0
"""The small valid run of the configuration's tests."""

from tests.unit.config.conftest import make_run  # noqa: F401  a fixture
