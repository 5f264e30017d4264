"""Pictures, sounds and films out of files."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from omnireg.errors import ConfigError

Array = np.ndarray[Any, Any]


def picture(medium: Any) -> Image.Image:
    """Return a picture in RGB, of an array or of a picture in any mode."""
    found = medium if isinstance(medium, Image.Image) else Image.fromarray(np.asarray(medium))
    return found.convert("RGB")


def film(medium: Any) -> Array:
    """Return a film as (frames, height, width, 3), of frames of any kind."""
    frames = [np.asarray(picture(frame)) for frame in medium]
    if not frames:
        raise ValueError("it has no frames")
    return np.stack(frames)


def read_picture(path: Path) -> Image.Image:
    """Read a picture of any format that Pillow knows.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as exc:
        raise ConfigError(f"cannot read {path} as a picture: {exc}") from exc


def read_sound(path: Path, rate: int) -> Array:
    """Read a WAV file as one waveform of so many samples per second, between -1 and 1.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with wave.open(str(path)) as opened:
            found = opened.getframerate()
            width, channels = opened.getsampwidth(), opened.getnchannels()
            data = opened.readframes(opened.getnframes())
    except (OSError, EOFError, wave.Error) as exc:
        raise ConfigError(
            f"cannot read {path} as a WAV file: {exc}; convert it: ffmpeg -i {path} -ar {rate}"
            " -ac 1 sound.wav"
        ) from exc
    if not data or width not in (1, 2, 4):
        raise ConfigError(f"{path} has no samples of 8, 16 or 32 bits; convert it with ffmpeg")
    samples = np.frombuffer(data, {1: np.uint8, 2: np.int16, 4: np.int32}[width])
    numbers = samples.astype(np.float32) - (128 if width == 1 else 0)
    sound: Array = (numbers / 2.0 ** (8 * width - 1)).reshape(-1, channels).mean(1)
    return (sound if found == rate else _resampled(sound, rate, found)).astype(np.float32)


def _resampled(sound: Array, rate: int, found: int) -> Array:
    from scipy.signal import resample_poly  # takes a second to import, and few sounds need it

    made: Array = resample_poly(sound, rate, found)
    return made


def read_film(path: Path) -> Array:
    """Read a film: an animated picture, a folder of pictures by name, or an array (``.npy``).

    Raises:
        ConfigError: it is none of them.
    """
    try:
        if path.is_dir():
            frames = [read_picture(file) for file in sorted(path.iterdir()) if file.is_file()]
        elif path.suffix == ".npy":
            frames = list(np.load(path, allow_pickle=False))
        else:
            with Image.open(path) as opened:
                frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
        return film(frames)
    except (OSError, ValueError, TypeError, UnidentifiedImageError) as exc:
        raise ConfigError(
            f"cannot read {path} as a film: {exc}; give a GIF, a folder of pictures or .npy"
            f" (mkdir frames; ffmpeg -i {path} -r 2 frames/%04d.png)"
        ) from exc
