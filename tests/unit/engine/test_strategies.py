from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from typeless_grpc.audio.vad import Span
from typeless_grpc.engine.decoding.merge import PartialTranscript, merge
from typeless_grpc.engine.interface import Chunking
from typeless_grpc.engine.planning.cuts import CutPolicy
from typeless_grpc.engine.planning.speech import DetectedSpeech
from typeless_grpc.engine.planning.strategies import FIXED_WINDOW_S, Plan, plan_recording
from typeless_grpc.speech.transcript import Segment, Word

RATE = 16_000
POLICY = CutPolicy(context_s=0.3)


def spans(*seconds: tuple[float, float]) -> list[Span]:
    return [Span(round(start_s * RATE), round(end_s * RATE)) for start_s, end_s in seconds]


def plan_of(chunking: Chunking, *seconds: tuple[float, float], audio_s: float, policy: CutPolicy = POLICY) -> Plan:
    return plan_recording(chunking, DetectedSpeech(tuple(spans(*seconds))), round(audio_s * RATE), policy)


@pytest.mark.parametrize(
    ("audio_s", "used"),
    [(1.0, Chunking.WHOLE), (30.0, Chunking.WHOLE), (30.1, Chunking.HYBRID), (3600.0, Chunking.HYBRID)],
)
def test_auto_chooses_by_length_and_reports_its_choice(audio_s: float, used: Chunking):
    assert plan_of(Chunking.AUTO, (0.2, audio_s - 0.2), audio_s=audio_s).chunking is used


@pytest.mark.parametrize("chunking", Chunking)
@pytest.mark.parametrize("audio_s", [0.1, 10.0, 100.0])
def test_silence_has_no_chunks(chunking: Chunking, audio_s: float):
    assert plan_of(chunking, audio_s=audio_s).chunks == ()


def test_only_whole_decodes_chunks_sequentially():
    long = [(i * 10.0, i * 10.0 + 8.0) for i in range(6)]
    assert plan_of(Chunking.WHOLE, *long, audio_s=60.0).is_sequential
    assert not plan_of(Chunking.WHOLE, (0.0, 5.0), audio_s=5.0).is_sequential
    for chunking in (Chunking.FIXED, Chunking.VAD, Chunking.HYBRID):
        assert not plan_of(chunking, *long, audio_s=60.0).is_sequential


def test_fixed_windows_are_of_one_length_and_overlap():
    chunks = plan_of(Chunking.FIXED, (0.0, 100.0), audio_s=100.0).chunks
    assert [chunk.window_s for chunk in chunks[:-1]] == [FIXED_WINDOW_S] * (len(chunks) - 1)
    assert [a.end - b.start for a, b in itertools.pairwise(chunks)] == [4 * RATE] * (len(chunks) - 1)
    assert chunks[-1].end == 100 * RATE


def test_fixed_windows_without_speech_are_left_out():
    chunks = plan_of(Chunking.FIXED, (1.0, 2.0), (81.0, 82.0), audio_s=100.0).chunks
    assert [round(chunk.start / RATE) for chunk in chunks] == [0, 60, 80]


@pytest.mark.parametrize("chunking", [Chunking.WHOLE, Chunking.VAD, Chunking.HYBRID])
def test_recordings_are_cut_at_pauses(chunking: Chunking):
    chunks = plan_of(chunking, (0.0, 20.0), (22.0, 40.0), (42.0, 60.0), audio_s=60.0).chunks
    assert [(round(chunk.start / RATE), round(chunk.end / RATE)) for chunk in chunks] == [(0, 20), (22, 40), (42, 60)]


def test_chunks_decoded_sequentially_may_fill_the_whole_window():
    lengths = {
        chunking: len(plan_of(chunking, (0.0, 13.0), (14.0, 27.0), audio_s=27.0).chunks) for chunking in Chunking
    }
    assert lengths[Chunking.WHOLE] == lengths[Chunking.AUTO] == 1
    assert lengths[Chunking.VAD] == lengths[Chunking.HYBRID] == 2


