"""Regular expressions of tokenizers: published ones pass, those that can blow up do not, and none that passes does."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from partita.errors import UnsupportedModel
from partita.text import pretokenizers
from partita.text.expressions import judge
from partita.text.steps import read_steps

from ...pulse import Pulse

# more that models were trained with, in the forms in which their files have them
PUBLISHED = [
    r"(?=(\d{3})+(?!\d))",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*\b)",
    r"'(?i:[sdmt]|ll)|[^\r\n\p{L}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}&&[^\p{Han}]]+(?i:'s|'t|'re)?|\p{N}{1,3}",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "^",
    " {2,}",
    "\n▁",
    r"[\x{4E00}-\x{9FA5}]+|\u3042|[[:punct:]]|\p{^L}",
]
EXPLODING = ["(x+x+)+y", "(a|aa)+$", "(a|a)*b", "x*x*y", "(.*)(.*)(.*)=", r"(\w+\s?)*$", "(?:x?){20}y", "x?" * 14 + "y"]
EXPLODING += ["(?>x*)(?=x*y)z", "(x*y)*x*z", "(?:(?:x|xx)(?:y|yy)){9}z", "(x|x)(x|x)(x|x)(x|x)" * 4 + "y"]
ATOMS = ["x", "y", "xy", ".", r"\s", r"\p{L}", "[xy]", "[^x]", "^", "$", r"\b", ""]


@pytest.mark.parametrize("expression", sorted({*pretokenizers.published(), *PUBLISHED}))
def test_published_expressions_are_accepted(expression):
    power, ways = judge(expression)
    assert power < 2
    assert 0 < ways < 50
    tokenizers.Regex(expression)


@pytest.mark.parametrize("expression", EXPLODING)
def test_expressions_with_too_many_ways_are_refused(expression):
    tokenizers.Regex(expression)  # the library takes it
    with pytest.raises(ValueError, match=r"too many ways|empty"):
        judge(expression)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (r"(a)\1", r"\\1 is not supported"),
        (r"(?<n>a)\g<n>", "group"),
        ("(?x: a # [\n)", "group"),
        ("(?~ab)", "group"),
        (r"\X", "not supported"),
        ("(a", r"unmatched \("),
        ("a)", r"unmatched \)"),
        ("[a", r"unmatched \["),
        ("[]a]", r"begins with \]"),
        ("*a", "repeats nothing"),
        ("a**", "empty"),
        ("a{3,1}", "repetition"),
        ("((a{99}){99}){99}", "places"),
        ("(" * 99 + "a" + ")" * 99, "nested"),
        ("a" * 5000, "5000 characters"),
        ("a\\", "not supported"),
        (r"\p{L", "not supported"),
    ],
)
def test_what_is_refused_says_why(expression, message):
    with pytest.raises(ValueError, match=message):
        judge(expression)


@pytest.mark.parametrize(
    ("expression", "work"),
    [(r"\p{L}+", (0, 1)), ("x*y", (1, 1)), ("(?>x+)y", (1, 1)), ("(?=x*)", (1, 1)), ("x+(?:x|x|x)(?:x|x)y", (1, 6))],
)
def test_what_may_take_the_square_of_a_text_is_reported(expression, work):
    assert judge(expression) == work


def repeated(inner):
    signs = st.sampled_from(["*", "+", "?", "*?", "++", "{2}", "{1,3}", "{2,}", "{0,40}"])
    return st.builds(lambda part, sign: f"(?:{part}){sign}", inner, signs)


expressions = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.one_of(
        repeated(inner),
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: f"(?:{a}|{b})", inner, inner),
        st.builds(lambda kind, a: f"({kind}{a})", st.sampled_from(["?=", "?!", "?>", ""]), inner),
    ),
    max_leaves=8,
)


@given(expression=expressions)
@settings(max_examples=300)
def test_what_is_accepted_never_runs_out_of_tries(expression):
    """The library gives up after ten million tries at one place, with a panic."""
    try:
        judge(expression)
        split = pre_tokenizers.Split(tokenizers.Regex(expression), "isolated")
    except Exception:  # refused here or there; the library's errors have no other class
        return
    for text in ("x" * 2000, "xy" * 500, "x y" * 300 + "\n"):
        assert "".join(piece for piece, _ in split.pre_tokenize_str(text)) == text


@given(
    begin=st.sampled_from(["", "x", "x+", "x*?", "(?>x+)", "(?=x*y)"]),
    choices=st.lists(st.integers(2, 40).map(lambda count: f"(?:{'|'.join(['x'] * count)})"), max_size=4),
    growth=st.sampled_from([1, 8, 60]),
)
@settings(max_examples=30)
def test_texts_that_are_called_easy_are_done_in_a_moment(begin, choices, growth):
    """The longest of them, of the letter that takes most tries, after it was made as long as may be."""
    split = {"type": "Split", "pattern": {"Regex": f"{begin}{''.join(choices)}y"}, "behavior": "Isolated"}
    longer = {"type": "Replace", "pattern": {"String": "x"}, "content": "x" * growth}
    try:
        steps = read_steps({"normalizer": longer, "pre_tokenizer": split}, "the file")
    except UnsupportedModel:
        return
    assert steps.easy is not None
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"x": 0}, []))
    tokenizer.normalizer = normalizers.Replace("x", "x" * growth)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(split["pattern"]["Regex"]), "isolated")
    with Pulse() as pulse:
        tokenizer.encode("x" * min(steps.easy, 100_000 // growth))
    assert pulse.longest < 2
