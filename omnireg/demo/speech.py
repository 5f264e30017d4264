"""Spoken digits from a small source-filter synthesiser.

A glottal pulse train and white noise are shaped, frame by frame, by formant resonances and
fricative bands that glide between the targets of a word's phonemes.  A `Speaker` fixes pitch,
vocal-tract length, speed, breathiness and background noise, so that held-out speakers are a
real test of generalisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
MAX_SECONDS = 1.0
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

DEEP_HZ = (85.0, 135.0)
HIGH_HZ = (185.0, 260.0)

_FRAME = 512
_HOP = 128
_WINDOW = np.sqrt(np.hanning(_FRAME + 1)[:-1])
_HERTZ = np.fft.rfftfreq(_FRAME, 1 / SAMPLE_RATE)

# Milliseconds, three formants in Hz, voicing gain, noise gain, centre of the noise band in Hz.
_PHONEMES: dict[str, tuple[float, float, float, float, float, float, float]] = {
    "z": (90, 280, 1700, 2600, 0.35, 0.30, 5200),
    "s": (110, 300, 1700, 2600, 0.0, 0.50, 5600),
    "f": (90, 320, 1200, 2400, 0.0, 0.22, 3400),
    "v": (60, 280, 1150, 2300, 0.45, 0.08, 3200),
    "th": (90, 320, 1400, 2500, 0.0, 0.16, 6400),
    "t_stop": (40, 300, 1700, 2600, 0.0, 0.0, 4500),
    "t": (45, 300, 1700, 2600, 0.0, 0.55, 4500),
    "k_stop": (45, 300, 1900, 2500, 0.0, 0.0, 2200),
    "k": (35, 300, 1900, 2500, 0.0, 0.45, 2200),
    "r": (80, 340, 1150, 1600, 0.75, 0.0, 3000),
    "w": (80, 310, 700, 2250, 0.70, 0.0, 3000),
    "n": (90, 260, 1400, 2350, 0.50, 0.0, 3000),
    "i": (150, 280, 2250, 2950, 1.0, 0.0, 3000),
    "ih": (110, 400, 1950, 2550, 1.0, 0.0, 3000),
    "e": (110, 540, 1820, 2500, 1.0, 0.0, 3000),
    "uh": (120, 620, 1220, 2500, 1.0, 0.0, 3000),
    "a": (140, 730, 1150, 2450, 1.0, 0.0, 3000),
    "ao": (150, 560, 860, 2400, 1.0, 0.0, 3000),
    "o": (110, 480, 900, 2400, 1.0, 0.0, 3000),
    "u": (160, 310, 880, 2250, 1.0, 0.0, 3000),
}

_SOUNDS: tuple[tuple[str, ...], ...] = (
    ("z", "ih", "r", "o", "u"),
    ("w", "uh", "n"),
    ("t_stop", "t", "u"),
    ("th", "r", "i"),
    ("f", "ao", "r"),
    ("f", "a", "ih", "v"),
    ("s", "ih", "k_stop", "k", "s"),
    ("s", "e", "v", "uh", "n"),
    ("e", "i", "t_stop", "t"),
    ("n", "a", "ih", "n"),
)


@dataclass(frozen=True)
class Speaker:
    """The voice and the recording conditions of one synthetic speaker."""

    pitch: float
    tract: float
    speed: float
    breath: float
    fall: float
    noise: float

    @property
    def register(self) -> str:
        """Whether the voice is ``deep`` or ``high``."""
        return "deep" if self.pitch < (DEEP_HZ[1] + HIGH_HZ[0]) / 2 else "high"


def random_speaker(rng: np.random.Generator) -> Speaker:
    """Draw a speaker; high voices tend to have shorter vocal tracts, as people do."""
    low, high = DEEP_HZ if rng.random() < 0.5 else HIGH_HZ
    pitch = float(rng.uniform(low, high))
    return Speaker(
        pitch=pitch,
        tract=float(0.84 + 0.3 * (pitch - 85) / 175 + rng.uniform(-0.03, 0.03)),
        speed=float(rng.uniform(0.85, 1.3)),
        breath=float(rng.uniform(0.0, 0.06)),
        fall=float(rng.uniform(-0.1, 0.3)),
        noise=float(10 ** rng.uniform(-3.0, -1.8)),
    )


def say(digit: int, speaker: Speaker, rng: np.random.Generator) -> NDArray[np.float32]:
    """Synthesise one digit as a mono waveform at `SAMPLE_RATE`, at most `MAX_SECONDS` long."""
    track = _track(digit, speaker, rng)
    frames = track.shape[0]
    length = (frames - 1) * _HOP + _FRAME
    tract = _formants(track, speaker)
    pulses = _spectra(_pulses(length, frames, speaker, rng), frames)
    hiss = _spectra(rng.standard_normal(length), frames)
    wave = _overlap_add(pulses * tract + hiss * (_fricative(track) + speaker.breath * tract))
    wave = wave[_FRAME // 2 : _FRAME // 2 + int(MAX_SECONDS * SAMPLE_RATE)]
    wave = wave / (np.abs(wave).max() + 1e-9) * rng.uniform(0.4, 0.9)
    wave = wave + speaker.noise * rng.standard_normal(wave.size)
    return np.asarray(wave, np.float32)


def _track(digit: int, speaker: Speaker, rng: np.random.Generator) -> NDArray[np.float64]:
    """Targets per frame: three formants, voicing, noise gain, noise centre; smoothed in time."""
    rows: list[NDArray[np.float64]] = []
    for name in _SOUNDS[digit]:
        milliseconds, *targets = _PHONEMES[name]
        milliseconds *= rng.uniform(0.85, 1.15) / speaker.speed
        count = max(2, round(milliseconds / 1000 * SAMPLE_RATE / _HOP))
        jittered = np.array(targets)
        jittered[:3] *= rng.uniform(0.96, 1.04, 3)
        rows.append(np.tile(jittered, (count, 1)))
    track = np.concatenate([_pause(rows[0][0], int(rng.integers(1, 10))), *rows])
    track = np.concatenate([track, _pause(rows[-1][-1], 4)])
    kernel = np.hanning(7)[1:-1]
    kernel /= kernel.sum()
    padded = np.pad(track, ((2, 2), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel, "valid") for column in padded.T], axis=1)


def _pause(target: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Frames with the resonances of `target` and no sound source."""
    frames = np.tile(target, (count, 1))
    frames[:, 3:5] = 0
    return frames


