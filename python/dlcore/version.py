"""The version, as installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("dlcore")
except PackageNotFoundError:  # run from a checkout without installing
    VERSION = "0.0.0+checkout"
