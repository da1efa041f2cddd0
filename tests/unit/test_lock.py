# SPDX-License-Identifier: Apache-2.0
"""requirements.lock says the same as pyproject.toml, and can be used with any package index."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PIN = re.compile(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", re.MULTILINE)


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked():
    return {canonical(name): version for name, version in PIN.findall(LOCK)}


def declared():
    project = PROJECT["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["dev"]]


def test_every_dependency_is_pinned_and_locked_as_it_is_pinned():
    versions = locked()
    for requirement in declared():
        match = PIN.fullmatch(requirement)
        assert match, f"{requirement}: pin it with =="
        name, version = match.groups()
        assert versions.get(canonical(name)) == version, f"{requirement}: run `make lock`"


def test_the_builder_of_an_editable_install_is_locked():
    """`make venv` installs the project without isolation, so without a download."""
    (requirement,) = PROJECT["build-system"]["requires"]
    name, _, least = requirement.partition(">=")
    assert int(locked()[name].split(".")[0]) >= int(least)


def test_every_package_has_hashes():
    for block in re.split(r"\n(?=[a-z0-9])", LOCK.strip()):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block.splitlines()[0]


def test_no_place_to_download_from_is_named():
    for sign in ("://", "--index-url", "--extra-index-url", "--find-links", " @ "):
        assert sign not in LOCK
