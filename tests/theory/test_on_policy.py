"""On-policy mean entropy by enumeration: against autograd over all sequences, and where fixed contexts mislead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from entropy_theory.theory import on_policy, updates
from entropy_theory.theory.on_policy import END, SequenceTree

TREE = SequenceTree(np.array([[1, END, 2], [END, 3, END], [4, END, END], [END, END, END], [END, END, END]]))


def listed(logits, mean):
    """Mean entropy by summing over the listed sequences, in torch."""
    log_probs = torch.log_softmax(logits, dim=-1)
    entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
    total, length, waiting = torch.zeros(()).double(), torch.zeros(()).double(), [(0, [], torch.zeros(()).double())]
    while waiting:
        context, visited, log_prob = waiting.pop()
        visited = [*visited, context]
        for token, after in enumerate(TREE.following[context]):
            reached = log_prob + log_probs[context, token]
            if after != END:
                waiting.append((int(after), visited, reached))
                continue
            value = entropies[visited].sum()
            total = total + reached.exp() * (value / len(visited) if mean == "sequence" else value)
            length = length + reached.exp() * len(visited)
    return total / length if mean == "token" else total


@pytest.mark.statement("state-shift")
@pytest.mark.parametrize("mean", ["sum", "token", "sequence"])
def test_both_parts_add_up_to_the_gradient_of_autograd(mean):
    rng = np.random.default_rng(3)
    for scale in (0.3, 3.0):
        logits = torch.tensor(rng.normal(size=TREE.following.shape) * scale, requires_grad=True)
        value = listed(logits, mean)
        (gradient,) = torch.autograd.grad(value, logits)
        numbers = logits.detach().numpy()
        fixed, shift = on_policy.on_policy_gradient(TREE, numbers, mean)
        assert on_policy.on_policy_entropy(TREE, numbers, mean) == pytest.approx(value.item(), rel=1e-14)
        assert np.allclose(fixed + shift, gradient.numpy(), rtol=0.0, atol=1e-13 * gradient.abs().max().item())


@pytest.mark.statement("state-shift")
def test_parameters_that_share_logits_have_the_same_two_parts():
    """z = W φ: autograd on W against Jᵀ of the two parts."""
    rng = np.random.default_rng(5)
    features = torch.tensor(rng.normal(size=(5, 2)))
    weights = torch.tensor(rng.normal(size=(2, 3)), requires_grad=True)
    (gradient,) = torch.autograd.grad(listed(features @ weights, "token"), weights)
    parts = on_policy.on_policy_gradient(TREE, (features @ weights).detach().numpy())
    assert np.allclose(features.numpy().T @ sum(parts), gradient.numpy(), atol=1e-14)


@pytest.mark.statement("state-shift")
def test_a_step_can_lower_entropy_on_every_fixed_context_and_raise_it_in_all():
    tree = SequenceTree(np.array([[1, 2], [END, END], [END, END]]))
    logits = np.array([[0.0, 0.0], [0.0, 0.0], [-5.15, 0.0]])  # entropies log 2, log 2, about .035
    before = on_policy.on_policy_entropy(tree, logits)
    logits[0] = [0.5, -0.5]
    assert on_policy.on_policy_entropy(tree, logits) > before
    fixed, shift = on_policy.on_policy_gradient(tree, logits)
    assert fixed[0, 0] < 0.0 < shift[0, 0]


@pytest.mark.statement("tabular-state-shift")
def test_the_total_discriminant_is_minus_the_slope_of_what_follows():
    rng = np.random.default_rng(1)
    z, future = torch.tensor(rng.normal(size=6), requires_grad=True), torch.tensor(rng.uniform(0.0, 3.0, size=6))
    log_probs = torch.log_softmax(z, dim=-1)
    (slope,) = torch.autograd.grad((log_probs.exp() * (future - log_probs)).sum(), z)
    value = on_policy.total_discriminant(z.detach().numpy(), future.numpy())
    assert np.allclose(value, -slope.numpy(), atol=1e-14)


@pytest.mark.statement("influence", "tangent-logits")
def test_influence_matches_autograd_through_shared_weights():
    """A network of two layers: D of every token from one tangent, against the inner product of two gradients."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()
    inputs = torch.randn(6, 3).double()
    weights = list(network.parameters())

    def flat(value):
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, weights, retain_graph=True)])

    log_probs = torch.log_softmax(network(inputs), dim=-1)
    direction = flat(-(log_probs.exp() * log_probs).sum(dim=-1).mean())
    pieces = torch.split(direction, [w.numel() for w in weights])
    tangents = {name: piece.view_as(w) for (name, w), piece in zip(network.named_parameters(), pieces, strict=True)}
    _, tangent = torch.func.jvp(
        lambda values: torch.func.functional_call(network, values, (inputs,)),
        (dict(network.named_parameters()),),
        (tangents,),
    )
    logits = network(inputs).detach().numpy()
    values = updates.tangent_influence(logits, tangent.detach().numpy())
    direct = [[(flat(log_probs[t, y]) @ direction).item() for y in range(4)] for t in range(6)]
    assert np.allclose(values, direct, atol=1e-14)
    assert np.allclose(
        updates.tangent_influence(logits, tangent.detach().numpy(), np.arange(6) % 4),
        values[np.arange(6), np.arange(6) % 4],
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SequenceTree(np.array([1, 2])), "following: expected integers of shape (C, V)"),
        (lambda: SequenceTree(np.array([[1, 1], [END, END]])), "following: expected each context but the first"),
        (lambda: SequenceTree(np.array([[END, 2], [1, END], [END, END]])), "following: expected contexts that come"),
        (lambda: on_policy.on_policy_entropy(TREE, np.zeros((2, 3))), "logits: expected shape (5, 3) as the tree has"),
        (lambda: on_policy.on_policy_entropy(TREE, np.zeros((5, 3)), "mean"), "mean: expected one of sum, token"),
        (lambda: on_policy.total_discriminant([0.0, 1.0], [1.0]), "future: expected shape (..., 2)"),
        (lambda: updates.tangent_influence([0.0, 1.0], [np.inf, 1.0]), "tangent: expected finite values"),
        (lambda: updates.tangent_influence([0.0, 1.0], [0.0, 1.0], 2), "token: expected ids in 0..1, received 2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared below)
        call()
    assert message in str(caught.value)
