"""Images, audio and video out of files."""

import wave
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from omnireg.boundary.files import read_bytes
from omnireg.errors import ConfigError

Array = np.ndarray[Any, Any]
#: bytes of a medium; longer ones would not fit a prompt
_LARGEST = 1 << 31


def rgb_image(medium: Any) -> Image.Image:
    """Return an image in RGB, from an array or an image in any mode."""
    found = medium if isinstance(medium, Image.Image) else Image.fromarray(np.asarray(medium))
    return found.convert("RGB")


def video_frames(medium: Any) -> Array:
    """Return a video as (frames, height, width, 3), of frames of any kind."""
    frames = [np.asarray(rgb_image(frame)) for frame in medium]
    if not frames:
        raise ValueError("it has no frames")
    return np.stack(frames)


def _opened(path: Path) -> BytesIO:
    """Return what is in a regular file; a pipe would wait, and a device has no end."""
    return BytesIO(read_bytes(path, most=_LARGEST, error=ConfigError))


def read_image(path: Path) -> Image.Image:
    """Read an image of any format that Pillow knows.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with Image.open(_opened(path)) as opened:
            return opened.convert("RGB")
    except (OSError, UnidentifiedImageError) as exc:
        raise ConfigError(f"cannot read {path} as an image: {exc}") from exc


def read_audio(path: Path, rate: int) -> Array:
    """Read a WAV file as one waveform of so many samples per second, between -1 and 1.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with wave.open(_opened(path)) as opened:
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


def read_video(path: Path) -> Array:
    """Read a video: an animated image, a folder of images by name, or an array (``.npy``).

    Raises:
        ConfigError: it is none of them.
    """
    try:
        if path.is_dir():
            frames = [read_image(file) for file in sorted(path.iterdir()) if file.is_file()]
        elif path.suffix == ".npy":
            frames = list(np.load(_opened(path), allow_pickle=False))
        else:
            with Image.open(_opened(path)) as opened:
                frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(opened)]
        return video_frames(frames)
    except (OSError, ValueError, TypeError, UnidentifiedImageError) as exc:
        raise ConfigError(
            f"cannot read {path} as a video: {exc}; give a GIF, a folder of images or .npy"
            f" (mkdir frames; ffmpeg -i {path} -r 2 frames/%04d.png)"
        ) from exc
