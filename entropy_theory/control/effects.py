"""What a policy gradient does to entropy, predicted from its coefficients: the one home of the formula.

    ΔH_t = η [−g_t S_c,t + c_t Σ_i S_i²]/n

to first order and as if positions shared no parameters (Theorem 3.3 of arXiv 2602.03392 and section B.11 of the theory
notes). The step size η and the loss denominator n are the caller's.

Where parameters are shared, the change of the mean entropy of m contexts has the same form, with S_c := −m D for the
influence D of a token on that mean:

    ΔH̄ = (η/n) Σ_t g_t D_t = (1/m) Σ_t ΔH_t with S_c,t = −m D_t

(section E of the theory notes).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from entropy_theory.errors import invalid


@dataclass(frozen=True, eq=False)
class Effects:
    """The predicted change of entropy at each position, for η/n = 1, in nats, float64.

    Attributes:
        gradient: −g S_c, what the policy gradient does.
        entropy: c Σ_i S_i², what the entropy term does; 0 without one.
    """

    gradient: Float[Tensor, "*batch"]
    entropy: Float[Tensor, "*batch"]

    @property
    def total(self) -> Float[Tensor, "*batch"]:
        """−g S_c + c Σ_i S_i²."""
        return self.gradient + self.entropy


def predicted_effects(
    coefficients: Float[Tensor, "*batch"],
    centered_discriminant: Float[Tensor, "*batch"],
    *,
    entropy_coefficients: Float[Tensor, "*entropy"] | None = None,
    sum_squared_discriminant: Float[Tensor, "*entropy"] | None = None,
) -> Effects:
    """Predict what each token does to the entropy of its position.

    Args:
        coefficients: g = ∂J/∂ log p.
        centered_discriminant: S_c = S − N, of the shape of g.
        entropy_coefficients: c = ∂J/∂H, or None for 0; its shape may be another, when c belongs to policies.
        sum_squared_discriminant: Σ_i S_i² over the vocabulary, of the shape of c.

    Returns:
        The effects, without gradient. Where an input is NaN, as at masked positions, so is the effect.

    Raises:
        ValueError: entropy coefficients without Σ S².

    Example:
        >>> import torch
        >>> effects = predicted_effects(torch.tensor([1.0, -2.0]), torch.tensor([0.25, 0.5]))
        >>> effects.gradient.tolist(), effects.total.tolist()
        ([-0.25, 1.0], [-0.25, 1.0])
    """
    gradient = -coefficients.detach().double() * centered_discriminant.detach().double()
    if entropy_coefficients is None:
        return Effects(gradient, gradient.new_zeros(gradient.shape))
    if sum_squared_discriminant is None:
        raise invalid("sum_squared_discriminant", "Σ S² of each position, for the entropy coefficients", None)
    return Effects(gradient, entropy_coefficients.detach().double() * sum_squared_discriminant.detach().double())


def influence_effects(
    coefficients: Float[Tensor, "*batch"], influence: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Predict what each token does to mean entropy through shared parameters, g D: `predicted_effects` for S_c := −m D.

    The influence of an entropy term, ∂J/∂H ≠ 0, is not in it: that needs the gradients of the entropies.

    Args:
        coefficients: g = ∂J/∂ log p.
        influence: D on the mean entropy of m contexts, of the shape of g.

    Returns:
        The change of mean entropy for η/n = 1, in nats, float64, without gradient.

    Example:
        >>> import torch
        >>> influence_effects(torch.tensor([1.0, -2.0]), torch.tensor([-0.25, -0.5])).tolist()
        [-0.25, 1.0]
    """
    return predicted_effects(coefficients, -influence).gradient
