"""Every call of the contract, with the access it needs and the quota it is charged to.

A method that is not in this table needs an admin key, so that a new one is never open by mistake. Tests fail until the
table has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum


class Access(Enum):
    """The access that a call needs.

    OPEN: none, unless the operator closed it. USER: any caller. ADMIN: an admin, or anyone if keys are off.
    ADMIN_KEY: an admin key, so nobody has it if keys are off.
    """

    OPEN = "open"
    USER = "user"
    ADMIN = "admin"
    ADMIN_KEY = "admin key"


class Group(Enum):
    """Calls that share a quota. LONG is charged in addition to another group, for long recordings."""

    TRANSCRIBE = "transcribe"
    LONG = "long"
    BATCH = "batch"
    STREAM = "stream"
    JOBS = "jobs"
    CONFIG = "config"
    HEALTH = "health"
    RIVA = "riva"
    GOOGLE = "google"


@dataclass(frozen=True)
class Rule:
    """The rule for a method.

    is_long_lived: it has no time limit. is_free: it is charged to no quota, so that health probes depend neither on a
    quota nor on its store. takes_slot: it counts towards the calls that the server has at once.
    """

    access: Access
    group: Group
    is_long_lived: bool = False
    is_free: bool = False
    takes_slot: bool = False


# The services that an operator can close, by their name in the setting.
OPEN_SERVICES: Mapping[str, tuple[str, ...]] = {
    "health": ("grpc.health.v1.Health",),
    "reflection": ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"),
    "server": ("typeless.v1.ServerService",),
}

_GOOGLE = Rule(Access.USER, Group.GOOGLE)
_SPEECH = {"v1": "LongRunningRecognize", "v1p1beta1": "LongRunningRecognize", "v2": "BatchRecognize"}
_OPERATIONS = ("GetOperation", "ListOperations", "CancelOperation", "DeleteOperation")

RULES: Mapping[str, Rule] = {
    **{f"/google.cloud.speech.{version}.Speech/Recognize": replace(_GOOGLE, takes_slot=True) for version in _SPEECH},
    **{f"/google.cloud.speech.{version}.Speech/{method}": _GOOGLE for version, method in _SPEECH.items()},
    **{
        f"/google.cloud.speech.{version}.Speech/StreamingRecognize": replace(_GOOGLE, is_long_lived=True)
        for version in _SPEECH
    },
    **{f"/google.longrunning.Operations/{method}": _GOOGLE for method in _OPERATIONS},
    "/google.longrunning.Operations/WaitOperation": replace(_GOOGLE, is_long_lived=True),
    "/typeless.v1.TranscriptionService/Transcribe": Rule(Access.USER, Group.TRANSCRIBE, takes_slot=True),
    "/typeless.v1.TranscriptionService/BatchTranscribe": Rule(Access.USER, Group.BATCH, takes_slot=True),
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
    "/typeless.v1.AdminService/ListUsage": Rule(Access.ADMIN_KEY, Group.CONFIG),
    "/typeless.v1.ServerService/GetServerInfo": Rule(Access.OPEN, Group.CONFIG),
    "/nvidia.riva.asr.RivaSpeechRecognition/Recognize": Rule(Access.USER, Group.RIVA, takes_slot=True),
    "/nvidia.riva.asr.RivaSpeechRecognition/StreamingRecognize": Rule(Access.USER, Group.RIVA, is_long_lived=True),
    "/nvidia.riva.asr.RivaSpeechRecognition/GetRivaSpeechRecognitionConfig": Rule(Access.USER, Group.CONFIG),
    "/grpc.health.v1.Health/Check": Rule(Access.OPEN, Group.HEALTH, is_free=True),
    "/grpc.health.v1.Health/List": Rule(Access.OPEN, Group.HEALTH, is_free=True),
    "/grpc.health.v1.Health/Watch": Rule(Access.OPEN, Group.HEALTH, is_long_lived=True, is_free=True),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Rule(Access.OPEN, Group.HEALTH, is_long_lived=True),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule(
        Access.OPEN, Group.HEALTH, is_long_lived=True
    ),
}


class Rules(dict[str, Rule]):
    """From method to rule; the strictest for a method without one."""

    def __missing__(self, method: str) -> Rule:
        return Rule(Access.ADMIN_KEY, Group.CONFIG)


def rules(open_services: Iterable[str] = OPEN_SERVICES) -> Rules:
    """Return the table with only these services open (names in `OPEN_SERVICES`); the others need a user."""
    still_open = {service for word in open_services for service in OPEN_SERVICES[word]}
    return Rules({method: rule if _service(method) in still_open else _closed(rule) for method, rule in RULES.items()})


def _service(method: str) -> str:
    return method.split("/")[1]


def _closed(rule: Rule) -> Rule:
    return replace(rule, access=Access.USER) if rule.access is Access.OPEN else rule
