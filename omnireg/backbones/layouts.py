"""The model classes omnireg knows out of the box, declared through the public hook.

Facts about where each class keeps its language model were checked by saving tiny models with
transformers 5.23 in its current and its older on-disk layouts. Of the classes of LLaVA's own code,
which transformers does not have, they were read from that code.
"""

from omnireg.hookspecs import HostLayout, RegisterHost, Sense, hookimpl

_IMAGE = Sense(("image_token_id", "image_token_index"), "images")
_VIDEO = Sense(("video_token_id", "video_token_index"), "videos")
_AUDIO = Sense(("audio_token_id", "audio_token_index"), "audio")

TEXT = HostLayout(
    architectures=(
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
    )
)

#: vision tower + projector in front of any language model
_TOWER = (
    "vision_tower.*", "model.vision_tower.*", "multi_modal_projector.*",
    "model.multi_modal_projector.*",
)  # fmt: skip

#: the same in LLaVA's own code, whose placeholder is no token: it stands for −200
_OWN_TOWER = (
    "model.vision_tower.*", "model.vision_resampler.*", "model.mm_projector.*",
    "model.image_newline", "model.faster_token",
)  # fmt: skip

HOSTS = (
    HostLayout(
        ("LlavaQwenForCausalLM",),
        {"image": Sense((), "images"), "video": Sense((), "videos")},
        _OWN_TOWER,
        text_architecture="Qwen2ForCausalLM",
    ),
    HostLayout(
        ("LlavaLlamaForCausalLM",),
        {"image": Sense((), "images")},
        _OWN_TOWER,
        text_architecture="LlamaForCausalLM",
    ),
    HostLayout(
        ("LlavaMistralForCausalLM",),
        {"image": Sense((), "images")},
        _OWN_TOWER,
        text_architecture="MistralForCausalLM",
    ),
    HostLayout(("LlavaForConditionalGeneration",), {"image": _IMAGE}, _TOWER),
    HostLayout(
        ("LlavaNextForConditionalGeneration",),
        {"image": _IMAGE},
        (*_TOWER, "image_newline", "model.image_newline"),
    ),
    HostLayout(
        ("LlavaOnevisionForConditionalGeneration",),
        {"image": _IMAGE, "video": _VIDEO},
        (*_TOWER, "image_newline", "model.image_newline"),
    ),
    HostLayout(("InternVLForConditionalGeneration",), {"image": _IMAGE}, _TOWER),
    HostLayout(
        ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
        {"image": _IMAGE, "video": _VIDEO},
        ("visual.*", "model.visual.*"),
        text_architecture="Qwen2ForCausalLM",
    ),
    HostLayout(
        ("Qwen3VLForConditionalGeneration",),
        {"image": _IMAGE, "video": _VIDEO},
        ("visual.*", "model.visual.*"),
        text_architecture="Qwen3ForCausalLM",
    ),
    HostLayout(
        ("Qwen2AudioForConditionalGeneration",),
        {"audio": _AUDIO},
        (
            "audio_tower.*",
            "model.audio_tower.*",
            "multi_modal_projector.*",
            "model.multi_modal_projector.*",
        ),
    ),
    HostLayout(
        (
            "Qwen2_5OmniForConditionalGeneration",
            "Qwen2_5OmniModel",  # the same class, as Hub checkpoints name it
            "Qwen2_5OmniThinkerForConditionalGeneration",
        ),
        {"image": _IMAGE, "video": _VIDEO, "audio": _AUDIO},
        (
            "visual.*",
            "audio_tower.*",
            "model.visual.*",
            "model.audio_tower.*",
            "thinker.visual.*",
            "thinker.audio_tower.*",
            "thinker.model.visual.*",
            "thinker.model.audio_tower.*",
        ),
        ignored=("talker.*", "token2wav.*"),
        text_architecture="Qwen2ForCausalLM",
    ),
    HostLayout(
        ("Idefics3ForConditionalGeneration",),
        {"image": _IMAGE},
        ("model.vision_model.*", "model.connector.*"),
    ),
)


@hookimpl
def omnireg_register_hosts(register: RegisterHost) -> None:
    """Register every built-in layout."""
    for layout in (TEXT, *HOSTS):
        register(layout)
