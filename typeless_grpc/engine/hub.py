"""The Hugging Face hub, through faster-whisper's own download."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faster_whisper
import faster_whisper.utils
from tqdm.auto import tqdm

from typeless_grpc.disk import READABLE, make_directory
from typeless_grpc.engine.catalog import Progress
from typeless_grpc.errors import SourceUnavailable


class HuggingFaceHub:
    """The hub, with its cache in our data directory."""

    _lock = threading.Lock()

    def names(self) -> Sequence[str]:
        """Return the names of all models that faster-whisper knows."""
        return list(faster_whisper.available_models())

    def cached(self, name: str, cache_dir: Path) -> Path | None:
        """Return the directory of a model that was fetched before, without touching the network."""
        if not cache_dir.is_dir():
            return None
        try:
            found = Path(faster_whisper.download_model(name, local_files_only=True, cache_dir=str(cache_dir)))
        except Exception:  # huggingface_hub raises a family of its own, which changes between its versions
            return None
        return found if (found / "model.bin").is_file() else None

    def fetch(self, name: str, cache_dir: Path, progress: Progress) -> Path:
        """Fetch a model. Raises SourceUnavailable if the hub is unreachable or refuses."""
        make_directory(cache_dir, READABLE)
        try:
            with self._lock, _reporting(progress):
                return Path(faster_whisper.download_model(name, cache_dir=str(cache_dir)))
        except Exception as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SourceUnavailable(why, reason="MODEL_UNAVAILABLE") from error


class _NullFile:
    """A file that discards what is written: the progress bar counts, and is never drawn."""

    def write(self, _text: str) -> None: ...

    def flush(self) -> None: ...


@contextmanager
def _reporting(progress: Progress) -> Iterator[None]:
    """Report bytes as they arrive, by replacing the disabled progress bar that faster-whisper passes to the hub."""

    class Reporter(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.update(file=_NullFile(), disable=False)
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> Any:
            answer = super().update(n)
            if self.unit == "B":
                progress(int(self.n), int(self.total or 0))
            return answer

    silent = faster_whisper.utils.disabled_tqdm
    faster_whisper.utils.disabled_tqdm = Reporter
    try:
        yield
    finally:
        faster_whisper.utils.disabled_tqdm = silent
