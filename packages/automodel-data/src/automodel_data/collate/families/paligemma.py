"""PaliGemma: images, a prompt and an answer, without a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from automodel_data.collate.families.base import FamilyAdapter, Features
from automodel_data.encode import IGNORE_INDEX, TokenRow
from automodel_data.errors import BadRow
from automodel_data.templates import Rendered
from automodel_data.vlm.conversation import SLOTS, MediaConversation


class PaliGemmaAdapter(FamilyAdapter):
    """``<image>...<bos>prompt\\n`` and then the answer with EOS; the prompt sees both ways (``token_type_ids`` 0)."""

    can_pack = False  # the prompt sees both ways, over all documents of a row: the next one's logits change

    def _build_template(self, chat_template: str | None, template_kwargs: Any) -> Any:
        return None

    def expansion(self, kind: str, size: tuple[int, int], *, num_in_row: int) -> str:
        return self.processor.image_token * int(self.processor.image_seq_length)

    def num_features(self, features: Features) -> dict[str, int]:
        return {"image": len(features["pixel_values"]) * int(self.processor.image_seq_length)}

    def render(self, conversation: MediaConversation, *, mask: str) -> Rendered:
        """Raises: BadRow: anything but one question and one answer."""
        messages = conversation.text.messages
        if [m["role"] for m in messages] not in (["user", "assistant"], ["user"]):
            raise BadRow("PaliGemma takes one question and one answer", path="/messages")
        question = messages[0]["content"].replace(SLOTS["image"], "")
        images = self.placeholder("image") * len(conversation.media)
        prompt = f"{images}{self.tokenizer.bos_token}{question}\n"
        if len(messages) == 1:
            return Rendered(prompt)
        text = f"{prompt}{messages[1]['content']}{self.tokenizer.eos_token}"
        return Rendered(text, [(0 if mask == "all" else len(prompt), len(text))])

    def _render_prompt(self, conversation: MediaConversation) -> Rendered:
        return self.render(conversation, mask="assistant")

    def encode(
        self, conversation: MediaConversation, sizes: Sequence[tuple[int, int]], *, mask: str = "assistant"
    ) -> TokenRow:
        """Prompt and answer are tokenised apart, as the model was trained."""
        rendered = self.expand(self.render(conversation, mask="assistant"), conversation, sizes)
        cut = rendered.spans[0][0] if rendered.spans else len(rendered.text)
        prompt, answer = self.encoder.encode([Rendered(rendered.text[:cut]), Rendered(rendered.text[cut:])])
        ids = np.concatenate([prompt.input_ids, answer.input_ids])
        labels = np.full(len(ids), IGNORE_INDEX, dtype=np.int32)
        labels[len(prompt.input_ids) :] = answer.input_ids
        return self._checked(TokenRow(ids, labels), conversation, sizes)

    def token_columns(self, ids: Sequence[int], labels: Sequence[int]) -> dict[str, list[int]]:
        return {"token_type_ids": [int(label != IGNORE_INDEX) for label in labels]}
