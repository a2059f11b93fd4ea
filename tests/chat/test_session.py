"""lora_np.chat.session: lines become messages and commands; what the model writes is harmless."""

import pytest

from lora_np.chat import Drawing, Session, Shelf
from tests.chat.test_shelf import write_adapter
from tests.chat.tiny import Scripted, conversation, llama
from tests.pretrained.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
HI = TOKENIZER.encode("the shops")


def session(model, shelf=None, interactive=False, **options):
    """Return a session, what it writes, and what it says."""
    talk, _ = conversation(model, **options)
    written, said = [], []
    shelf = shelf or Shelf(llama())
    return Session(talk, shelf, written.append, said.append, interactive), written, said


def test_each_line_is_answered_on_lines_of_its_own():
    found, written, said = session(Scripted(HI, HI))
    found.run(["which?\n", "\n", "   \n", "and then?\r\n"])
    assert "".join(written) == "the shops\nthe shops\n" and said == []
    asked = [m["content"] for m in found.conversation.messages if m["role"] == "user"]
    assert asked == ["which?", "and then?"]


def test_quit_ends_and_clear_forgets():
    found, written, said = session(Scripted(HI, HI))
    found.run(["which?", "/clear", "and then?", "/quit", "never asked"])
    assert [m["content"] for m in found.conversation.messages[1:]] == ["and then?", "the shops"]
    assert len("".join(written).splitlines()) == 2 and said == []


def test_help_names_every_command_and_one_that_is_unknown_is_one_line():
    found, written, said = session(Scripted())
    found.run(["/help"])
    assert {line.split()[0] for line in said} == {"/adapter", "/clear", "/help", "/quit"}
    said.clear()
    found.run(["/adaptor", "/x\x1b[2J", "/"])
    assert said[0].startswith("lora-np: unknown command /adaptor: did you mean /adapter?")
    assert len(said) == 3 and "\x1b" not in said[1] and written == []


def test_two_slashes_send_a_message_that_begins_with_one():
    found, _, said = session(Scripted(HI, HI))
    found.run(["//help", "a /quit"])
    asked = [m["content"] for m in found.conversation.messages if m["role"] == "user"]
    assert asked == ["/help", "a /quit"] and said == []


def test_adapters_are_listed_and_switched_and_the_conversation_goes_on(tmp_path):
    base = llama()
    write_adapter(tmp_path / "sql", base)
    shelf = Shelf(base, [tmp_path / "sql"])
    found, _, said = session(shelf.model, shelf)
    found.run(["which?", "/adapter", "/adapter  base ", "/adapter", "/adapter sqll", "and then?"])
    assert said[:5] == ["  base", "* sql", "adapter: base", "* base", "  sql"]
    assert said[5:] == ["lora-np: no adapter is called 'sqll': did you mean sql?"]
    assert found.conversation.model is base and len(found.conversation.messages) == 5


def test_control_characters_of_a_model_are_shown_and_newlines_are_kept():
    text = "a\x1b[2J\r\x07b\n\tc\x9b1mé\x7f"
    found, written, _ = session(Scripted(TOKENIZER.encode(text)), drawing=Drawing(temperature=0))
    found.run(["which?"])
    assert "".join(written) == "a\\x1b[2J\\r\\x07b\n\tc\\x9b1mé\\x7f\n"
    assert found.conversation.messages[-1]["content"] == text


def test_a_message_that_is_refused_is_said_in_one_line_and_the_session_goes_on():
    found, written, said = session(Scripted(HI))
    found.run(["shop " * 200, "which?"])
    (line,) = said
    assert line.startswith("lora-np: the message takes ") and "".join(written) == "the shops\n"


@pytest.mark.parametrize("script", [[*HI, KeyboardInterrupt()], [KeyboardInterrupt()]])
def test_ctrl_c_stops_the_answer_at_a_terminal_and_ends_a_pipe(script):
    first = "the shops" if len(script) > 1 else ""
    model = Scripted(script, HI)
    found, written, said = session(model, interactive=True)
    found.take("which?")
    model.script.pop(0)  # the end of the answer that never came
    assert "".join(written) == first + "\n" and said == ["stopped"]
    found.take("and then?")
    assert "".join(written) == first + "\nthe shops\n"
    found, written, said = session(Scripted(script, HI))
    with pytest.raises(KeyboardInterrupt):
        found.take("which?")
    assert "".join(written) == first and said == []


def test_ctrl_c_while_a_piece_is_printed_keeps_the_answer_so_far():
    found, _, said = session(Scripted(HI, HI), interactive=True)

    def write(text):
        found.write = lambda text: None
        raise KeyboardInterrupt

    found.write = write
    found.take("which?")
    assert said == ["stopped"]
    assert found.conversation.messages[-1]["role"] == "assistant"
