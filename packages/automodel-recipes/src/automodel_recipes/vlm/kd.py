"""Knowledge distillation of vision-language models: teacher and student see the same media."""

from automodel_recipes.llm.kd import KnowledgeDistillationRecipe
from automodel_recipes.vlm.finetune import VLMFinetuneRecipe
from automodel_recipes.vlm.repairs import see_whole_images


class VLMKnowledgeDistillationRecipe(KnowledgeDistillationRecipe, VLMFinetuneRecipe):
    """`VLMFinetuneRecipe` under a teacher, by the loss of `KnowledgeDistillationRecipe`.

    Rows are made by the student's processor: the teacher takes the same tokens and pixels, as models of one family do.
    """

    name = "vlm-kd"

    def build_model(self) -> None:
        """The student, then the teacher, both mended alike."""
        super().build_model()
        see_whole_images(self.teacher)
