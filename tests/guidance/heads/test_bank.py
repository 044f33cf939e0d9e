from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trimtab.guidance.errors import HeadError
from trimtab.guidance.heads.bank import HeadBank, Vocabulary
from trimtab.guidance.heads.fingerprint import PolicyIdentity
from trimtab.guidance.heads.forms import ACTIVATIONS, Head
from trimtab.guidance.heads.manifest import AdvantagePart, BaseModel, Manifest, Parts, ScalarPart
from trimtab.guidance.heads.store import save_head

D, V = 12, 31
BASE = BaseModel("tiny", "f", "t", "")
POLICY = PolicyIdentity(BASE, D, V)
HEADS = {
    "tied4": Parts(AdvantagePart("tied", 4, "silu"), ScalarPart("linear"), ScalarPart("mlp", 5)),
    "low7": Parts(AdvantagePart("lowrank", 7, "identity", scale=0.5), ScalarPart("mlp", 3)),
    "measure": Parts(reward=ScalarPart("linear")),
    "tied9": Parts(AdvantagePart("tied", 9, "identity")),
    "low2": Parts(
        AdvantagePart("lowrank", 2, "silu"),
        ScalarPart("mlp", 4, bins=7, low=-2.0, high=5.0),
        ScalarPart("linear", bins=3, low=0.0, high=1.0),
    ),
}


def make_heads() -> dict[str, tuple[Head, Manifest]]:
    generator = torch.Generator().manual_seed(0)
    heads = {}
    for number, (name, parts) in enumerate(HEADS.items()):
        head = Head(parts, D, V).requires_grad_(False)
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        heads[name] = (
            head,
            Manifest(name, parts, D, V, BASE, reward_mean=1.0 + number, reward_std=2.0 + number),
        )
    return heads


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("heads")
    for name, (head, manifest) in make_heads().items():
        save_head(root / name, head, manifest)
    return [root / name for name in HEADS]


@pytest.fixture
def bank(folders: list[Path]) -> HeadBank:
    return HeadBank.load(folders, POLICY, device="cpu", dtype=torch.float32)


def bank_advantage(bank: HeadBank, h: Tensor, lm_head: Tensor, rows: list[list[float]]) -> Tensor:
    weights = torch.tensor(rows)
    active = tuple(i for i in range(len(bank.names)) if bool((weights[:, i] != 0).any()))
    total = torch.zeros(len(h), V)
    column = bank.tied_column(h, weights, active)
    if column is not None:
        total += column @ lm_head.T
    lowrank = bank.lowrank_advantage(h, weights, active)
    if lowrank is not None:
        total += lowrank
        check_factors(bank, h, weights, active, lowrank)
    return total


def check_factors(
    bank: HeadBank, h: Tensor, weights: Tensor, active: tuple[int, ...], lowrank: Tensor
) -> None:
    """The factors that a fused kernel multiplies are those of the product."""
    factors = bank.lowrank_factors(h, weights, active)
    assert factors is not None
    inner, up = factors
    torch.testing.assert_close(inner @ up.T, lowrank, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "requests",
    [
        [[("tied4", 1.0)]],
        [[("low7", 2.0)], []],
        [[("tied4", 1.0), ("low7", -0.5), ("tied9", 3.0), ("low2", 0.25)], [("low2", 1.0)], [("tied9", 1.0)]],
    ],
)
def test_the_bank_gives_every_row_the_weighted_sum_of_its_own_heads(bank: HeadBank, requests):
    torch.manual_seed(1)
    h, lm_head = torch.randn(len(requests), D), torch.randn(V, D)
    got = bank_advantage(bank, h, lm_head, [bank.weights_row(request) for request in requests])
    heads = make_heads()
    for row, request in enumerate(requests):
        want = torch.zeros(V)
        for name, weight in request:
            head, manifest = heads[name]
            want += weight * manifest.parts.advantage.scale * head.advantage(h[row], lm_head)
        torch.testing.assert_close(got[row], want, rtol=1e-5, atol=1e-5)


