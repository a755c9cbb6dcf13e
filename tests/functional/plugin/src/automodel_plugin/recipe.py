"""A recipe of its own on the same engine: it also writes how many targets it trained on."""

from automodel_recipes import LLMFinetuneRecipe


class CountingRecipe(LLMFinetuneRecipe):
    """Fine-tuning that leaves ``targets.txt`` in the run's directory."""

    name = "counting"

    def train(self):
        summary = super().train()
        if self.parallel.is_main:
            (self.run_dir.path / "targets.txt").write_text(f"{self.records.meter.total_label_tokens}\n")
        return summary
