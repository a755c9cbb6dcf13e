import torch

from automodel_recipes.vlm.collate import BoundCollate


def stacked(rows, processor):
    return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}


def test_a_batch_names_its_rows_and_the_documents_of_its_packs():
    collate = BoundCollate(stacked, None, {})
    rows = [{"input_ids": [1], "sample_id": 7}, {"input_ids": [2], "sample_id": [4, 5]}]
    assert collate(rows)["sample_ids"].tolist() == [7, 4, 5]
    assert "sample_ids" not in collate([{"input_ids": [1]}])
