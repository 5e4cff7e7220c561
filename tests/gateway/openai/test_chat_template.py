"""Templates render as transformers renders them, and can do nothing else."""

import pytest

from splitinference_gateway.tokens.chat_template import ChatTemplate, TemplateError

MESSAGES = [{"role": "user", "content": "hi <é>"}]


def render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES)


def test_blocks_leave_no_line_of_their_own() -> None:
    assert render("{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n") == "hi <é>\n"


def test_special_tokens_and_the_generation_prompt_are_variables() -> None:
    assert render("{{ bos_token }}{{ add_generation_prompt }}{{ tools }}{{ documents }}") == "<s>TrueNoneNone"


def test_json_is_written_as_it_is_and_not_escaped_for_html() -> None:
    assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "hi <é>"}]'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"


def test_loops_may_break_and_the_assistants_text_may_be_marked() -> None:
    assert render("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "1"
    assert render("{% generation %}{{ messages[0].role }}{% endgeneration %}") == "user"


def test_the_date_can_be_asked_for() -> None:
    assert render("{{ strftime_now('%Y') }}").isdigit()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('only one message') }}", "only one message"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[7].content.x }}", "no element 7"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_an_error(source: str, said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        render(source)


def test_a_broken_template_is_found_at_the_start() -> None:
    with pytest.raises(TemplateError, match="cannot be compiled"):
        ChatTemplate("{% if %}", {})
