"""Settings of FwFM, the field `fwfm` of model_config."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fwfm:
    """A factorization machine that weighs the pairs of fields."""

    pair_dropout: float = field(default=0.0, metadata={"doc": "Share of the products that training sets to 0."})
    wide_embedding_dim: int = field(default=4, metadata={"doc": "How many numbers are summed to the weight of an id."})
