"""Inserts where they are used: as a function, in gradients, half precision, checkpoints, exported programs, copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers.mlp import SwiGLU
from torch import Tensor, nn

from promptcl.backbone import Backbone, Change, Features, Insert, Prefix, Tokens
from promptcl.config.schema import BackboneConfig
from promptcl.errors import UserError


def make(**config: Any) -> Backbone:
    config = {"name": "test_vit", "weights": "random", "image_size": 32, **config}
    return Backbone.create(BackboneConfig(**config))


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


class Learned(nn.Module):
    """One of each kind of insert, at the given layers."""

    def __init__(self, width: int, layers: tuple[int, ...], tokens: int | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.5 * torch.randn(shape, generator=generator))

        self.layers, self.tokens = layers, tokens
        self.keys, self.values, self.prompt = (parameter(1, 4, width) for _ in range(3))
        self.down, self.up, self.scale = parameter(2, width), parameter(width, 2), parameter(width)

    def inserts(self) -> list[Insert]:
        out: list[Insert] = [] if self.tokens is None else [Tokens(self.tokens, self.prompt)]
        for layer in self.layers:
            out += [Prefix(layer, self.keys, self.values), Change(layer, "v", self.low_rank)]
            out += [Change(layer, "norm2", lambda _, y: y * (1 + self.scale))]
        return out

    def low_rank(self, x: Tensor, y: Tensor) -> Tensor:
        return y + x @ self.down.T @ self.up.T

    def gradients(self, features: Features) -> list[Tensor]:
        """Gradients of a loss that reads all features."""
        read = torch.cat([features.prompts_BPD, features.pooled_BD[:, None]], 1)
        loss = (read * torch.randn(read.shape, generator=torch.Generator().manual_seed(4))).sum()
        used = [p for p in self.parameters() if self.tokens is not None or p is not self.prompt]
        return list(torch.autograd.grad(loss, used))


def test_a_function_of_layer_and_tokens_gives_what_the_data_gives() -> None:
    backbone = make()
    learned = Learned(backbone.width, (0, 2, backbone.depth - 1), tokens=1)
    data = learned.inserts()
    entered: list[Tensor] = []

    def function(layer: int, tokens_BND: Tensor) -> list[Insert]:
        entered.append(tokens_BND)
        return [insert for insert in data if insert.layer == layer]

    left, right = backbone(images(), function), backbone(images(), data)
    assert torch.equal(left.pooled_BD, right.pooled_BD)
    assert torch.equal(left.prompts_BPD, right.prompts_BPD)
    assert left.prompts_BPD.shape == (3, 4, backbone.width)
    for a, b in zip(learned.gradients(left), learned.gradients(right), strict=True):
        assert torch.equal(a, b)
    count = entered[0].shape[1]
    assert [t.shape[1] for t in entered] == [count, count, *[count + 4] * (backbone.depth - 2)]
    assert torch.equal(backbone.tokens(images(), function), backbone.tokens(images(), data))


def test_a_function_sees_the_tokens_before_the_norm() -> None:
    backbone = make()
    seen: list[Tensor] = []
    expected: list[Tensor] = []
    for block in backbone.vit.blocks:
        block.register_forward_pre_hook(lambda _m, args: expected.append(args[0]))
    backbone.tokens(images())
    backbone(images(), lambda _layer, tokens: seen.append(tokens) or ())  # type: ignore[func-returns-value]
    assert len(seen) == backbone.depth
    assert all(torch.equal(a, b) for a, b in zip(seen, expected[: backbone.depth], strict=True))


def test_gradients_reach_the_inserts_and_nothing_else() -> None:
    backbone = make()
    last = backbone.depth - 1
    for layers, tokens in (((0, 3), None), ((last,), None), ((1, last), last)):
        learned = Learned(backbone.width, layers, tokens)
        pruned = learned.gradients(backbone(images(), learned.inserts()))
        rows = 0 if tokens is None else 4
        all_rows = backbone.tokens(images(), learned.inserts())
        full = learned.gradients(Features(all_rows[:, rows], all_rows[:, :rows]))
        for a, b in zip(pruned, full, strict=True):
            assert a.abs().max() > 1e-3
            assert torch.allclose(a, b, atol=1e-5)
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("extra", [{}, {"qk_norm": True}, {"init_values": 0.1}])
def test_bfloat16_gives_float32_gradients(extra: dict[str, Any]) -> None:
    exact, half = make(kwargs=extra), make(kwargs=extra, precision="bf16")
    learned = Learned(exact.width, (0, exact.depth - 1), tokens=0)
    dtypes: list[tuple[torch.dtype, bool]] = []

    def function(layer: int, tokens_BND: Tensor) -> list[Insert]:
        dtypes.append((tokens_BND.dtype, torch.is_autocast_enabled("cpu")))
        return [insert for insert in learned.inserts() if insert.layer == layer]

    for inserts in (learned.inserts(), function):
        a, b = exact(images(), inserts), half(images(), inserts)
        assert b.pooled_BD.dtype == torch.float32
        assert not torch.equal(a.pooled_BD, b.pooled_BD)
        assert torch.allclose(a.pooled_BD, b.pooled_BD, atol=0.2)
        gradients = learned.gradients(b)
        assert {g.dtype for g in gradients} == {torch.float32}
        for g, h in zip(learned.gradients(a), gradients, strict=True):
            assert torch.cosine_similarity(g.flatten(), h.flatten(), dim=0) > 0.98
    assert set(dtypes) == {(torch.float32, False)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activation_checkpointing_gives_the_same_bits(precision: str) -> None:
    plain, thrifty = (make(precision=precision, activation_checkpointing=again) for again in (False, True))
    learned = Learned(plain.width, (0, 2, plain.depth - 1))
    calls: list[int] = []
    kept: list[int] = []

    def counted(x: Tensor, y: Tensor) -> Tensor:
        calls.append(0)
        return y * (1 + learned.scale)

    inserts = [Change(0, "norm1", counted), *learned.inserts()]

    def run(backbone: Backbone) -> list[Tensor]:
        calls.clear()
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = backbone(images(), inserts)
        kept.append(sum(sizes))
        return [features.pooled_BD, *learned.gradients(features)]

    expected, expected_calls = run(plain), len(calls)
    for left, right in zip(expected, run(thrifty), strict=True):
        assert torch.equal(left, right)
    # block 0, whose input needs no gradient, is computed again too
    assert (expected_calls, len(calls)) == (1, 2)
    assert kept[1] < kept[0] / 2
    with torch.no_grad():
        assert torch.equal(thrifty(images(), inserts).pooled_BD, expected[0])


class Program(nn.Module):
    """A backbone and what is put into it."""

    def __init__(self, backbone: Backbone, learned: Learned, asked: bool) -> None:
        super().__init__()
        self.backbone, self.learned, self.asked = backbone, learned, asked

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        inserts = self.learned.inserts()
        if not self.asked:
            own = self.learned.prompt.expand(images_BCHW.shape[0], -1, -1)
            out: Features = self.backbone(images_BCHW, [*inserts, Tokens(1, own)])
        else:
            out = self.backbone(images_BCHW, lambda layer, _: [i for i in inserts if i.layer == layer])
        return out


@pytest.mark.slow
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_exported_program_gives_the_same_numbers(asked: bool, precision: str) -> None:
    backbone = make(precision=precision)
    program = Program(backbone, Learned(backbone.width, (0, backbone.depth - 1), tokens=0), asked).eval()
    with torch.no_grad():
        exported = torch.export.export(
            program, (images(2),), dynamic_shapes={"images_BCHW": {0: torch.export.Dim("images", min=1)}}
        ).module()
        for count in (1, 2, 5):
            for a, b in zip(exported(images(count)), program(images(count)), strict=True):
                assert torch.allclose(a, b, atol=1e-6 if precision == "fp32" else 1e-2)


def test_a_copy_learns_and_leaves_the_original_as_it_was() -> None:
    backbone = make(kwargs={"drop_path_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5})
    before, query = {k: v.clone() for k, v in backbone.state_dict().items()}, backbone.query(images())
    twin = backbone.copy()
    assert twin.describe() == backbone.describe()
    assert twin.identity == backbone.identity
    assert (twin.depth, twin.width, twin.hidden) == (backbone.depth, backbone.width, backbone.hidden) == (6, 64, 192)
    nn.ModuleList([twin]).train()
    assert not any(module.training for module in twin.modules())
    features = twin(images())
    assert torch.equal(features.pooled_BD, query)  # no dropout
    assert not twin.query(images()).requires_grad
    features.pooled_BD.square().sum().backward()
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None, name
    torch.optim.SGD(twin.parameters(), 0.1).step()
    assert not torch.allclose(twin.query(images()), query, atol=1e-3)
    assert torch.equal(backbone.query(images()), query)
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert twin.copy().vit.cls_token.grad is None


def test_a_copy_learns_with_checkpointing_even_in_its_last_blocks_only() -> None:
    gradients = []
    for again in (False, True):
        twin = make(activation_checkpointing=again).copy()
        twin.vit.requires_grad_(False)
        twin.vit.blocks[2:].requires_grad_(True)
        calls: list[int] = []
        twin.vit.blocks[2].mlp.act.register_forward_hook(lambda *_, calls=calls: calls.append(0))
        twin(images()).pooled_BD.square().sum().backward()
        gradients.append([p.grad for p in twin.vit.blocks[2:].parameters()])
        assert len(calls) == 1 + again
    for a, b in zip(*gradients, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def any_(value: Any) -> Any:
    """What a type checker would refuse."""
    return value


@pytest.mark.parametrize(
    ("insert", "message"),
    [
        (lambda: Tokens(6, zeros(1, 2, 64)), "Tokens at layer 6: test_vit has layers 0 to 5, write one of these"),
        (lambda: Prefix(-1, zeros(1, 2, 64), zeros(1, 2, 64)), "Prefix at layer -1: .* layers 0 to 5"),
        (lambda: Change(9, "q", lambda _, y: y), "Change at layer 9: .* layers 0 to 5"),
        (lambda: Change(0, any_("query"), lambda _, y: y), "place='query', expected one of norm1, q, k, v, proj, attn"),
        (lambda: Tokens(0, zeros(1, 2, 32)), r"tokens are 32 wide, test_vit is 64 wide: make them \[B, L, 64\]"),
        (lambda: Prefix(0, zeros(1, 2, 32), zeros(1, 2, 64)), "keys are 32 wide, test_vit is 64 wide"),
        (lambda: Prefix(0, zeros(1, 2, 64), zeros(1, 2, 32)), "values are 32 wide, test_vit is 64 wide"),
        (lambda: Prefix(1, zeros(1, 4, 64), zeros(1, 5, 64)), "layer 1 has 4 keys and 5 values: each key needs one"),
        (lambda: Tokens(0, zeros(2, 2, 64)), "tokens are for 2 images, the batch has 3: give 3, or 1 for all"),
        (lambda: Prefix(0, zeros(3, 2, 64), zeros(4, 2, 64)), "values are for 4 images, the batch has 3"),
        (lambda: Tokens(0, zeros(2, 64)), r"tokens have shape \(2, 64\), expected \[B, L, D\]"),
        (
            lambda: Change(0, "k", lambda _, y: y[..., :1]),
            r"Change at k of layer 0 gave \[3, 5, 1\], expected \[3, 5, 64\]",
        ),
        (lambda: Change(5, "fc1", lambda _, y: any_(None)), "Change at fc1 of layer 5 gave NoneType, expected"),
        (lambda: (0, zeros(1, 2, 64)), "an insert is a tuple, expected Tokens, Prefix, Change or Weight"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(insert: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make()(images(), [insert()])
    assert "\n" not in str(caught.value)
    if "at layer 0" in str(caught.value):  # the same where a function gives it
        with pytest.raises(UserError, match=message):
            make()(images(), lambda _layer, _tokens: [insert()])


def test_a_function_gives_inserts_of_its_layer() -> None:
    with pytest.raises(UserError, match="asked for layer 0 and gave one for layer 1: give those of layer 0 only"):
        make()(images(), lambda _layer, _tokens: [Tokens(1, zeros(1, 2, 64))])


def test_a_split_gated_mlp_has_no_fc1() -> None:
    backbone = make(kwargs={"mlp_layer": SwiGLU})
    assert backbone(images(), [Change(0, "mlp", lambda x, y: y + x)]).pooled_BD.shape == (3, 64)
    with pytest.raises(UserError, match=r"fc1 of layer 0 needs a plain MLP, this one is a SwiGLU: write place='mlp'"):
        backbone(images(), [Change(0, "fc1", lambda _, y: y)])


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="cannot take inserts, it has no block"):
        make(kwargs={"depth": 0})
