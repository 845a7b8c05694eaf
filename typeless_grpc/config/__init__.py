"""The settings of a server, in groups; a file for each group.

A value comes from a flag, else from the environment (`TYPELESS_PORT`), else from a TOML file, else it is the default.
`load` is the only function that reads any of these; everything else is given values.
"""

from typeless_grpc.config.changes import Change, change, described, is_reloadable
from typeless_grpc.config.display import is_secret, public
from typeless_grpc.config.loading import Loaded, load
from typeless_grpc.config.settings import ENV_PREFIX, GROUPS, RENAMED, SECRETS, Settings, group_of, private

__all__ = [
    "ENV_PREFIX",
    "GROUPS",
    "RENAMED",
    "SECRETS",
    "Change",
    "Loaded",
    "Settings",
    "change",
    "described",
    "group_of",
    "is_reloadable",
    "is_secret",
    "load",
    "private",
    "public",
]