def test_a_row_does_not_change_with_its_batchmates_heads(bank: HeadBank):
    torch.manual_seed(2)
    h, lm_head = torch.randn(2, D), torch.randn(V, D)
    mine = bank.weights_row([("low7", 1.0)])
    alone = bank_advantage(bank, h, lm_head, [mine, [0.0] * 5])
    shared = bank_advantage(bank, h, lm_head, [mine, bank.weights_row([("low2", 3.0), ("tied4", 1.0)])])
    assert torch.equal(alone[0], shared[0])


def test_values_and_rewards_are_in_standard_units_and_nan_where_a_head_has_none(bank: HeadBank):
    h = torch.randn(3, D)
    heads = make_heads()
    for part, got in (("value", bank.values(h)), ("reward", bank.rewards(h))):
        assert got.shape == (3, 5)
        for index, (head, manifest) in enumerate(heads.values()):
            module = getattr(head, part)
            if module is None:
                assert got[:, index].isnan().all()
            else:
                want = (module(h) - manifest.reward_mean) / manifest.reward_std
                torch.testing.assert_close(got[:, index], want, rtol=1e-5, atol=1e-5)


def test_the_bank_says_which_parts_each_head_has(bank: HeadBank):
    assert bank.names == tuple(HEADS)
    assert bank.has_advantage == (True, True, False, True, True)
    assert bank.has_value == (True, True, False, False, True)
    assert bank.has_reward == (True, False, True, False, True)
    assert [manifest.name for manifest in bank.manifests] == list(HEADS)


def test_nothing_is_computed_for_heads_that_no_row_uses(bank: HeadBank):
    h, weights = torch.randn(1, D), torch.zeros(1, 5)
    assert bank.tied_column(h, weights, ()) is None
    assert bank.tied_column(h, weights, (1, 4)) is None
    assert bank.lowrank_advantage(h, weights, (0, 3)) is None


def test_an_empty_bank_measures_and_steers_nothing():
    bank = HeadBank.load([], POLICY, device="cpu", dtype=torch.float32)
    h, weights = torch.randn(2, D), torch.zeros(2, 0)
    assert bank.values(h).shape == bank.rewards(h).shape == (2, 0)
    assert bank.tied_column(h, weights, ()) is None
    assert bank.lowrank_advantage(h, weights, ()) is None
    with pytest.raises(HeadError, match="no head is loaded"):
        bank.check([("kind", 1.0)])


def test_a_head_that_is_not_loaded_is_refused_with_the_names_that_are(bank: HeadBank):
    with pytest.raises(HeadError, match="'kind' is not loaded: loaded are tied4, low7"):
        bank.check([("kind", 1.0)])


def test_a_head_without_advantage_measures_but_cannot_steer(bank: HeadBank):
    bank.check([("measure", 1.0)], steering=False)
    bank.check([("measure", 0.0), ("low2", 1.0)])
    with pytest.raises(HeadError, match="'measure' has no advantage"):
        bank.check([("measure", 1.0)])


def test_two_heads_of_one_name_are_refused_with_both_folders(folders: list[Path], tmp_path: Path):
    head, manifest = make_heads()["low2"]
    save_head(tmp_path / "again", head, dataclasses.replace(manifest, name="low7"))
    with pytest.raises(HeadError, match="both named 'low7'") as caught:
        HeadBank.load([*folders, tmp_path / "again"], POLICY, device="cpu", dtype=torch.float32)
    assert str(folders[1]) in str(caught.value)
    assert str(tmp_path / "again") in str(caught.value)


@pytest.mark.parametrize("name", ["tied4", "low7", "tied9", "low2"])
def test_a_head_that_is_given_new_weights_is_as_if_it_had_been_loaded_with_them(name: str, bank: HeadBank):
    torch.manual_seed(1)
    h, lm_head = torch.randn(3, D), torch.randn(V, D)
    weights = torch.tensor([bank.weights_row([(n, 1.0)]) for n in ("tied4", name, "low2")])
    advantage_of(bank, h, lm_head, weights)  # what is kept between calls is made anew
    heads = make_heads()
    learned = Head(HEADS[name], D, V).requires_grad_(False)
    for parameter in learned.parameters():
        parameter.copy_(torch.randn_like(parameter))
    bank.put_advantage(name, learned.advantage)
    heads[name][0].advantage = learned.advantage
    fresh = HeadBank(list(heads.values()), D, device="cpu")
    torch.testing.assert_close(
        advantage_of(bank, h, lm_head, weights), advantage_of(fresh, h, lm_head, weights)
    )


