"""How long the packed rows of a run are, and what a token costs in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flan_moe.train.recipe_schema import DataSection

if TYPE_CHECKING:
    from flan_moe.data import Manifest
    from flan_moe.model import FlanMoEConfig, FlopsPerToken


@dataclass(frozen=True, kw_only=True)
class RowLengths:
    """Tokens that a packed row holds at most.

    Attributes:
        input: Encoder tokens.
        target: Decoder tokens.
    """

    input: int
    target: int

    @classmethod
    def of(cls, section: DataSection, manifest: Manifest) -> RowLengths:
        """Those of a recipe's data section, by default the ones the data were built for."""
        return cls(
            input=section.input_length or manifest.max_input_tokens,
            target=section.target_length or manifest.max_target_tokens,
        )

    def flops_per_token(self, config: FlanMoEConfig) -> FlopsPerToken:
        """Forward FLOPs per real token, the one figure for `check`, throughput and report.

        Attention is that of full rows: a token is scored against every position of its row, other
        examples and padding included, because the kernels compute those scores and then hide them.
        A batch whose longest row is shorter costs less than this. Padding itself is no token.
        """
        from flan_moe.model import flops_per_token

        return flops_per_token(config, encoder_length=self.input, decoder_length=self.target)

    def describe(self) -> str:
        """The assumption behind `flops_per_token`, for people."""
        return f"attention over full rows of {self.input:,} input and {self.target:,} target tokens"
