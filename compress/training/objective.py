"""What is trained: a module whose forward pass is the loss.

    ids_BT (B rows of T tokens) --model without its head--> hidden states --chunk by chunk--> logits, loss, gradients

Whatever spreads a model over processes wraps the module that it trains and watches its forward pass, so the loss has to
be computed inside of it. Position t is held against token t + 1; the loss is the mean over the B (T - 1) predictions.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.training.losses import Head, Mix, chunked_loss

TEXT = Mix(weights={"cross_entropy": 1.0})


class Objective(nn.Module):
    """The mean cross-entropy of each token given those before it, in nats.

    A subclass gives another `loss`; what it learns besides the model belongs to its parameters.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Look once at the model: whether it ends in a linear head tells how its loss is computed."""
        super().__init__()
        self.model = model
        self.linear_head = ends_in_linear_head(model)
        self.progress = 0.0
        """Share of the steps that are done."""

    def forward(self, input_ids: Tensor, row: Tensor | None = None, held_out: bool = False) -> Tensor:
        """The loss of some rows, or, held out, their cross-entropy.

        Args:
            input_ids: int64 [B, T].
            row: which rows of the training text these are, int64 [B].
        """
        return self.next_token_loss(input_ids) if held_out else self.loss(input_ids, row)

    def loss(self, ids_BT: Tensor, row_B: Tensor | None) -> Tensor:
        """What is minimized."""
        return self.next_token_loss(ids_BT)

    def next_token_loss(self, ids_BT: Tensor) -> Tensor:
        """The mean cross-entropy of the text."""
        next_N = ids_BT[:, 1:].flatten()
        if not self.linear_head:
            logits_BTV = self.model(input_ids=ids_BT, use_cache=False).logits
            return nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), next_N)
        total, _ = chunked_loss(last_hidden(self.model, ids_BT), Head.of(self.model), None, next_N, TEXT)
        return total / len(next_N)

    def frozen(self) -> list[PreTrainedModel]:
        """Models that only run, which may be spread over the processes too."""
        return []

    def figures(self) -> dict[str, float]:
        """What is told beside the loss since it was last asked for."""
        return {}


def last_hidden(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """What the head reads at every position that predicts one: [B (T - 1), D]."""
    hidden_BTD: Tensor = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    return hidden_BTD[:, :-1].flatten(0, 1)


@torch.no_grad()
def ends_in_linear_head(model: PreTrainedModel) -> bool:
    """Whether the logits are the head applied to the last hidden states, with no soft cap or scale after it."""
    training, device = model.training, model.get_output_embeddings().weight.device
    ids_BT = torch.arange(8, device=device)[None] % model.config.get_text_config().vocab_size
    model.eval()
    hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    model.train(training)
    return torch.allclose(model.get_output_embeddings()(hidden_BTD).float(), logits_BTV.float(), atol=1e-4, rtol=1e-4)
