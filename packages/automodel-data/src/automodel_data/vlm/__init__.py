"""Vision-language and audio data: lazily decoded conversations, and the encoded rows made from them."""
