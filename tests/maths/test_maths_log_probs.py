"""Log-probs in chunks: the same numbers and gradients as without, and no second copy of the logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ippo_lightning.errors import UserError
from ippo_lightning.maths import token_log_probs, token_log_probs_and_entropy

# fp64, a handful of operations
EXACT = {"rtol": 1e-12, "atol": 1e-12}
# bfloat16 keeps 8 bits: what is gained in its gradient is rounded there and nowhere else
BFLOAT16_GRADIENT = {"rtol": 2.0**-7, "atol": 2.0**-7}


def logits_and_ids(episodes: int = 3, tokens: int = 5, vocab: int = 7) -> tuple[Tensor, Tensor]:
    logits = 3 * torch.randn(episodes, tokens, vocab, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(vocab, (episodes, tokens))


def by_loop(logits: Tensor, ids: Tensor, temperature: float) -> tuple[list[list[float]], list[list[float]]]:
    """Log-probs and entropy by Python numbers."""
    log_probs, entropies = [], []
    for row, chosen in zip(logits.tolist(), ids.tolist(), strict=True):
        totals = [math.log(math.fsum(math.exp(x / temperature) for x in scores)) for scores in row]
        log_probs.append([row[t][chosen[t]] / temperature - totals[t] for t in range(len(row))])
        entropies.append(
            [
                -math.fsum(math.exp(x / temperature - total) * (x / temperature - total) for x in scores)
                for scores, total in zip(row, totals, strict=True)
            ]
        )
    return log_probs, entropies


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("chunk_size", [1, 4, 1024])
def test_log_probs_and_entropy_are_those_of_a_loop(temperature: float, chunk_size: int) -> None:
    logits, ids = logits_and_ids()
    found = token_log_probs_and_entropy(logits=logits, ids=ids, temperature=temperature, chunk_size=chunk_size)
    for tensor, expected in zip(found, by_loop(logits, ids, temperature), strict=True):
        torch.testing.assert_close(tensor, torch.tensor(expected, dtype=torch.float64), **EXACT)
    alone = token_log_probs(logits=logits, ids=ids, temperature=temperature, chunk_size=chunk_size)
    assert torch.equal(alone, found[0])


def test_by_hand() -> None:
    # logits ln 1, ln 3: probabilities 1/4, 3/4; at temperature 1/2 they are squared: 1/10, 9/10
    logits = torch.tensor([[[math.log(1), math.log(3)]]], dtype=torch.float64)
    ids = torch.tensor([[1]])
    assert token_log_probs(logits=logits, ids=ids, temperature=1.0).item() == pytest.approx(math.log(3 / 4))
    assert token_log_probs(logits=logits, ids=ids, temperature=0.5).item() == pytest.approx(math.log(9 / 10))
    entropy = token_log_probs_and_entropy(logits=logits, ids=ids, temperature=1.0)[1].item()
    assert entropy == pytest.approx(-(math.log(1 / 4) / 4 + 3 * math.log(3 / 4) / 4), rel=1e-12)


@settings(max_examples=40)
@given(episodes=st.integers(0, 4), tokens=st.integers(0, 6), chunk_size=st.integers(1, 30))
def test_chunks_change_neither_numbers_nor_gradients(episodes: int, tokens: int, chunk_size: int) -> None:
    logits, ids = logits_and_ids(episodes, tokens)
    weights = torch.randn(2, episodes, tokens, dtype=torch.float64)
    whole = torch.stack(token_log_probs_and_entropy(logits=logits, ids=ids, temperature=0.7, chunk_size=10**6))
    chunked = torch.stack(token_log_probs_and_entropy(logits=logits, ids=ids, temperature=0.7, chunk_size=chunk_size))
    torch.testing.assert_close(chunked, whole, **EXACT)
    gradients = [torch.autograd.grad((weights * numbers).sum(), logits)[0] for numbers in (whole, chunked)]
    torch.testing.assert_close(*gradients, **EXACT)


@pytest.mark.parametrize("chunk_size", [2, 1024])
def test_gradients_are_those_of_finite_differences(chunk_size: int) -> None:
    logits, ids = logits_and_ids(2, 3, 4)

    def both(values: Tensor) -> tuple[Tensor, Tensor]:
        return token_log_probs_and_entropy(logits=values, ids=ids, temperature=0.7, chunk_size=chunk_size)

    assert torch.autograd.gradcheck(both, (logits,))


@pytest.mark.parametrize("chunk_size", [2, 1024])
def test_a_forbidden_token_adds_nothing_and_leaves_gradients_finite(chunk_size: int) -> None:
    logits, _ = logits_and_ids(2, 3, 4)
    ids = torch.zeros(2, 3, dtype=torch.long)
    wider = torch.cat([logits, torch.full((2, 3, 1), -math.inf, dtype=torch.float64)], dim=-1)
    results = []
    for values in (logits, wider):
        found = token_log_probs_and_entropy(logits=values, ids=ids, temperature=0.7, chunk_size=chunk_size)
        results.append((*found, *torch.autograd.grad(sum(number.sum() for number in found), logits)))
    torch.testing.assert_close(*results, **EXACT)


@pytest.mark.parametrize(("dtype", "result"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_numbers_are_computed_in_single_precision_at_least(dtype: torch.dtype, result: torch.dtype) -> None:
    logits, ids = logits_and_ids(vocab=300)
    coarse = logits.detach().to(dtype).requires_grad_()
    found = token_log_probs_and_entropy(logits=coarse, ids=ids, temperature=0.7, chunk_size=4)
    exact = coarse.detach().double().requires_grad_()
    expected = token_log_probs_and_entropy(logits=exact, ids=ids, temperature=0.7)
    for tensor, numbers in zip(found, expected, strict=True):
        assert tensor.dtype == result
        # single precision on numbers up to 30
        torch.testing.assert_close(tensor.double(), numbers, rtol=1e-6, atol=1e-5)
    gradients = [torch.autograd.grad(sum(n.sum() for n in x), y)[0] for x, y in ((found, coarse), (expected, exact))]
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(gradients[0].double(), gradients[1], **BFLOAT16_GRADIENT)


def test_the_temperature_changes_the_numbers_and_so_does_the_id() -> None:
    logits, ids = logits_and_ids()
    base = token_log_probs(logits=logits, ids=ids, temperature=1.0)
    assert (token_log_probs(logits=logits, ids=ids, temperature=0.9) != base).all()
    assert (token_log_probs(logits=logits, ids=(ids + 1) % 7, temperature=1.0) != base).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("function", [token_log_probs, token_log_probs_and_entropy])
def test_a_temperature_of_zero_or_less_is_refused(function, temperature: float) -> None:
    logits, ids = logits_and_ids()
    with pytest.raises(UserError, match=rf"^temperature: {temperature} .*expected a number > 0"):
        function(logits=logits, ids=ids, temperature=temperature)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor of at least single precision that any operation allocated."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.known = logits.untyped_storage().data_ptr()
        self.of_any_dtype = 0
        self.of_full_precision = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() != self.known:
                self.of_any_dtype = max(self.of_any_dtype, tensor.numel())
                if tensor.dtype in (torch.float32, torch.float64):
                    self.of_full_precision = max(self.of_full_precision, tensor.numel())
        return result


EPISODES, TOKENS, VOCAB, CHUNK = 4, 33, 50, 8


def sliced_logits(dtype: torch.dtype, *, requires_grad: bool) -> Tensor:
    """Logits as a model gives them: one position more than there are tokens, the last one left out."""
    return torch.randn(EPISODES, TOKENS + 1, VOCAB).to(dtype).requires_grad_(requires_grad)[:, :-1]


@pytest.mark.parametrize("function", [token_log_probs, token_log_probs_and_entropy])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_no_second_copy_of_the_logits_is_made(function, dtype: torch.dtype, requires_grad: bool) -> None:
    logits = sliced_logits(dtype, requires_grad=requires_grad)
    ids = torch.randint(VOCAB, (EPISODES, TOKENS))
    with Largest(logits) as largest:
        function(logits=logits, ids=ids, temperature=1.0, chunk_size=CHUNK)
    assert largest.of_full_precision >= CHUNK * VOCAB
    assert largest.of_any_dtype <= max(CHUNK * VOCAB, EPISODES * TOKENS)


@pytest.mark.parametrize("function", [token_log_probs, token_log_probs_and_entropy])
def test_no_full_single_precision_copy_is_made_in_backward_either(function) -> None:
    logits = sliced_logits(torch.bfloat16, requires_grad=True)
    ids = torch.randint(VOCAB, (EPISODES, TOKENS))
    found = function(logits=logits, ids=ids, temperature=1.0, chunk_size=CHUNK)
    loss = found.sum() if isinstance(found, Tensor) else sum(number.sum() for number in found)
    with Largest(logits) as largest:
        loss.backward()
    # the gradient itself has to be there, in the precision of the logits
    assert largest.of_any_dtype >= logits.numel()
    assert largest.of_full_precision <= max(CHUNK * VOCAB, EPISODES * TOKENS)


@pytest.mark.parametrize("function", [token_log_probs, token_log_probs_and_entropy])
def test_nothing_the_size_of_the_logits_is_kept_for_backward(function) -> None:
    logits = sliced_logits(torch.float32, requires_grad=True)
    ids = torch.randint(VOCAB, (EPISODES, TOKENS))
    own, kept = logits.untyped_storage().data_ptr(), {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() != own and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        function(logits=logits, ids=ids, temperature=1.0, chunk_size=CHUNK)
    in_one_chunk = sum(kept.values())
    assert in_one_chunk <= CHUNK * VOCAB * 4

    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        function(logits=logits, ids=ids, temperature=1.0, chunk_size=10**6)
    # the same measure sees what chunks save
    assert sum(kept.values()) >= logits.numel() * 4


class Copies(TorchDispatchMode):
    """Counts the tensors of the size of the logits that operations allocate."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.size = logits.numel()
        self.addresses = {logits.untyped_storage().data_ptr()}
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            address = tensor.untyped_storage().data_ptr() if isinstance(tensor, Tensor) else 0
            if address and tensor.is_floating_point() and tensor.numel() == self.size:
                if address not in self.addresses:
                    self.made.append(tensor)  # kept alive, so that no address is used twice
                self.addresses.add(address)
        return result


@pytest.mark.parametrize(
    ("function", "options", "temperature", "copies"),
    [
        (token_log_probs, {}, 1.0, 1),  # the log-softmax
        (token_log_probs, {}, 0.7, 2),  # and the scaled logits
        (token_log_probs_and_entropy, {"detach_entropy": True}, 1.0, 2),  # and the probabilities
        (token_log_probs_and_entropy, {}, 1.0, 2),
    ],
)
def test_a_block_without_gradient_takes_few_copies_and_gives_the_same_bits(
    function, options: dict, temperature: float, copies: int
) -> None:
    logits = torch.randn(4, 5, 60)
    logits[..., 7] = -math.inf
    ids = torch.randint(7, (4, 5))
    with torch.no_grad(), Copies(logits) as counted:
        found = function(logits=logits, ids=ids, temperature=temperature, **options)
    assert len(counted.made) <= copies
    expected = function(logits=logits.requires_grad_(True), ids=ids, temperature=temperature)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
