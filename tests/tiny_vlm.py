"""Tiny vision-language models with processors of their own, built locally: no file is fetched."""

from typing import Any

import torch

from automodel_recipes.vlm.repairs import see_whole_images

_PARTS = (
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{{ p['text'] if p['type'] == 'text' else '<|audio|>' if p['type'] == 'audio' else IMAGE }}"
    "{% endfor %}{% endif %}"
)
_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>" + _PARTS + "<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ["<pad>", "<bos>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
_MEDIA = {
    "gemma3": ["<start_of_image>", "<image_soft_token>", "<end_of_image>"],
    "idefics3": ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
    + [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)],
    "phi4_mm": ["<|image|>", "<|audio|>"],
    "qwen": ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"],
}
_PRINTED = {"gemma3": "<start_of_image>", "phi4_mm": "<|image|>", "qwen": "<|vision_start|><|image_pad|><|vision_end|>"}
_MEAN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


def _group(family: str) -> str:
    return {"smolvlm": "idefics3"}.get(family, "qwen" if family.startswith("qwen") else family)


def build_tokenizer(family: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    media = _MEDIA.get(_group(family), ["<image>"])
    tokens = [*_SPECIAL, *media]
    vocabulary = {token: i for i, token in enumerate([*tokens, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(tokens)
    named = {"image_token": "<image>"}
    if family == "gemma3":
        named = {
            "boi_token": "<start_of_image>",
            "image_token": "<image_soft_token>",
            "eoi_token": "<end_of_image>",
        }
    if family == "phi4_mm":
        named = {"image_token": "<|image|>", "audio_token": "<|audio|>"}
    if _group(family) == "qwen":
        named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    printed = _PRINTED.get(_group(family), "<image>")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<|end|>",
        pad_token="<pad>",
        extra_special_tokens=named,
        chat_template=_TEMPLATE.replace("IMAGE", repr(printed)),
    )


def build_processor(family: str) -> Any:
    return globals()[f"_{family}_processor"](build_tokenizer(family))


def _of_patches(kind: Any, images: Any, tokenizer: Any) -> Any:
    """A processor that counts an image's placeholders by its patches."""
    return kind(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def _llava_processor(tokenizer: Any) -> Any:
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size=size, crop_size=size, **_MEAN)
    return _of_patches(LlavaProcessor, images, tokenizer)


def _llava_next_processor(tokenizer: Any) -> Any:
    from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        **_MEAN,
    )
    return _of_patches(LlavaNextProcessor, images, tokenizer)


def _llava_onevision_processor(tokenizer: Any) -> Any:
    from transformers import LlavaOnevisionImageProcessorPil

    from automodel_data.collate.families.parts import ProcessorParts

    images = LlavaOnevisionImageProcessorPil(
        size={"height": 32, "width": 32}, image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]], **_MEAN
    )
    return ProcessorParts("LlavaOnevisionProcessor", tokenizer=tokenizer, image_processor=images, num_image_tokens=16)


def _gemma3_processor(tokenizer: Any) -> Any:
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor

    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, image_seq_length=4, **_MEAN)
    return Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4)


def _paligemma_processor(tokenizer: Any) -> Any:
    from transformers import PaliGemmaProcessor, SiglipImageProcessorPil

    images = SiglipImageProcessorPil(size={"height": 32, "width": 32}, **_MEAN)
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, tokenizer)


def _idefics3_images() -> Any:
    from transformers import Idefics3ImageProcessorPil

    return Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, **_MEAN)


def _idefics3_processor(tokenizer: Any) -> Any:
    from transformers import Idefics3Processor

    return Idefics3Processor(_idefics3_images(), tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)


def _smolvlm_processor(tokenizer: Any) -> Any:
    from transformers import SmolVLMImageProcessorPil

    from automodel_data.collate.families.parts import ProcessorParts

    images = SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, **_MEAN)
    return ProcessorParts("SmolVLMProcessor", tokenizer=tokenizer, image_processor=images, image_seq_len=4)


def _qwen_images(patch_size: int) -> Any:
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=patch_size,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": 4 * patch_size**2, "longest_edge": 64 * patch_size**2},
        **_MEAN,
    )


def _qwen2_5_vl_processor(tokenizer: Any) -> Any:
    from automodel_data.collate.families.parts import ProcessorParts

    return ProcessorParts("Qwen2_5_VLProcessor", tokenizer=tokenizer, image_processor=_qwen_images(8))


