"""How much of its nominal figures a place reaches, prefill and decode apart; with the source of the figures and their spread."""

from pydantic import Field

from splitinference.core.values.value import Value


class PhaseEfficiency(Value):
    """What one phase reaches of the nominal FLOP/s and bytes/s. The defaults say: all of it, and nothing besides."""

    compute: float = Field(
        default=1.0,
        gt=0,
        le=2,
        description="share of the nominal FLOP/s in products with weights; decode: above 1 where reading hides some",
    )
    bandwidth: float = Field(default=1.0, gt=0, le=2, description="share of the nominal memory bandwidth in reading weights")
    attention: float = Field(
        default=1.0, gt=0, le=4, description="share of the figure that limits attention: FLOP/s, or the bandwidth for reading KV"
    )
    launch_ms: float = Field(
        default=0.0, ge=0, le=1e4, description="ms that every layer takes besides, whatever its size (kernel launches)"
    )
    spread: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="nine of ten measured times are between predicted / (1 + spread) and predicted × (1 + spread)",
    )


class Efficiency(Value):
    """Both phases, how quickly quantized weights are dequantized, and where the figures come from."""

    prefill: PhaseEfficiency = PhaseEfficiency()
    decode: PhaseEfficiency = PhaseEfficiency()
    dequantized_per_s: float | None = Field(
        default=None, gt=0, le=1e18, description="quantized weights that a prefill dequantizes in a second; null: no limit"
    )
    source: str = Field(default="", max_length=300, description="engine, rows and source of the figures; empty: not said")
