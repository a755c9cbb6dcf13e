"""Rows in which the answer repeats the prompt."""

import random


class EchoDataset:
    """Prompts of random token ids; the answer is the same ids, and only it is trained.

    Args:
        num_rows: how many rows.
        length: tokens of a prompt.
        vocab_size: ids are drawn below this.
        seed: decides the rows.
    """

    def __init__(self, num_rows: int = 32, length: int = 4, vocab_size: int = 64, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.prompts = [[rng.randrange(1, vocab_size) for _ in range(length)] for _ in range(num_rows)]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        prompt = self.prompts[index]
        return {"input_ids": prompt + prompt, "labels": [-100] * len(prompt) + prompt}
