"""Names for the shapes of tensors in signatures; the tests check them, a run does not pay for them.

Without jaxtyping each name is `Tensor`. With it, and with the import hook that the tests set (see `addopts` in
pyproject.toml), each call compares its arguments with these shapes: `rows` is one number in all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch import Tensor as AnyFloats
    from torch import Tensor as AnyMask
    from torch import Tensor as RowFloats
    from torch import Tensor as RowMask
    from torch import Tensor as Scalar
    from torch import Tensor as StepFloats
    from torch import Tensor as StepIds
    from torch import Tensor as StepMask
    from torch import Tensor as VocabFloats
else:
    try:
        from jaxtyping import Bool, Float, Int64
    except ImportError:  # a development tool; the library works without it
        AnyFloats = AnyMask = Scalar = RowFloats = RowMask = StepFloats = StepMask = StepIds = VocabFloats = Tensor
    else:
        AnyFloats = Float[Tensor, "*shape"]
        AnyMask = Bool[Tensor, "*shape"]
        Scalar = Float[Tensor, ""]
        RowFloats = Float[Tensor, "rows"]
        RowMask = Bool[Tensor, "rows"]
        StepFloats = Float[Tensor, "rows steps"]
        StepMask = Bool[Tensor, "rows steps"]
        StepIds = Int64[Tensor, "rows steps"]
        VocabFloats = Float[Tensor, "rows steps vocab"]
