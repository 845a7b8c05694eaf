"""Wires the services for clients of other speech services."""

from __future__ import annotations

from collections.abc import Iterator

from typeless_grpc.app.reloading import Reloads
from typeless_grpc.config import Settings
from typeless_grpc.engine.admission import Admission
from typeless_grpc.server import Service
from typeless_grpc.servicers.compat.options import ModelNames, NamedModels
from typeless_grpc.servicers.google import messages as google
from typeless_grpc.servicers.google.operations import OperationsServicer
from typeless_grpc.servicers.google.recordings import Configurations
from typeless_grpc.servicers.google.servicer import SpeechServicer
from typeless_grpc.servicers.jobs import JobsServicer
from typeless_grpc.servicers.models import Usable
from typeless_grpc.servicers.recordings import RecordingTranscriber
from typeless_grpc.servicers.riva import messages as riva
from typeless_grpc.servicers.riva.servicer import RivaServicer
from typeless_grpc.servicers.streaming import StreamService

POOLS = (riva.POOL, google.POOL)
SPEECH_SERVICES = (RivaServicer.NAME, *(version.service.full_name for version in google.VERSIONS))


def compat_services(
    settings: Settings,
    reloads: Reloads,
    *,
    admission: Admission,
    recordings: RecordingTranscriber,
    streams: StreamService,
    models: Usable,
    jobs: JobsServicer | None,
) -> Iterator[Service]:
    """Yield the services that the settings enable. jobs: None on a server without jobs."""
    if settings.riva_enabled:
        of_riva = NamedModels(models, _riva_names(settings))
        reloads.follow(_riva_names, of_riva.use)
        yield RivaServicer(admission=admission, recordings=recordings, streams=streams, models=of_riva)
    if settings.google_enabled:
        of_google = NamedModels(models, _google_names(settings))
        reloads.follow(_google_names, of_google.use)
        operations = OperationsServicer(jobs)
        for version in google.VERSIONS:
            yield SpeechServicer(
                version,
                admission=admission,
                recordings=recordings,
                streams=streams,
                configurations=Configurations(of_google),
                operations=operations,
            )
        yield operations


def _riva_names(settings: Settings) -> ModelNames:
    return ModelNames(models=settings.riva_models, refuses_unknown=settings.riva_unknown_models == "refuse")


def _google_names(settings: Settings) -> ModelNames:
    return ModelNames(models=settings.google_models, refuses_unknown=settings.google_unknown_models == "refuse")
