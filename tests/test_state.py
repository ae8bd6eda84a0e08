"""The `checkpoint` file, with TensorFlow as the oracle."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_remote.bundle import crc32c
from ckpt_remote.errors import CorruptError, UnsupportedError
from ckpt_remote.state import Entry, Record, Retired, State, decode_state, encode_state

paths = st.from_regex(r"[a-zA-Z0-9_.é☃ '\"\\-]{0,8}-[0-9]{1,9}", fullmatch=True)
times = st.floats(min_value=0, max_value=1e11)
retired = st.builds(
    lambda path, write_id, used, more, suffixes: Retired(
        path=path,
        write_id=write_id,
        first=used // 2,
        used=used,
        of=used + more,
        files=tuple(path + suffix for suffix in suffixes),
    ),
    paths,
    st.none() | st.text("0123456789abcdef", max_size=32),
    st.integers(0, 99),
    st.integers(0, 99),
    st.lists(st.sampled_from(["-Saver", "/x.note"]), max_size=2),
)
records = st.builds(
    Record,
    write_id=st.text("0123456789abcdef", min_size=32, max_size=32),
    term=st.text("0123456789abcdef", min_size=16, max_size=16),
    epoch=st.integers(0, 2**63 - 1),
    home=st.text(max_size=20),
    serial=st.integers(0, 2**63 - 1),
    highest=st.integers(0, 2**63 - 1),
    lineage=st.lists(st.text("0123456789abcdef", min_size=1), max_size=3).map(tuple),
    preserved=st.lists(paths, max_size=3).map(tuple),
    retired=st.lists(retired, max_size=3).map(tuple),
    replaced=st.none() | retired,
)
states = st.builds(
    State,
    latest=paths,
    entries=st.lists(st.builds(Entry, paths, times), max_size=4, unique_by=lambda entry: entry.path).map(tuple),
    last_preserved_timestamp=times,
    record=st.none() | records,
)


def decode(data):
    return decode_state(data, path="s3://bucket/run/checkpoint", directories=("s3://bucket/run",))


@given(states)
def test_a_state_survives_printing_and_parsing(state):
    assert state == decode(encode_state(state))


@pytest.fixture(scope="module")
def tensorflows_message():
    """TensorFlow's own class. Importing it takes seconds, so that happens before hypothesis looks at its clock."""
    import tensorflow as tf

    return type(tf.compat.v1.train.generate_checkpoint_state_proto("directory", "ckpt-1"))


@given(states)
def test_tensorflow_reads_what_we_print_and_prints_the_same(tensorflows_message, state):
    from google.protobuf import text_format

    printed = encode_state(state).decode()
    parsed = text_format.Parse(printed, tensorflows_message())

    assert state.latest == parsed.model_checkpoint_path
    assert [entry.path for entry in state.entries] == list(parsed.all_model_checkpoint_paths)
    assert [entry.timestamp for entry in state.entries] == list(parsed.all_model_checkpoint_timestamps)
    assert printed.endswith(text_format.MessageToString(parsed, as_utf8=True))


@given(records)
def test_a_claimed_directory_without_checkpoints_survives_printing_and_parsing(record):
    state = State(latest=None, last_preserved_timestamp=1.5, record=record)

    assert state == decode(encode_state(state))


def test_only_a_state_of_ours_may_say_that_there_are_no_checkpoints_yet():
    with pytest.raises(CorruptError):
        decode(b"no_checkpoints_yet: 1\n")


def test_a_stock_file_without_timestamps_takes_the_preserved_one_as_tensorflow_does():
    state = decode(b'model_checkpoint_path: "ckpt-1"\nall_model_checkpoint_paths: "ckpt-1"\n')

    assert (Entry("ckpt-1", 0.0),) == state.entries


def test_absolute_paths_below_the_directory_become_relative():
    assert "sub/ckpt-1" == decode(b'model_checkpoint_path: "s3://bucket/run/sub/ckpt-1"').latest


@pytest.mark.parametrize(
    "path", ["../ckpt-1", "a/../../ckpt-1", "/etc/ckpt-1", "s3://bucket/other/ckpt-1", "s3://bucket/runaway/ckpt-1",
             "gs://x/y", ".", "a//b", "ckpt\\n1"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["model_checkpoint_path", "all_model_checkpoint_paths"])
def test_a_path_that_leads_outside_the_directory_is_refused(path, field):
    text = f'model_checkpoint_path: "ckpt-1"\nall_model_checkpoint_timestamps: 1.0\n{field}: "{path}"\n'
    if field == "model_checkpoint_path":
        text = f'{field}: "{path}"\n'

    with pytest.raises(CorruptError, match="s3://bucket/run/checkpoint"):
        decode(text.encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"garbage", b"\xff\xfe", b'model_checkpoint_path: ""', b'model_checkpoint_path: "a', b"\x00" * 100,
     b'model_checkpoint_path: "a"\nmodel_checkpoint_path: "b"', b'model_checkpoint_path: "a"\nunknown: 1',
     b'model_checkpoint_path: "a"\nall_model_checkpoint_paths: "a"\nall_model_checkpoint_paths: "b"\n'
     b"all_model_checkpoint_timestamps: 1"],
)  # fmt: skip
def test_an_unreadable_state_is_an_error_and_never_no_checkpoints_yet(data):
    with pytest.raises(CorruptError, match="nothing was changed"):
        decode(data)


