"""ParamSpec: what a weight loader has to deliver for one parameter."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamSpec:
    """Shape and logical axes of one parameter of the decoder.

    Attributes:
      shape: sizes, outermost first. Projections are stored [out..., in], as Hugging Face does.
      axes: one logical axis name a dimension, resolved to mesh axes by ShardingRules.
      keep_float32: norms and biases, which stay exact whatever the weights' dtype.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    keep_float32: bool = False
