"""Second-order interactions of a factorization machine."""

# B batch, F features, D embedding dim

from torch import Tensor

from tzrec_core.modules.base import BaseModule


class FactorizationMachine(BaseModule):
    """Sum of the element-wise products of all pairs of feature vectors, in time linear in F.

    Rendle, ICDM 2010, lemma 3.1; the sum over D is left to the caller.
    """

    def forward(self, feature_BFD: Tensor) -> Tensor:
        """Reduce (B, F, D) to (B, D): `0.5 * ((sum over F)^2 - sum over F of squares)`."""
        square_of_sum_BD = feature_BFD.sum(dim=1).square()
        sum_of_squares_BD = feature_BFD.square().sum(dim=1)
        return 0.5 * (square_of_sum_BD - sum_of_squares_BD)
