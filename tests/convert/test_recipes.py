"""Which weight gets how many bits: by rule, and by what a budget buys."""

from __future__ import annotations

import math

import pytest

from partita.errors import DataError
from partita_convert.measure import Groups, Part, allocate
from partita_convert.recipes import Format, formats, parse_recipe, part_of, quantizable

LAYERS = 16
SHAPES = {
    "model.embed_tokens.weight": (512, 128),
    **{
        f"model.layers.{i}.{module}.weight": shape
        for i in range(LAYERS)
        for module, shape in {
            "self_attn.q_proj": (128, 128),
            "self_attn.k_proj": (64, 128),
            "self_attn.v_proj": (64, 128),
            "self_attn.o_proj": (128, 128),
            "mlp.gate_proj": (256, 128),
            "mlp.up_proj": (256, 128),
            "mlp.down_proj": (128, 256),
        }.items()
    },
    "lm_head.weight": (512, 128),
}
OTHERS = {
    "model.norm.weight": (128,),
    "model.layers.0.input_layernorm.weight": (128,),
    "model.layers.0.self_attn.q_proj.bias": (128,),
    "model.layers.0.mlp.gate.weight": (8, 128),
    "model.layers.0.mlp.router.weight": (8, 128),
    "model.layers.0.self_attn.sinks": (4,),
    "model.layers.0.odd.weight": (64, 100),
    "vision_tower.encoder.layers.0.self_attn.q_proj.weight": (128, 128),
    "model.layers.0.mlp.experts.gate_up_proj": (4, 128, 128),
}


class Names:
    """As much of a checkpoint as recipes look at."""

    def names(self):
        return (*SHAPES, *OTHERS)

    def shape(self, name):
        return {**SHAPES, **OTHERS}[name]


def test_only_matrices_of_the_decoder_are_quantized():
    assert quantizable(Names()) == SHAPES  # pyright: ignore[reportArgumentType]


WIDTHS = Groups(64)


@pytest.mark.parametrize(
    ("text", "low", "high", "group", "named", "budget"),
    [
        ("4", 4, 4, 64, False, None),
        ("3:32", 3, 3, 32, True, None),
        ("mixed_3_6", 3, 6, 64, False, None),
        ("mixed_4_6:128", 4, 6, 128, True, None),
        ("1:128", 1, 1, 128, True, None),
        ("nvfp4", 4, 4, 64, True, None),
        ("NVFP4", 4, 4, 64, True, None),
        ("mxfp8", 8, 8, 64, True, None),
        ("measured:4.5", 2, 8, 64, True, 4.5),
        ("measured:3.75:32", 2, 8, 32, True, 3.75),
    ],
)
def test_recipes_are_read(text, low, high, group, named, budget):
    recipe = parse_recipe(text)
    assert (recipe.low, recipe.high, recipe.group_size) == (low, high, group)
    assert (recipe.names_group, recipe.budget) == (named, budget)


