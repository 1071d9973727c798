"""Messages for users fit on one line of any terminal, whatever names and values they quote."""

from hypothesis import given
from hypothesis import strategies as st

from motionaura_jax.core.errors import UserError, listed, reason


@given(st.text(st.characters(), max_size=50))
def test_a_message_is_one_printable_line(text):
    message = str(UserError(f"{text}: is damaged; copy it again"))
    assert message.isprintable() and message.encode()
    assert message.endswith(": is damaged; copy it again")


def test_readable_text_of_any_language_stays():
    assert str(UserError("größe.mp4\n  日本: fehlt")) == "größe.mp4 日本: fehlt"


def test_escape_sequences_are_shown_and_not_sent():
    assert str(UserError("\x1b[31mred\x9b, \udc80")) == r"\x1b[31mred\x9b, \udc80"


def test_a_long_value_is_cut_between_fault_and_remedy():
    message = str(UserError("file: " + "x" * 100_000 + "; remedy"))
    assert len(message) < 2100 and message.startswith("file: x") and message.endswith("x; remedy")


def test_messages_of_libraries_lose_addresses_and_line_ends():
    assert reason(OSError("no token;\n see https://host/page?x=1 for help")) == "OSError: no token; see ... for help"
    assert len(reason(ValueError("x" * 10**6))) < 130


def test_lists_of_names_name_the_first_and_count_the_others():
    assert (listed([]), listed([], none="nothing else"), listed("ab")) == ("none", "nothing else", "a, b")
    assert listed(list("abcde")) == "a, b, c and 2 more"