def _pulses(
    length: int, frames: int, speaker: Speaker, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Glottal pulses with a falling pitch contour and a little jitter."""
    time = np.linspace(0, 1, length)
    wobble = np.interp(time, np.linspace(0, 1, frames), rng.normal(0, 0.01, frames))
    pitch = speaker.pitch * (1 + speaker.fall * (0.5 - time) + wobble)
    phase = np.cumsum(pitch / SAMPLE_RATE)
    train = np.zeros(length)
    train[1:] = np.diff(np.floor(phase)) * np.sqrt(SAMPLE_RATE / pitch[1:])
    return train


def _formants(track: NDArray[np.float64], speaker: Speaker) -> NDArray[np.float64]:
    """Magnitude response of the vocal tract, one row per frame, scaled by the voicing."""
    response = np.ones((track.shape[0], _HERTZ.size))
    centres = np.concatenate([track[:, :3], np.full((track.shape[0], 1), 3500.0)], axis=1)
    for column, width in zip(centres.T * speaker.tract, (70, 100, 150, 250), strict=True):
        square = column[:, None] ** 2
        response *= square**2 / ((square - _HERTZ**2) ** 2 + (width * _HERTZ) ** 2)
    tilt = 1 / (1 + (_HERTZ / 500) ** 1.2)
    return np.asarray(np.sqrt(response) * tilt * track[:, 3:4])


def _fricative(track: NDArray[np.float64]) -> NDArray[np.float64]:
    """Magnitude of the noise band, one row per frame."""
    distance = (_HERTZ - track[:, 5:6]) / (0.3 * track[:, 5:6])
    return np.asarray(track[:, 4:5] * np.exp(-0.5 * distance**2))


def _spectra(signal: NDArray[np.float64], frames: int) -> NDArray[np.complex128]:
    """Short-time spectra, one row per frame."""
    return np.asarray(np.fft.rfft(sliding_window_view(signal, _FRAME)[::_HOP][:frames] * _WINDOW))


def _overlap_add(spectra: NDArray[np.complex128]) -> NDArray[np.float64]:
    """The waveform of windowed, overlapping short-time spectra."""
    shaped = np.fft.irfft(spectra, _FRAME) * _WINDOW
    blocks = shaped.reshape(len(shaped), _FRAME // _HOP, _HOP)
    out = np.zeros((len(shaped) + _FRAME // _HOP - 1, _HOP))
    for shift in range(_FRAME // _HOP):
        out[shift : shift + len(shaped)] += blocks[:, shift]
    return out.reshape(-1)