@pytest.mark.parametrize(
    "text", ["", "7", "4:", "4:16", "4:64:1", "four", "mixed_1_2", "measured", "measured:", "measured:x", "-4", "4.5"]
)
def test_what_is_not_a_recipe_is_one_line(text):
    with pytest.raises(DataError, match=r"^(unknown )?`quantize` ") as refused:
        parse_recipe(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", ["1", "99", "nan", "-3"])
def test_budgets_are_bounded(value):
    with pytest.raises(DataError, match="bits a weight"):
        parse_recipe(f"measured:{value}")


def test_a_plain_recipe_spares_embedding_and_head():
    chosen = formats(parse_recipe("4"), SHAPES)
    assert set(chosen) == set(SHAPES)
    assert chosen["model.embed_tokens.weight"] == chosen["lm_head.weight"] == Format(6, 64)
    assert {chosen[name] for name in SHAPES if "layers" in name} == {Format(4, 64)}
    assert formats(parse_recipe("8"), SHAPES)["lm_head.weight"] == Format(8, 64)


def test_groups_shrink_to_what_divides():
    chosen = formats(parse_recipe("4:128"), {"model.layers.0.mlp.up_proj.weight": (8, 192), "lm_head.weight": (8, 96)})
    assert list(chosen.values()) == [Format(4, 64), Format(6, 32)]


def test_a_mixture_gives_more_where_it_helps():
    chosen = formats(parse_recipe("mixed_3_6"), SHAPES)
    for i in range(LAYERS):
        assert chosen[f"model.layers.{i}.self_attn.v_proj.weight"].bits == 6
    assert chosen["model.layers.0.mlp.up_proj.weight"].bits == chosen["model.layers.15.mlp.up_proj.weight"].bits == 6
    assert chosen["model.layers.7.mlp.up_proj.weight"].bits == 3
    downs = [chosen[f"model.layers.{i}.mlp.down_proj.weight"].bits for i in range(LAYERS)]
    assert downs[:2] == downs[-2:] == [6, 6]
    assert 3 in downs
    spent = sum(math.prod(SHAPES[name]) * form.bits_per_weight for name, form in chosen.items())
    assert 3.5 < spent / sum(math.prod(shape) for shape in SHAPES.values()) < 5.5


def test_parts_are_one_whatever_a_family_calls_them():
    layer = "model.layers.2"
    numbered = [part_of(f"{layer}.feed_forward.w{i}.weight") for i in (1, 3, 2)]
    assert numbered == [part_of(f"{layer}.mlp.{name}_proj.weight") for name in ("gate", "up", "down")]
    assert numbered == ["gate_up", "gate_up", "down_proj"]
    assert part_of(f"{layer}.self_attn.gate_proj.weight") == part_of(f"{layer}.self_attn.g_proj.weight")
    assert part_of(f"{layer}.self_attn.gate_proj.weight") == "attention gate"
    assert [part_of(f"{layer}.conv.{name}_proj.weight") for name in ("in", "out")] == ["in_proj", "out_proj"]
    widths = {f"model.layers.{i}.feed_forward.{name}.weight": (64, 64) for i in range(16) for name in ("w1", "w2")}
    chosen = formats(parse_recipe("mixed_3_6"), widths)
    assert chosen["model.layers.1.feed_forward.w2.weight"].bits == 6  # the down projection of an outer layer
    assert chosen["model.layers.1.feed_forward.w1.weight"].bits == 3


def parts(divergence) -> list[Part]:
    grouped: dict[tuple[str, str], list[str]] = {}
    for name in SHAPES:
        grouped.setdefault((name.partition(".self_attn")[0].partition(".mlp")[0], part_of(name)), []).append(name)
    errors = {2: 4.0, 3: 1.0, 4: 0.2, 5: 0.05, 6: 0.0125, 8: 0.0008}
    return [Part(tuple(names), divergence(names[0]), errors) for names in grouped.values()]


def stored_bits(chosen) -> float:
    return sum(math.prod(SHAPES[name]) * form.bits_per_weight for name, form in chosen.items())


@pytest.mark.parametrize("budget", [2.6, 3.0, 4.5, 6.0, 8.4])
def test_a_budget_is_spent_and_never_overdrawn(budget):
    recipe = parse_recipe(f"measured:{budget}")
    chosen = allocate(parts(lambda name: 1.0 if "v_proj" in name else 0.1), SHAPES, recipe, other_bits=0, widths=WIDTHS)
    count = sum(math.prod(shape) for shape in SHAPES.values())
    assert set(chosen) == set(SHAPES)
    assert 0.9 * budget < stored_bits(chosen) / count <= budget


def test_the_sensitive_get_more():
    recipe = parse_recipe("measured:4")
    chosen = allocate(parts(lambda name: 1.0 if ".3." in name else 1e-4), SHAPES, recipe, other_bits=0, widths=WIDTHS)
    assert chosen["model.layers.3.mlp.up_proj.weight"].bits > chosen["model.layers.4.mlp.up_proj.weight"].bits
    pairs = [(f"model.layers.{i}.self_attn.{a}.weight" for a in ("q_proj", "k_proj")) for i in range(LAYERS)]
    assert all(chosen[q] == chosen[k] for q, k in pairs)  # what is measured together stays together


def test_what_else_is_stored_is_counted():
    count = sum(math.prod(shape) for shape in SHAPES.values())
    recipe = parse_recipe("measured:4")
    chosen = allocate(parts(lambda name: 0.1), SHAPES, recipe, other_bits=count, widths=WIDTHS)
    assert stored_bits(chosen) <= 3 * count
    with pytest.raises(DataError, match=r"'measured:4': .* 6\.50 bits"):
        allocate(parts(lambda name: 0.1), SHAPES, recipe, other_bits=4 * count, widths=WIDTHS)
