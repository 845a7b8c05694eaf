"""Every call of the contract, who may make it, and which quota it is charged to.

A method that is not in this table takes an admin key, so that a new one is never open by mistake; the tests fail until
it is classified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum


class Access(Enum):
    """Who may make a call.

    OPEN: anyone, unless the operator closed it. USER: any caller. ADMIN: admins, and everyone where keys are off.
    ADMIN_KEY: those with an admin key, and so nobody where keys are off.
    """

    OPEN = "open"
    USER = "user"
    ADMIN = "admin"
    ADMIN_KEY = "admin key"


class Group(Enum):
    """What shares a quota. LONG is charged on top of another group, by recordings that are long."""

    TRANSCRIBE = "transcribe"
    LONG = "long"
    BATCH = "batch"
    STREAM = "stream"
    JOBS = "jobs"
    CONFIG = "config"
    HEALTH = "health"


@dataclass(frozen=True)
class Rule:
    """How a method is treated. is_long_lived: it lasts as long as its caller likes, and has no time limit of ours.

    is_free: it is charged to no quota, so that a probe never fails for want of one, or of the store of quotas.
    """

    access: Access
    group: Group
    is_long_lived: bool = False
    is_free: bool = False


# The services that an operator can close, by the word the setting uses for them.
OPEN_SERVICES: Mapping[str, tuple[str, ...]] = {
    "health": ("grpc.health.v1.Health",),
    "reflection": ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"),
    "server": ("typeless.v1.ServerService",),
}

RULES: Mapping[str, Rule] = {
    "/typeless.v1.TranscriptionService/Transcribe": Rule(Access.USER, Group.TRANSCRIBE),
    "/typeless.v1.TranscriptionService/BatchTranscribe": Rule(Access.USER, Group.BATCH),
    "/typeless.v1.TranscriptionService/StreamTranscribe": Rule(Access.USER, Group.STREAM, is_long_lived=True),
    "/typeless.v1.JobsService/SubmitJob": Rule(Access.USER, Group.JOBS),
    "/typeless.v1.JobsService/GetJob": Rule(Access.USER, Group.JOBS),
    "/typeless.v1.JobsService/ListJobs": Rule(Access.USER, Group.JOBS),
    "/typeless.v1.JobsService/CancelJob": Rule(Access.USER, Group.JOBS),
    "/typeless.v1.JobsService/DeleteJob": Rule(Access.USER, Group.JOBS),
    "/typeless.v1.JobsService/WatchJob": Rule(Access.USER, Group.JOBS, is_long_lived=True),
    "/typeless.v1.JobsService/GetQueueStats": Rule(Access.USER, Group.JOBS),
    "/typeless.v1.UploadService/UploadAudio": Rule(Access.USER, Group.JOBS, is_long_lived=True),
    "/typeless.v1.UploadService/GetUpload": Rule(Access.USER, Group.JOBS),
    "/typeless.v1.ModelService/ListModels": Rule(Access.USER, Group.CONFIG),
    "/typeless.v1.ModelService/LoadModel": Rule(Access.ADMIN, Group.CONFIG),
    "/typeless.v1.ModelService/UnloadModel": Rule(Access.ADMIN, Group.CONFIG),
    "/typeless.v1.AdminService/CreateApiKey": Rule(Access.ADMIN_KEY, Group.CONFIG),
    "/typeless.v1.AdminService/ListApiKeys": Rule(Access.ADMIN_KEY, Group.CONFIG),
    "/typeless.v1.AdminService/RevokeApiKey": Rule(Access.ADMIN_KEY, Group.CONFIG),
    "/typeless.v1.AdminService/GetConfig": Rule(Access.ADMIN_KEY, Group.CONFIG),
    "/typeless.v1.AdminService/UpdateRateLimit": Rule(Access.ADMIN_KEY, Group.CONFIG),
    "/typeless.v1.ServerService/GetServerInfo": Rule(Access.OPEN, Group.CONFIG),
    "/grpc.health.v1.Health/Check": Rule(Access.OPEN, Group.HEALTH, is_free=True),
    "/grpc.health.v1.Health/List": Rule(Access.OPEN, Group.HEALTH, is_free=True),
    "/grpc.health.v1.Health/Watch": Rule(Access.OPEN, Group.HEALTH, is_long_lived=True, is_free=True),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Rule(Access.OPEN, Group.HEALTH, is_long_lived=True),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(
        Access.OPEN, Group.HEALTH, is_long_lived=True
    ),
}


class Rules(dict[str, Rule]):
    """Method to rule; the strictest for a method that nobody classified."""

    def __missing__(self, method: str) -> Rule:
        return Rule(Access.ADMIN_KEY, Group.CONFIG)


def rules(open_services: Iterable[str] = OPEN_SERVICES) -> Rules:
    """The table with only these services open (words of `OPEN_SERVICES`); the others need a user."""
    still_open = {service for word in open_services for service in OPEN_SERVICES[word]}
    return Rules({method: rule if _service(method) in still_open else _closed(rule) for method, rule in RULES.items()})


def _service(method: str) -> str:
    return method.split("/")[1]


def _closed(rule: Rule) -> Rule:
    return replace(rule, access=Access.USER) if rule.access is Access.OPEN else rule