@given(states.filter(lambda state: state.record is not None), st.data())
def test_every_bit_flip_and_truncation_of_our_state_is_detected(state, data):
    encoded = bytearray(encode_state(state))
    if data.draw(st.booleans()):
        del encoded[data.draw(st.integers(0, len(encoded) - 1)) :]
    else:
        bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
        encoded[bit // 8] ^= 1 << bit % 8

    with pytest.raises(CorruptError):
        decode(bytes(encoded))


def test_a_state_of_a_newer_format_asks_for_an_update():
    rest = b'{"v":2}\nmodel_checkpoint_path: "a"\n'

    with pytest.raises(UnsupportedError, match="update ckpt_remote"):
        decode(f"# ckpt_remote {crc32c(rest):08x} ".encode() + rest)


def test_the_lineage_keeps_the_newest_writes_and_stays_bounded():
    record = Record(write_id="n", term="0" * 16, epoch=1, lineage=tuple(str(i) for i in range(40)))

    assert ("n", "0", "1") == record.followed_by()[:3]
    assert 32 == len(record.followed_by())


def with_record(record, body='model_checkpoint_path: "ckpt-1"\n'):
    rest = f"{record}\n{body}".encode()
    return f"# ckpt_remote {crc32c(rest):08x} ".encode() + rest


SOUND = {
    "v": 1,
    "write_id": "a",
    "term": "0123456789abcdef",
    "epoch": 1,
    "home": "bucket/run",
    "serial": 4,
    "highest": 9,
    "lineage": ["b"],
    "preserved": ["ckpt-3"],
    "retired": [["ckpt-9", "id", 0, 1, 1, "ckpt-9.note"]],
    "replaced": ["ckpt-8", None, 0, 0, 1],
}


def test_a_record_that_makes_sense_is_read():
    assert 9 == decode(with_record(json.dumps(SOUND))).record.highest


@pytest.mark.parametrize(
    "change",
    [
        {"write_id": 5}, {"write_id": None},
        {"term": ""}, {"term": "0123456789ABCDEF"}, {"term": 0}, {"term": "0123456789abcdef0"},
        {"epoch": -1}, {"epoch": "1"}, {"epoch": 2**63}, {"epoch": 1.0}, {"epoch": None},
        {"home": 5}, {"serial": -1}, {"serial": None},
        {"highest": -1}, {"highest": 1.5}, {"highest": 2**63},
        {"lineage": [5]}, {"lineage": None},
        {"preserved": [5]}, {"preserved": ["../x"]}, {"preserved": ["/etc/x"]},
        {"retired": [[]]}, {"retired": [None]}, {"retired": [["ckpt-9", "", 0, 5, 1]]},
        {"retired": [["ckpt-9", "", 0, -1, 1]]}, {"retired": [["ckpt-9", "", 0, float("inf"), 1]]},
        {"retired": [["ckpt-9", "", 0, 0, 2**31]]}, {"retired": [["ckpt-9", "", 2, 1, 3]]},
        {"retired": [["ckpt-9", "", -1, 1, 3]]}, {"retired": [["ckpt-9", "", 0, 1, 1, "checkpoint"]]},
        {"retired": [["ckpt-9", "", 0, 1, 1, "ckpt-9/../../x"]]}, {"retired": [["../ckpt-9", "", 0, 1, 1]]},
        {"retired": [["ckpt-9", 5, 0, 1, 1]]}, {"replaced": []}, {"replaced": ["../ckpt-9", "", 0, 1, 1]},
        {"replaced": ["ckpt-9", "", 0, 5, 1]}, {"replaced": ["ckpt-9", "", 0, 1]}, {"replaced": "ckpt-9"},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_refused_before_anything_follows_it(change):
    with pytest.raises(CorruptError):
        decode(with_record(json.dumps(SOUND | change)))


@pytest.mark.parametrize("missing", sorted(SOUND))
def test_a_record_that_lacks_something_is_refused(missing):
    with pytest.raises(CorruptError):
        decode(with_record(json.dumps({name: value for name, value in SOUND.items() if name != missing})))


@pytest.mark.parametrize("record", ["[" * 100_000, "7", "{}", "null", "", "[]"], ids=lambda record: record[-10:])
def test_a_record_that_is_none_is_refused(record):
    with pytest.raises(CorruptError):
        decode(with_record(record))


def test_an_intention_names_its_objects_one_by_one():
    intention = Retired(path="deep/ckpt-9", write_id="a", used=2, of=73211, files=("deep/ckpt-9.note",))

    assert ("deep/ckpt-9.data-00000-of-73211", "deep/ckpt-9.data-00001-of-73211") == intention.objects
    assert (*intention.objects, "deep/ckpt-9.note") == intention.data
    assert "deep/ckpt-9.index" == intention.index


def test_a_path_given_twice_is_one_checkpoint_as_in_tensorflows_manager():
    names = "".join(f'all_model_checkpoint_paths: "{n}"\n' for n in ("a", "b", "s3://bucket/run/a"))
    times = "".join(f"all_model_checkpoint_timestamps: {t}\n" for t in (1.0, 2.0, 3.0))

    assert (Entry("a", 3.0), Entry("b", 2.0)) == decode(f'model_checkpoint_path: "a"\n{names}{times}'.encode()).entries


def test_a_huge_state_is_refused_at_once():
    started = time.perf_counter()
    for data in (b":" * 100_000_000, b'model_checkpoint_path: "' + b"x" * 100_000_000):
        with pytest.raises(CorruptError, match="100000"):
            decode(data)

    assert time.perf_counter() - started < 5.0


def test_a_state_that_nobody_could_read_is_not_written():
    record = Record(write_id="n", term="0" * 16, epoch=1, preserved=("ckpt-1" * 2**10,) * 2**12)
    with pytest.raises(UnsupportedError, match="too many for one directory"):
        encode_state(State(latest="ckpt-1", record=record))
