"""Images and sounds: the header is read and judged before anything is decoded; no global setting is touched."""

from automodel_data.media.audio import Sound, load_audio, probe_audio
from automodel_data.media.image import ImageInfo, load_image, probe_image
from automodel_data.media.limits import MediaLimits
from automodel_data.media.sources import open_media

__all__ = [
    "ImageInfo",
    "MediaLimits",
    "Sound",
    "load_audio",
    "load_image",
    "open_media",
    "probe_audio",
    "probe_image",
]
