"""A host's own processor: media to what its encoder takes, and to the ids that stand for them."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from omnireg.boundary.documents import read_json
from omnireg.checkpoints.loading import quiet
from omnireg.errors import CheckpointError, ConfigError, OmniregError
from omnireg.routed.media import Array, read_audio, read_image, read_video, rgb_image, video_frames


class HostReader:
    """The processor beside a host's weights, for media of one kind."""

    def __init__(self, folder: Path, argument: str, token: str) -> None:
        """Load nothing yet.

        Args:
            folder: where its settings are.
            argument: what the processor calls the media: ``images``, ``audio``, ``videos``.
            token: the placeholder as the host knows it.
        """
        self._folder, self._argument, self._token = folder, argument, token

    def __call__(self, media: Sequence[Any]) -> dict[str, Any]:
        """Return model inputs, with one row of the host's ids for each medium.

        Raises:
            ConfigError: the processor cannot use them.
        """
        given: list[Any] = [self.prepared(medium) for medium in media]
        extra: dict[str, Any] = {}
        if self._argument == "images":
            given = [[medium] for medium in given]
        elif self._argument == "audio":
            extra["sampling_rate"] = self.sampling_rate
        try:
            found = self._processor(
                text=[self._token] * len(given), **{self._argument: given}, **extra,
                padding=True, add_special_tokens=False, return_tensors="pt",
            )  # fmt: skip
        except (ValueError, TypeError, IndexError) as exc:
            raise ConfigError(f"{self._argument}: {' '.join(str(exc).split())}") from exc
        return dict(found)

    def prepared(self, medium: Any) -> Any:
        """Return a medium in the form that processors take: RGB, frames as one array."""
        if self._argument == "images":
            return rgb_image(medium)
        return video_frames(medium) if self._argument == "videos" else medium

    def open(self, path: Path) -> Any:
        """Read a medium out of a file.

        Raises:
            ConfigError: it cannot be read.
        """
        if not path.exists():
            raise ConfigError(f"there is no file {path}")
        match self._argument:
            case "images":
                return read_image(path)
            case "audio":
                return read_audio(path, self.sampling_rate)
            case "videos":
                return read_video(path)
        raise ConfigError(f"no way is known to read {self._argument} out of a file")

    @property
    def sampling_rate(self) -> int:
        """Samples per second of the waveforms that the host takes."""
        return int(self._processor.feature_extractor.sampling_rate)

    @property
    def _processor(self) -> Any:
        return host_processor(self._folder)


@lru_cache(maxsize=32)
def host_processor(folder: Path) -> Any:
    """Return the processor of a host.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    from transformers import AutoProcessor

    try:
        with quiet():
            try:
                return AutoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
                    folder, trust_remote_code=False
                )
            except ImportError as exc:
                if "orchvision" not in str(exc):
                    raise
                return _without_torchvision(folder)
    except OmniregError:
        raise
    except Exception as exc:  # the classes believe what their files say, so it can be anything
        raise CheckpointError(
            f"cannot load the processor in {folder}: {' '.join(str(exc).split())}"
        ) from exc


class Frames:
    """Videos scaled and normalised frame by frame, as a saved video processor says.

    transformers' own classes need torchvision. This serves those that do no more than this.
    """

    def __init__(self, folder: Path) -> None:
        """Read the settings."""
        file = folder / "video_preprocessor_config.json"
        self._said = _object(file)

    def __call__(self, videos: Sequence[Any], **_: Any) -> dict[str, Any]:
        """Return ``pixel_values_videos`` (videos, frames, 3, height, width)."""
        made = [self._video(video) for video in videos]
        if len({video.shape for video in made}) > 1:
            raise ValueError("videos of one call need the same number of frames")
        return {"pixel_values_videos": torch.from_numpy(np.stack(made))}

    def _video(self, video: Any) -> Array:
        pixels: Array = np.stack([self._sized(frame) for frame in video]).astype(np.float32)
        if self._said.get("do_rescale", True):
            pixels = pixels * np.float32(self._said["rescale_factor"])
        if self._said.get("do_normalize", True):
            mean = np.array(self._said["image_mean"], np.float32)
            pixels = (pixels - mean) / np.array(self._said["image_std"], np.float32)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    def _sized(self, frame: Any) -> Array:
        shown = rgb_image(frame)
        size = self._said.get("size") or {}
        wanted = (int(size.get("width", 0)), int(size.get("height", 0)))
        if self._said.get("do_resize", True) and all(wanted) and shown.size != wanted:
            shown = shown.resize(wanted, Image.Resampling(self._said.get("resample", 3)))
        return np.asarray(shown)


def _without_torchvision(folder: Path) -> Any:
    """Return a host's processor with :class:`Frames` in the place of its video processor."""
    import transformers

    said = _object(folder / "processor_config.json")
    name = str(said.get("processor_class"))
    cls = getattr(transformers, name, None)
    settings = folder / "video_preprocessor_config.json"
    kind = _object(settings) if settings.is_file() else {}
    if cls is None or kind.get("video_processor_type") not in _PLAIN:
        raise CheckpointError(
            f"the video processor in {folder} needs torchvision: pip install torchvision"
        )
    images: Any = transformers.AutoImageProcessor
    with quiet():
        parts = {
            "image_processor": images.from_pretrained(folder),
            "tokenizer": transformers.AutoTokenizer.from_pretrained(folder),
            "video_processor": Frames(folder),
        }
    lenient = type(name, (cls,), {"check_argument_for_proper_class": lambda *_: None})
    return lenient(**parts, **{k: v for k, v in said.items() if k != "processor_class"})


def _object(file: Path) -> dict[str, Any]:
    found = read_json(file)
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} is damaged (it holds no JSON object)")
    return found


#: video processors that do no more than scale and normalise
_PLAIN = ("LlavaOnevisionVideoProcessor",)