@pytest.mark.parametrize(("name", "other"), [("tied4", "low7"), ("low7", "low2"), ("tied9", "tied4")])
def test_weights_of_another_form_or_size_are_refused(name: str, other: str, bank: HeadBank):
    with pytest.raises(HeadError, match="of another"):
        bank.put_advantage(name, make_heads()[other][0].advantage)


def advantage_of(bank: HeadBank, h: Tensor, lm_head: Tensor, weights: Tensor) -> Tensor:
    """By every way that the engine asks for it."""
    active = tuple(range(len(bank.names)))
    column, lowrank = bank.tied_column(h, weights, active), bank.lowrank_advantage(h, weights, active)
    inner, up = bank.lowrank_factors(h, weights, active)
    torch.testing.assert_close(inner @ up.T, lowrank)
    return column @ lm_head.T + lowrank


@pytest.mark.parametrize("form", ["tied", "lowrank"])
@pytest.mark.parametrize("rank", [1, 7, 12, 24, 48, 64])
def test_no_bit_of_an_advantage_depends_on_the_row_that_it_is_computed_in(form: str, rank: int):
    generator, size = torch.Generator().manual_seed(0), 64
    parts = Parts(AdvantagePart(form, rank, "silu"))  # type: ignore[arg-type]
    head = Head(parts, size, V).requires_grad_(False)
    for parameter in head.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    bank = HeadBank([(head, Manifest("one", parts, size, V, BASE))], size, device="cpu")
    compute = bank.tied_column if form == "tied" else bank.lowrank_advantage
    mine = torch.randn(1, size, generator=generator)
    for num_rows in (3, 5, 9, 17, 33):
        others = torch.randn(num_rows - 1, size, generator=generator)
        found = set()
        for place in range(num_rows):
            h = torch.cat([others[:place], mine, others[place:]])
            advantage = compute(h, torch.ones(num_rows, 1), (0,))
            assert advantage is not None
            found.add(tuple(advantage[place].tolist()))
        assert len(found) == 1


def weighted(down: Tensor, up: Tensor, activation: str) -> Callable[[Tensor, Tensor], Tensor]:
    down, up, between = down.clone(), up.clone(), ACTIVATIONS[activation]
    return lambda h, weights: weights[:, None] * (between(h @ down.T) @ up.T)


def test_products_of_ones_own_give_what_torch_gives_and_new_weights_too():
    torch.manual_seed(1)
    h, lm_head, heads = torch.randn(3, D), torch.randn(V, D), make_heads()
    vocabulary = Vocabulary(lambda columns: columns @ lm_head.T, weighted)
    own = HeadBank(list(heads.values()), D, device="cpu", vocabulary=vocabulary)
    plain = HeadBank(list(heads.values()), D, device="cpu")
    weights = torch.tensor(
        [plain.weights_row(h) for h in ([("tied4", 1.0)], [("low7", 2.0), ("tied9", 1.0)], [])]
    )

    def check() -> None:
        active = tuple(range(len(plain.names)))
        assert own.tied_column(h, weights, active) is None
        torch.testing.assert_close(
            own.lowrank_advantage(h, weights, active), advantage_of(plain, h, lm_head, weights)
        )

    check()
    for name in ("tied4", "low7"):
        learned = Head(HEADS[name], D, V).requires_grad_(False)
        for parameter in learned.parameters():
            parameter.copy_(torch.randn_like(parameter))
        for bank in (own, plain):
            bank.put_advantage(name, learned.advantage)
            with pytest.raises(HeadError, match="of another"):
                bank.put_advantage("low7" if name == "tied4" else "tied4", learned.advantage)
        check()
