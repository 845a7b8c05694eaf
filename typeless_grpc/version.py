"""The version of the software, as in CHANGELOG.md."""

VERSION = "0.1.0"
