"""The model as Composer's trainer sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from composer.metrics import LanguageCrossEntropy, MaskedAccuracy
from composer.models import ComposerModel
from torch import Tensor
from torchmetrics import Metric

from flan_moe.train.batches import ROW_KEYS, PackedBatch
from flan_moe.train.row_lengths import RowLengths

if TYPE_CHECKING:
    from flan_moe.model import FlanMoEForConditionalGeneration, FlanMoEOutput


class InstructionTuning(ComposerModel):
    """Trains a `FlanMoEForConditionalGeneration` on packed instruction batches.

    Args:
        model: The network; the module's only child with parameters.
        rows: Length of the batches' rows; only `flops_per_batch` needs it.
    """

    def __init__(self, model: FlanMoEForConditionalGeneration, *, rows: RowLengths) -> None:
        super().__init__()
        self.net = model
        self._flops = rows.flops_per_token(model.config)

    def forward(self, batch: PackedBatch) -> FlanMoEOutput:
        """Losses and routings of a batch; logits in evaluation only, where a metric reads them."""
        inputs = {key: batch[key] for key in ROW_KEYS}
        return self.net(**inputs, output_logits=not self.training)

    def loss(self, outputs: FlanMoEOutput, batch: PackedBatch) -> dict[str, Tensor]:
        """The loss and its parts.

        Returns:
            ``total`` is what is backpropagated: ``cross_entropy`` (mean over target tokens) plus
            each auxiliary loss times its coefficient. ``balance`` and ``z`` (and what else the
            routers compute) are unweighted, ``balance_weighted`` and ``z_weighted`` as they enter
            the total.
        """
        coefficients = self.net.config.aux_coefs
        losses = {"total": outputs.loss, "cross_entropy": outputs.cross_entropy.detach()}
        for name, loss in outputs.aux_losses.items():
            losses[name] = loss.detach()
            losses[f"{name}_weighted"] = loss.detach() * coefficients[name]
        return losses

    def eval_forward(self, batch: PackedBatch, outputs: Any = None) -> FlanMoEOutput:
        """The forward pass of validation; ``outputs`` of an earlier one are reused."""
        return self.forward(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Validation metrics; training reports its losses."""
        if is_train:
            return {}
        return {
            "cross_entropy": LanguageCrossEntropy(ignore_index=-100),
            "token_accuracy": MaskedAccuracy(ignore_index=-100),
        }

    def update_metric(self, batch: PackedBatch, outputs: FlanMoEOutput, metric: Metric) -> None:
        """Add a validation batch to a metric."""
        metric.update(outputs.logits, batch["labels"])

    def flops_per_batch(self, batch: PackedBatch) -> float:
        """Floating point operations of a training step on a batch.

        Three times the forward pass of the batch's real tokens, see `RowLengths.flops_per_token`.
        """
        encoder = int((batch["encoder_segments"] > 0).sum())
        decoder = int((batch["decoder_segments"] > 0).sum())
        return 3.0 * (encoder * self._flops.encoder + decoder * self._flops.decoder)
