"""Distillation losses: how far a student's next-token distribution is from the teacher's, or from the text.

    forward KL      sum_v p_v (log p_v - log q_v) * T^2,   p = softmax(teacher / T), q = softmax(student / T)
    cross-entropy   -log q_next at T = 1

Each takes student_NV and teacher_NV (logits of N positions over V tokens) and next_N (the token that came) and gives
the sum over the positions, in nats. `chunked_loss` computes the logits from hidden states piece by piece and again in
the backward pass, so that a 50k vocabulary never stands in memory for a whole batch; the gradients are those of the
naive loss.
Sources: Hinton et al. (arXiv 1503.02531); the T^2 keeps gradients comparable between temperatures.

Not covered: losses on hidden states or attention, reverse KL.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
CHUNK_LOGITS = 2**25


def forward_kl(student_NV: Tensor, teacher_NV: Tensor, next_N: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) over the whole vocabulary, times T^2: the student covers all the teacher finds likely."""
    log_p = nn.functional.log_softmax(teacher_NV / temperature, dim=-1)
    log_q = nn.functional.log_softmax(student_NV / temperature, dim=-1)
    return nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True) * temperature**2


def cross_entropy(student_NV: Tensor, teacher_NV: Tensor, next_N: Tensor, temperature: float) -> Tensor:
    """Negative log-likelihood of the text itself."""
    return nn.functional.cross_entropy(student_NV, next_N, reduction="sum")


LOSSES: dict[str, Loss] = {"forward_kl": forward_kl, "cross_entropy": cross_entropy}


def distillation_loss(
    student: PreTrainedModel, teacher: PreTrainedModel, ids_BT: Tensor, weights: Mapping[str, float], temperature: float
) -> Tensor:
    """The weighted sum of LOSSES, averaged over the predicted positions; position t is held against token t + 1.

    Both models must end in one linear head over their last hidden states, which `ends_in_linear_head` tells.
    """
    nn.Module.to(teacher, ids_BT.device)
    student_ND = student.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    with torch.no_grad():
        teacher_ND = teacher.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    next_N = ids_BT[:, 1:].flatten()
    return chunked_loss(student, teacher, student_ND, teacher_ND, next_N, weights, temperature) / len(next_N)


def chunked_loss(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    student_ND: Tensor,
    teacher_ND: Tensor,
    next_N: Tensor,
    weights: Mapping[str, float],
    temperature: float,
) -> Tensor:
    """Sum of the weighted losses over N positions, at most CHUNK_LOGITS logits of each model in memory at a time."""

    def piece(student_hidden: Tensor, teacher_hidden: Tensor, following: Tensor) -> Tensor:
        student_NV = student.get_output_embeddings()(student_hidden).float()
        with torch.no_grad():
            teacher_NV = teacher.get_output_embeddings()(teacher_hidden).float()
        terms = [
            weight * LOSSES[name](student_NV, teacher_NV, following, temperature) for name, weight in weights.items()
        ]
        return torch.stack(terms).sum()

    size = max(1, CHUNK_LOGITS // student.get_output_embeddings().weight.shape[0])
    chunks = list(zip(student_ND.split(size), teacher_ND.split(size), next_N.split(size), strict=True))
    if len(chunks) == 1:
        return piece(*chunks[0])
    return torch.stack([checkpoint(piece, *chunk, use_reentrant=False) for chunk in chunks]).sum()


@torch.no_grad()
def ends_in_linear_head(model: PreTrainedModel, ids_BT: Tensor) -> bool:
    """Whether the logits are the head applied to the last hidden states, with no soft cap or scale after it."""
    hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    return torch.allclose(model.get_output_embeddings()(hidden_BTD).float(), logits_BTV.float(), atol=1e-4, rtol=1e-4)
