"""The text format, with protobuf itself as the oracle."""

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from ckpt_remote.textproto import parse_fields, quote

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.fixture(scope="module")
def message():
    """A flat message of strings and doubles: TensorFlow's own CheckpointState, reached through its public API."""
    import tensorflow as tf

    return type(tf.compat.v1.train.generate_checkpoint_state_proto("directory", "ckpt-1"))


def fields_of(message):
    return [
        (field.name, element)
        for field, value in message.ListFields()
        for element in ([value] if isinstance(value, (str, float)) else value)
    ]


@given(path=texts, paths=st.lists(texts), times=st.lists(st.floats(allow_nan=False)))
def test_what_protobuf_prints_is_parsed_to_the_same_values(message, path, paths, times):
    printed = message(
        model_checkpoint_path=path, all_model_checkpoint_paths=paths, all_model_checkpoint_timestamps=times
    )

    assert fields_of(printed) == list(parse_fields(text_format.MessageToString(printed)))


@given(texts)
def test_a_quoted_string_is_what_protobuf_reads_as_that_string(message, text):
    assert text == text_format.Parse(f"model_checkpoint_path: {quote(text)}", message()).model_checkpoint_path


@given(texts.filter(lambda text: text and text.isprintable()))
def test_a_printable_string_is_quoted_as_protobuf_does(message, text):
    printed = text_format.MessageToString(message(model_checkpoint_path=text), as_utf8=True)

    assert printed == f"model_checkpoint_path: {quote(text)}\n"


@pytest.mark.parametrize(
    "text",
    [
        'model_checkpoint_path: "a" "b"',
        "model_checkpoint_path:'it''s'",
        r'model_checkpoint_path: "\x41\101\a"',
        'all_model_checkpoint_paths: ["a", "b"]',
        "all_model_checkpoint_timestamps: []",
        'model_checkpoint_path: "a", last_preserved_timestamp: 1;',
        "last_preserved_timestamp: 1f",
        "last_preserved_timestamp: .5",
        "last_preserved_timestamp: 1e3",
        "last_preserved_timestamp: -inf",
        "last_preserved_timestamp: Infinity",
        "",
    ],
)
def test_every_spelling_that_protobuf_accepts_is_accepted(message, text):
    expected = fields_of(text_format.Parse(text, message()))

    assert expected == list(parse_fields(text))


@pytest.mark.parametrize(
    "text",
    [
        'model_checkpoint_path "a"',
        "model_checkpoint_path:",
        'model_checkpoint_path: "a\nb"',
        'model_checkpoint_path: "a',
        "last_preserved_timestamp: 0x10",
        "last_preserved_timestamp: - 1",
        'all_model_checkpoint_paths: ["a"',
        ': "a"',
        "\x00",
    ],
)
def test_what_protobuf_refuses_is_refused(message, text):
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text, message())
    with pytest.raises(ValueError, match=r"line \d|escape"):
        list(parse_fields(text))


def test_a_comment_is_refused_because_nobody_writes_one():
    with pytest.raises(ValueError, match="line 2"):
        list(parse_fields('model_checkpoint_path: "a"\n# edited'))


def test_an_unknown_escape_is_refused():
    with pytest.raises(ValueError, match="escape"):
        list(parse_fields(r'model_checkpoint_path: "\q"'))


def test_unicode_escapes_which_old_protobuf_cannot_read_are_read():
    assert [("model_checkpoint_path", "é😀")] == list(parse_fields(r'model_checkpoint_path: "\u00e9\U0001F600"'))
