"""Chat templates: equal to Jinja2's own rendering, and every hostile one is refused."""

import json
import re
import sys

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lora_np.pretrained import ChatTemplate, TemplateError, template_values
from lora_np.pretrained.template import TEMPLATES
from lora_np.pretrained.template_values import CHARACTERS
from tests.pretrained.tiny_tokenizer import SMOLLM

SHORT = [{"role": "user", "content": "How many shops?"}]
LONG = [
    {"role": "system", "content": " Answer in SQL.\n"},
    {"role": "user", "content": "How many\nshops 'are' \"there\"?"},
    {"role": "assistant", "content": "<think>count</think>\n\nSELECT 1;"},
    {"role": "user", "content": "  秩 & é 🎉 "},
    {"role": "assistant", "content": "SELECT 2;  "},
]
# Shapes of templates that models ship: Llama 2 and 3, TinyLlama's Zephyr, Gemma, Qwen with
# thinking, and one with macros and namespaces.
# ruff: noqa: E501
LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one tool call") }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_"
    "message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_"
    "message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == "
    "'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_"
    "message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message["
    "'content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content"
    ".strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + "
    "' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message["
    "'content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + "
    "message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant"
    "|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_"
    "prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
THINKING = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set "
    "role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + "
    "role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation"
    "_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MACROS = """{# a comment #}
{%- macro turn(message, upper=false) -%}
    {{ message.role | upper if upper else message.role }}: {{ message.content | trim | tojson }}
{%- endmacro %}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{%- with n = users | length %}{{ n }} of {{ messages | length }}{% endwith %}
{% for message in messages if message.role != 'system' %}
    {%- if loop.index > 3 %}{% break %}{% endif %}
    {%- if loop.first %}{{ turn(message, upper=true) }}{% continue %}{% endif %}
    {{ loop.index }}/{{ loop.length }} {{ turn(message) }} {{ loop.cycle('odd', 'even') }}
    {%- if loop.previtem is defined %} after {{ loop.previtem.role }}{% endif %}
{% else %}nobody
{% endfor %}
{% set tail %}{{ messages | map(attribute='role') | join(', ') }}{% endset %}{{ tail }}
{% filter upper %}end {{ bos_token }}{% endfilter %}
"""
WHOLE = {
    "smollm": SMOLLM,
    **TEMPLATES,
    "llama3": LLAMA3,
    "llama2": LLAMA2,
    "zephyr": ZEPHYR,
    "thinking": THINKING,
    "gemma": GEMMA,
    "macros": MACROS,
}


def by_jinja(source, messages, answer_follows):
    """Render with Jinja2 itself, set up as transformers does."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda x, **kw: json.dumps(x, ensure_ascii=False, **kw)
    names = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
    return environment.from_string(source).render(
        messages=messages, add_generation_prompt=answer_follows, **names
    )


def by_us(source, messages=SHORT, answer_follows=True):
    return ChatTemplate(source, bos="<s>", eos="</s>").render(messages, answer_follows)


@pytest.mark.parametrize("answer_follows", [True, False])
@pytest.mark.parametrize("messages", [SHORT, LONG, LONG[1:]], ids=["short", "long", "no system"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_template_renders_as_jinja2_renders_it(name, messages, answer_follows):
    found = by_us(WHOLE[name], messages, answer_follows)
    assert found == by_jinja(WHOLE[name], messages, answer_follows)
    assert messages[-1]["content"].strip() in found or name == "macros"


PIECES = r"""
{{ 1 + 2 * 3 - 4 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ -7 % 3 }} {{ +1 }} {{ 2.5 * 2 }}
{{ 'a' ~ 1 ~ none ~ true }} {{ 'ab' * 3 }} {{ [1] + [2, 3] }} {{ (1, 2) + (3,) }}
{{ 1 < 2 < 3 }} {{ 1 < 2 > 5 }} {{ 'a' in 'abc' }} {{ 'x' not in ['x'] }} {{ 1 == 1.0 }}
{{ not messages }} {{ missing or 'other' }} {{ 'left' and 'right' }} {{ missing and 'right' }}
{{ missing }} {{ missing is defined }} {{ missing | default('d') }} {{ '' | default('d', true) }}
{{ 'a' if messages else 'b' }}{{ 'a' if missing }} {{ messages[0].nothing }} {{ messages[7] }}
{{ messages[0]['role'] }} {{ messages[-1].content[2:5] }} {{ 'abc'[::-1] }} {{ [1, 2, 3][:2] }}
{{ {'a': 1, 'b': [2, none]} }} {{ {'a': 'é'} | tojson }} {{ {'b': 1, 'a': 2} | tojson(indent=2) }}
{{ ' a '.strip() }} {{ 'a,b'.split(',') }} {{ 'abc'.replace('b', 'xx') }} {{ 'Ab'.upper() }}
{{ 'abc' | replace('b', '') | upper }} {{ [1, 2] | join('-') }} {{ '-'.join(['a', 'b']) }}
{{ "it's (an) e-mail" | title }} {{ 'hello' | capitalize }} {{ ['b', 'A', 'c'] | sort }} {{ {'b': 1, 'A': 2} | sort }} {{ [3, 1] | sort }} {{ 'ab' | list }}
{{ [1, 2] | first }} {{ [1, 2] | last }} {{ '12' | int + 1 }} {{ 'x' | int(5) }} {{ 'x' | float }} {{ '1.5' | float }}
{{ -3 | abs }} {{ 5 | string + '!' }} {{ {'a': 1}.items() | list }} {{ {'b': 1, 'A': 2} | dictsort }}
{{ 'a\nb' | indent(2) }} {{ 'a\n\nb' | indent(2, first=true, blank=true) }} {{ [1, 2] | reverse | list }}
{{ messages | map('length') | list }} {{ messages | rejectattr('role', 'equalto', 'user') | list }}
{{ [0, 1, 2] | select | list }} {{ [0, 1, 2] | reject('odd') | list }} {{ {'a': 1}.get('b', 2) }}
{{ 3 is odd }} {{ 3 is divisibleby(3) }} {{ 'a' is string }} {{ messages is iterable }} {{ 1 is number }}
{{ none is none }} {{ {} is mapping }} {{ true is true }} {{ 1 is true }} {{ messages is sequence }}
{% set x = 1 %}{% for i in range(3) %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% set a, b = 1, 2 %}{{ b }}{{ a }} {% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}
{% for i in [1, 2] %}{% for j in 'ab' %}{{ loop.index }}{{ j }}{% endfor %}{{ loop.revindex }}{% endfor %}
{% for i in [] %}x{% else %}none{% endfor %} {% for i in missing %}x{% endfor %}
{% set ns = namespace(n=0) %}{% for i in range(4) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}
{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }} {{ f(1, b=3) }} {{ f() }} {{ f(b=1) | length }}
{% raw %}{{ x }}{% endraw %} {{ dict(a=1).a }} {{ range(5, 1, -2) | list }} {{ loop is defined }}
{{ 'abc'.find('c') }} {{ 'a b c'.rsplit(' ', 1) }} {{ 'abc'.startswith(('x', 'a')) }}
{{ 'a' < 'b' }} {{ missing == other }} {{ missing == 1 }} {{ missing | length }} {{ missing ~ 'x' }}
"""


@pytest.mark.parametrize("source", [line for line in PIECES.splitlines() if line])
def test_a_piece_of_the_language_means_what_it_means_to_jinja2(source):
    assert by_us(source, LONG) == by_jinja(source, LONG, True)


def test_a_marked_answer_is_printed_as_it_is():
    assert by_us("{% generation %}{{ 1 }}{% endgeneration %}!") == "1!"


def test_the_date_is_the_same_on_every_day():
    assert by_us("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"


A = "{% set a = 'a' * 900000 %}"


def grown(start, change, name="n", times=60):
    """Return a template in which a value is made from itself many times."""
    return (
        f"{{% set {name} = namespace(x={start}) %}}{{% for i in range({times}) %}}"
        f"{{% set {name}.x = {change.replace('n.', name + '.')} %}}{{% endfor %}}"
    )


HOSTILE = {
    # without end, or as good as
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "big range": "{% for i in range(1000000000) %}{% endfor %}",
    "nested ranges": "{% for i in range(999) %}{% for j in range(999) %}{% for k in range(999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "range list": "{{ range(900000000) | list | length }}",
    "negative range": "{{ range(0, -900000000, -1) }}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "two macros": "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}"
    "{{ f() }}",
    "wide macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(19) }}{{ f(19) }}{{ f(19) }}",
    "recursive loop": "{% for x in [[[]]] recursive %}{{ loop([x]) }}{% endfor %}",
    "loop filter": "{% for i in range(400) if range(400) | sort | sort %}{% endfor %}",
    # too much memory
    "text times": "{{ 'a' * 1000000000 }}",
    "times text": "{{ 1000000000 * 'a' }}",
    "list times": "{{ [0] * 1000000000 }}",
    "tuple times": "{{ (0, 0) * 1000000000 }}",
    "doubling text": grown("'ab'", "n.x + n.x"),
    "doubling with ~": grown("'ab'", "n.x ~ n.x"),
    "doubling list": grown("[1]", "n.x + n.x"),
    "doubling join": grown("'ab'", "[n.x, n.x] | join"),
    "doubling replace": grown("'aa'", "n.x.replace('a', 'aa')"),
    "doubling block": "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set t %}{{ n.x }}"
    "{{ n.x }}{% endset %}{% set n.x = t %}{% endfor %}",
    "replace nothing": A + "{{ a.replace('', a) }}",
    "replace filter": A + "{{ a | replace('a', a) }}",
    "join": A + "{{ range(9000) | join(a) }}",
    "join method": A + "{{ a.join(['a'] * 9000) }}",
    "much output": A + "{% for i in range(900) %}{{ a }}{% endfor %}",
    "indent": "{{ ('a\\n' * 9000) | indent(100000) }}",
    "wide indent": "{{ 'a\\nb' | indent(1000000000) }}",
    "tojson indent": "{{ [1] | tojson(indent=1000000000) }}",
    "tojson separators": A + "{{ range(900) | list | tojson(separators=(a, a)) }}",
    # deep or shared values: their text, comparison or JSON is exponential
    "shared list, printed": grown("[]", "[n.x, n.x]") + "{{ n.x }}",
    "shared lists, compared": grown("[]", "[n.x, n.x]")
    + grown("[]", "[n.x, n.x]", "m")
    + "{{ n.x == m.x }}",
    "wide shared lists": grown("[1]", "[n.x] * 9", times=15) + "{{ n.x in [[n.x]] }}",
    "shared lists, ordered": grown("[1]", "[n.x] * 9", times=15) + "{{ n.x < n.x }}",
    "shared lists, sorted": grown("[1]", "[n.x] * 9", times=15) + "{{ n.x | sort }}",
    "shared list, counted": grown("[1]", "[n.x] * 9", times=15) + "{{ n.x.count([n.x[0]]) }}",
    "shared mapping as JSON": grown("1", "{'a': n.x, 'b': n.x}", times=19) + "{{ n.x | tojson }}",
    "shared tuple as key": grown("(1,)", "(n.x, n.x)") + "{{ {n.x: 1} }}",
    "shared tuple in a mapping": grown("(1,)", "(n.x, n.x)") + "{{ n.x in {} }}",
    "shared tuple, get": grown("(1,)", "(n.x, n.x)") + "{{ {}.get(n.x) }}",
    "namespace in itself": "{% set n = namespace() %}{% set n.x = [n] %}{{ n.x }}",
    # searches whose time is a product of lengths
    "search": A + "{{ (a + 'b' + a) in (a + a + a) }}",
    "strip": A + "{{ a.strip('b' * 900000 + 'a') }}",
    "rfind": A + "{{ a.rfind('b' + 'a' * 400000) }}",
    "rsplit": A + "{{ a.rsplit(sep='b' + 'a' * 400000) }}",
    "startswith": A + "{% for i in range(99999) %}{% if a.startswith((a, a)) %}{% endif %}"
    "{% endfor %}",
    "many searches": A + "{% for i in range(99999) %}{% if 'b' in a %}{% endif %}{% endfor %}",
    "many lists": A + "{% for i in range(99999) %}{% if a | list %}{% endif %}{% endfor %}",
    "many upper": A + "{% for i in range(99999) %}{% if a.upper() %}{% endif %}{% endfor %}",
    "many equal": A + "{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}"
    "{% set b = 'a' * 900000 %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    # numbers
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "product": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}"
    "{% endfor %}",
    "long number": "{{ " + "9" * 5000 + " }}",
    "number of a text": "{{ ('9' * 4000) | int + ('9' * 4000 + 'x').count('9') ** 2 }}",
    "nothing divided": "{{ 1 / 0 }}",
    # formats
    "format width": "{{ '%1000000000d' % 1 }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "format method": "{{ '{:1000000000}'.format(1) }}",
    "format attribute": "{{ '{0.__class__}'.format(1) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "expandtabs": "{{ '\\t'.expandtabs(1000000000) }}",
    "date width": "{{ strftime_now('%1000000000d') }}",
    "long date": "{{ strftime_now('%c' * 100000) }}",
    # out of the sandbox
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by item": "{{ ''['__class__']['__mro__'] }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "map attribute": "{{ ([''] | map(attribute='__class__') | first).x }}",
    "globals of a function": "{{ range.__globals__['os'] }}",
    "globals of a macro": "{% macro f() %}{% endmacro %}{{ f.__init__.__globals__.os }}",
    "call of a function": "{{ range.call.__globals__.x }}",
    "fields of a namespace": "{{ namespace().fields.x }}",
    "init of a namespace": "{{ namespace.__init__.x }}",
    "value of a method": "{{ 'a'.upper.value.x }}",
    "cycler": "{{ cycler.__init__.__globals__.os }}",
    "self": "{{ self._TemplateReference__context.x }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends 'other' %}",
    "call block": "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{% endcall %}",
    "star": "{{ range(*[1, 2]) }}",
    "append": "{% set x = [] %}{{ x.append(1) }}",
    "changed message": "{{ messages[0].update({'role': 'x'}) }}",
    "field of a message": "{% set messages.x = 1 %}",
    "lipsum": "{{ lipsum(n=1000000) }}",
    "xmlattr": "{{ {} | xmlattr }}",
    "pprint": "{{ range | pprint }}",
    # source
    "long source": "a" * 100_001,
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep not": "{{ " + "not " * 20000 + "1 }}",
    "deep sum": "{{ 1" + " + 1" * 20000 + " }}",
    "deep filters": "{{ 1" + " | abs" * 10000 + " }}",
    "deep if": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "unknown tag": "{% do x %}",
    "no end": "{% if x %}",
    "half a string": "{{ 'a",
    "no filter": "{{ 1 | nothing }}",
    "no test": "{{ 1 is nothing }}",
    "number and text": "{{ 1 + 'a' }}",
    "missing": "{{ nothing.at.all }}",
    "missing called": "{{ nothing() }}",
    "refused": "{{ raise_exception('no\nmore ' + 'x' * 90000) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_with_one_line(name):
    with pytest.raises(TemplateError) as caught:
        by_us(HOSTILE[name], LONG)
    message = str(caught.value)
    assert message.startswith("the chat template ") and "\n" not in message and len(message) < 600
    assert message.isprintable() and not re.search("<built-in|<class|object at 0x", message)


@pytest.mark.parametrize("name", ["big range", "text times", "shared lists, compared", "search"])
def test_the_budget_is_what_refuses_it(name):
    with pytest.raises(TemplateError, match=r"more than \d+ steps|too much text|20 deep"):
        by_us(HOSTILE[name], LONG)


@pytest.mark.parametrize("name", ["nested ranges", "wide macro", "many searches"])
def test_a_budget_ends_the_work_itself_and_not_only_the_account(name, monkeypatch):
    """Count Python's calls: how many there are for each step has a bound."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    monkeypatch.setattr(template_values, "STEPS", 10_000)
    sys.setprofile(count)
    try:
        with pytest.raises(TemplateError, match="more than 10000 steps"):
            by_us(HOSTILE[name], LONG)
    finally:
        sys.setprofile(None)
    assert 0 < calls < 20 * 10_000


def test_a_long_conversation_stays_far_within_the_budget():
    messages = [LONG[0], *LONG[1:3] * 200]
    long_text = [{"role": "user", "content": "word " * (CHARACTERS // 5)}]
    for source in (SMOLLM, LLAMA3, THINKING):
        assert by_us(source, messages).count("SELECT 1;") == 200
        assert len(by_us(source, long_text)) > CHARACTERS - 2


def test_a_message_needs_a_role_and_a_content():
    for message in ({"role": "user"}, {"content": "a"}, {"role": 1, "content": "a"}):
        with pytest.raises(TemplateError, match="a role and a content"):
            by_us(SMOLLM, [message])


def test_rendering_leaves_the_messages_as_they_are():
    before = json.dumps(LONG)
    by_us("{% set m = messages[0] %}{% for x in messages %}{% set content = 1 %}{% endfor %}", LONG)
    assert json.dumps(LONG) == before


def test_without_jinja2_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(TemplateError, match=re.escape("pip install 'lora_np[llm]'")):
        by_us(SMOLLM)
