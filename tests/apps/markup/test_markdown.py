"""Markdown as a page shows it: blocks, code in colours, formulas, and what costs too much."""

from __future__ import annotations

import pytest

from partita_apps.markup import Renderer, formulas, markdown

from .test_markup_safe import read

RENDERER = Renderer()


def test_a_table_and_its_alignment() -> None:
    html = RENDERER.html("| a | b |\n|:-:|--:|\n| 1<br>2 | ~~x~~ |\n")
    assert '<th class="center">a</th>' in html
    assert '<td class="right"><s>x</s></td>' in html
    assert "1<br>2" in html
    assert "style" not in html


def test_tasks_say_whether_they_are_done() -> None:
    html = RENDERER.html("- [ ] one\n- [x] two\n")
    assert 'role="img" aria-label="to do">☐</span> one' in html
    assert 'role="img" aria-label="done">☑</span> two' in html


def test_code_has_its_language_and_colours() -> None:
    html = RENDERER.html('```Python title="x"\ndef f(x):\n    return "<b>"  # why\n```\n')
    assert html.startswith('<figure class="code" data-language="Python"><figcaption>Python</figcaption><pre><code>')
    assert '<span class="k">def </span><span class="nf">f</span>(x):' in html
    assert read(html).text == 'Pythondef f(x):\n    return "<b>"  # why\n\n'


@pytest.mark.parametrize("language", ["", "nonsense", "python" * 20, "none"])
def test_no_language_is_guessed(language: str) -> None:
    html = RENDERER.html(f"```{language}\ndef f(): pass\n```\n")
    assert "<span" not in html
    assert read(html).text.endswith("def f(): pass\n\n")


def test_code_is_kept_character_by_character() -> None:
    code = "\n\n  def f():\n\n\treturn 'a' \n   \n\n"
    for language in ("python", "c", "html", "console", "yaml", ""):
        shown = read(RENDERER.html(f"```{language}\n{code}```\n")).text.removeprefix(language)
        assert shown == f"{code}\n", language


def test_long_code_has_no_colours() -> None:
    assert "<span" not in RENDERER.html(f"```python\nx = {'1 + ' * 600}1\n```\n")


@pytest.mark.parametrize(
    "text",
    [
        r"so $x^2$ is",
        r"so \(x^2\) is",
        "$$\nx^2\n$$",
        "$$x^2$$",
        "so\n$$\nx^2\n$$\nis",
        "\\[\nx^2\n\\]",
        "so\n\\[\nx^2\n\\]\nis",
        "- so\n\n  \\[\n  x^2\n  \\]\n",
        "\\begin{align*}\nx^2\n\\end{align*}",
    ],
)
def test_formulas_are_mathml(text: str) -> None:
    html = RENDERER.html(text)
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in html
    assert html.count("<math ") == 1
    read(html)


@pytest.mark.parametrize("text", ["it costs $5 and $6", "$ x $", r"\$x\$", "$$\n\nx\n\n$$", r"\( x", "`$x$`", "a$"])
def test_what_is_no_formula_stays_text(text: str) -> None:
    html = RENDERER.html(text)
    assert "<math" not in html
    assert 'class="formula"' not in html


@pytest.mark.parametrize(
    "source",
    [
        r"\frac{1}{",
        r"\left( x",
        r"\begin{matrix} 1",
        r"a_b_c",
        r"\newcommand{\a}{\a\a}\a",
        r"\def\a{\a\a}\a",
        "x" * (formulas.LONGEST + 1),
        "{" * 100 + "}" * 100,
        r"\sqrt" * 100 + "x",
        "x^{" * 70 + "}" * 70,
    ],
)
def test_a_formula_that_cannot_be_read_is_its_source(source: str) -> None:
    html = formulas.mathml(source, display=False)
    assert html.startswith('<code class="formula">')
    assert read(html).text == source


def test_a_formula_keeps_its_source() -> None:
    html = RENDERER.html(r"$a < \text{b & c}$")
    assert 'alttext="a < \\text{b &amp; c}"' in html.replace("&lt;", "<")
    assert "<mtext>b &amp; c</mtext>" in html.replace("\N{NO-BREAK SPACE}", " ").replace("&nbsp;", " ")


def test_sizes_of_formulas_are_bounded() -> None:
    assert "width" not in formulas.mathml(r"\hspace{9999em}x", display=False)
    assert 'width="2em"' in formulas.mathml(r"\hspace{2em}x", display=False)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 24_000,
        "*a_b" * 5_000,
        "[a](b" * 4_000,
        "$a" * 9_000,
        "<a " * 7_000,
        "".join("`" * i + " " for i in range(200)),
        "> " * 10_000 + "x",
        "- " * 10_000 + "x",
        "[a]: b\n" * 3_000,
        "\\begin{align}\n" * 1_500,
    ],
)
def test_what_would_cost_too_much_is_shown_as_it_is(text: str) -> None:
    html = RENDERER.html(text)
    assert len(html) < 3 * len(text)
    assert "".join(read(html).text.split()) == "".join(text.split())


def test_a_paragraph_within_the_budget_is_read() -> None:
    words = "word " * 300
    assert len(words) * 4 < markdown.BUDGET
    assert "<strong>x</strong>" in RENDERER.html(f"{words}**x**")