def _qwen3_vl_processor(tokenizer: Any) -> Any:
    from automodel_data.collate.families.parts import ProcessorParts

    return ProcessorParts("Qwen3VLProcessor", tokenizer=tokenizer, image_processor=_qwen_images(8))


def _phi4_mm_processor(tokenizer: Any) -> Any:
    from transformers import Phi4MultimodalFeatureExtractor

    from automodel_data.collate.families.parts import ProcessorParts
    from automodel_data.collate.families.phi4_images import Phi4Images

    return ProcessorParts(
        "Phi4MultimodalProcessor",
        tokenizer=tokenizer,
        image_processor=Phi4Images(size=56, dynamic_hd=4),
        audio_processor=Phi4MultimodalFeatureExtractor(),
    )


def build_config(family: str, tokenizer: Any) -> Any:
    import transformers

    text = {**_TEXT, "vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    image = tokenizer.convert_tokens_to_ids(_MEDIA[_group(family)][0] if _group(family) in _MEDIA else "<image>")
    if family in ("llava", "llava_next"):
        cls = transformers.LlavaConfig if family == "llava" else transformers.LlavaNextConfig
        extra = {} if family == "llava" else {"image_grid_pinpoints": [[32, 64], [64, 32], [64, 64]]}
        return cls(
            text_config={"model_type": "llama", **text},
            vision_config={"model_type": "clip_vision_model", "projection_dim": 32, **_VISION},
            image_token_index=image,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            image_seq_length=16,
            tie_word_embeddings=False,
            **extra,
        )
    if family == "llava_onevision":
        return transformers.LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **text},
            vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **_VISION},
            image_token_index=image,
            video_token_index=len(tokenizer) - 1,
            image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            tie_word_embeddings=False,
        )
    if family == "gemma3":
        return transformers.Gemma3Config(
            text_config={**text, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
            vision_config={**_VISION},
            mm_tokens_per_image=4,
            image_token_id=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
            boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
            eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        )
    if family == "paligemma":
        return transformers.PaliGemmaConfig(
            text_config={"model_type": "gemma", **text},
            vision_config={"model_type": "siglip_vision_model", "projection_dim": 32, **_VISION},
            image_token_index=image,
            projection_dim=32,
            hidden_size=32,
        )
    if family in ("idefics3", "smolvlm"):
        cls = transformers.Idefics3Config if family == "idefics3" else transformers.SmolVLMConfig
        return cls(
            text_config={"model_type": "llama", **text},
            vision_config=_VISION,
            image_token_id=image,
            scale_factor=2,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    if family == "phi4_mm":
        return _phi4_config(text, tokenizer)
    return _qwen_config(family, text, tokenizer)


def _phi4_config(text: dict[str, Any], tokenizer: Any) -> Any:
    from transformers import Phi4MultimodalConfig

    sounds = {"hidden_size": 32, "intermediate_size": 48, "num_blocks": 2, "num_attention_heads": 4}
    channels = {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 16}
    return Phi4MultimodalConfig(
        **{key: value for key, value in text.items() if key != "head_dim"},
        original_max_position_embeddings=512,
        vision_config={
            **_VISION,
            "image_size": 56,
            "crop_size": 56,
            "patch_size": 14,
            "image_token_id": tokenizer.convert_tokens_to_ids("<|image|>"),
        },
        audio_config={**sounds, **channels, "audio_token_id": tokenizer.convert_tokens_to_ids("<|audio|>")},
    )


def _qwen_config(family: str, text: dict[str, Any], tokenizer: Any) -> Any:
    import transformers

    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    shared = {
        "image_token_id": ids["image_pad"],
        "video_token_id": ids["video_pad"],
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        "tie_word_embeddings": False,
    }
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 8, "intermediate_size": 48}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if family == "qwen2_5_vl":
        return transformers.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": {**rope, "mrope_section": [2, 1, 1]}},
            vision_config={**vision, "out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1]},
            **shared,
        )
    return transformers.Qwen3VLConfig(
        text_config={**text, "rope_parameters": {**rope, "mrope_section": [2, 1, 1], "mrope_interleaved": True}},
        vision_config={**vision, "out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        **shared,
    )


def build_model(family: str, tokenizer: Any) -> Any:
    import transformers

    auto = transformers.AutoModelForMultimodalLM if family == "phi4_mm" else transformers.AutoModelForImageTextToText
    torch.manual_seed(0)
    model = auto.from_config(build_config(family, tokenizer), attn_implementation="sdpa")
    see_whole_images(model)
    return model.float().eval()