def test_hybrid_overlaps_at_cuts_without_a_pause_and_vad_does_not():
    talk = (0.0, 60.0)
    hybrid = plan_of(Chunking.HYBRID, talk, audio_s=60.0)
    assert [hybrid.overlaps(i) for i in range(len(hybrid.chunks))] == [True] * len(hybrid.chunks)
    assert {a.end - b.start for a, b in itertools.pairwise(hybrid.chunks)} == {round(1.5 * RATE)}
    vad = plan_of(Chunking.VAD, talk, audio_s=60.0)
    assert not any(vad.overlaps(i) for i in range(len(vad.chunks)))
    assert all(a.end <= b.start for a, b in itertools.pairwise(vad.chunks))


def test_chunks_fit_the_encoder():
    for chunking in Chunking:
        for chunk in plan_of(chunking, (0.0, 300.0), audio_s=300.0).chunks:
            assert chunk.window_s <= 30.0


# The seconds of speech, the words per second, and the seconds of the pause after it.
TALK = st.lists(st.tuples(st.floats(0.4, 70.0), st.floats(2.0, 4.0), st.floats(0.2, 12.0)), max_size=5)


def recording(talk: list[tuple[float, float, float]]) -> tuple[list[Span], int, list[Word]]:
    """The speech, the length in samples, and the spoken words, none across a pause."""
    now_s, found, words = 0.5, list[tuple[float, float]](), list[Word]()
    for length_s, rate, pause_s in talk:
        starts = [now_s + i / rate for i in range(max(1, int(length_s * rate)))]
        words += [Word(f"w{len(words) + i}", start_s, start_s + 0.8 / rate, 0.9) for i, start_s in enumerate(starts)]
        found.append((now_s, now_s + length_s))
        now_s += length_s + pause_s
    return spans(*found), round(now_s * RATE), words


def recognized(plan: Plan, words: list[Word]) -> tuple[Segment, ...]:
    """The merged transcripts of a model that recognizes the words that are whole in a chunk."""
    stretches = []
    for chunk in plan.chunks:
        start_s, end_s = chunk.start / RATE, chunk.end / RATE
        inside = tuple(word for word in words if start_s <= word.start_s and word.end_s <= end_s)
        rows = [inside[i : i + 6] for i in range(0, len(inside), 6)]
        segments = tuple(
            Segment(row[0].start_s, row[-1].end_s, " ".join(w.text for w in row), "en", 0.9, 0.1, row) for row in rows
        )
        stretches.append(PartialTranscript(start_s, end_s, segments))
    return merge(stretches)


@pytest.mark.parametrize("chunking", Chunking)
@settings(max_examples=40, deadline=None)
@given(talk=TALK, longest_s=st.sampled_from([24.0, 6.0, 1.5]))
def test_no_strategy_loses_or_doubles_words(
    chunking: Chunking, talk: list[tuple[float, float, float]], longest_s: float
):
    speech, n_samples, words = recording(talk)
    plan = plan_recording(chunking, DetectedSpeech(tuple(speech)), n_samples, replace(POLICY, longest_s=longest_s))
    kept = [word.text for segment in recognized(plan, words) for word in segment.words]
    everything = [word.text for word in words]
    assert len(kept) == len(set(kept))
    assert [text for text in everything if text in set(kept)] == kept
    # Only a cut in the middle of a word, without overlap, can cost it.
    n_hard_cuts = sum(a.end >= b.start for a, b in itertools.pairwise(plan.chunks))
    is_merged = plan.chunking in (Chunking.FIXED, Chunking.HYBRID) and longest_s >= 6.0
    assert len(everything) - len(kept) <= (0 if is_merged else n_hard_cuts)
    assert all(0 <= chunk.start < chunk.end <= n_samples for chunk in plan.chunks)
