"""Servers that accept conditions and ignore them are refused, every time, before anything is saved."""

import pytest
import tensorflow as tf
from support import servers
from support.places import Place
from support.radosgw import unquoted_etags

from ckpt_remote import UnsupportedError
from ckpt_remote.store import open_store

TIMES = 20


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "scheme"), [("rclone", "s3"), ("gcp_storage_emulator", "gs")])
def test_a_server_that_ignores_conditions_is_refused_every_time_and_told_what_it_did(kind, scheme, capsys):
    refused = 0
    with getattr(servers, kind)() as server:
        for _ in range(TIMES):
            place = Place(f"{scheme}://{server.new_bucket()}/run", server.storage_options)
            manager = place.manager(tf.train.Checkpoint(value=tf.Variable(1.0)), max_to_keep=1)
            with pytest.raises(UnsupportedError, match="created an object where there was one already"):
                manager.save()
            refused += 1
            assert 0 == int(manager.checkpoint.save_counter)
            store = open_store(place.url, place.storage_options)
            assert not [info.key for info in store.list() if not info.key.startswith("_ckpt_remote/probe-")]
    with capsys.disabled():
        print(f"\n{kind}: refused {refused} of {TIMES}")


def test_a_server_that_wants_etags_without_quotes_is_served(ministack):
    with unquoted_etags(ministack) as server:
        place = Place(f"s3://{server.new_bucket()}/run", server.storage_options)
        value = tf.Variable(1.0)
        manager = place.manager(tf.train.Checkpoint(value=value), max_to_keep=1)
        manager.save()
        value.assign(2.0)
        path = manager.save()
        copy = tf.Variable(0.0)

        assert path == place.manager(tf.train.Checkpoint(value=copy), max_to_keep=1).restore_or_initialize()
        assert 2.0 == float(copy)
        assert {"checkpoint", "ckpt-2"} == {info.key.partition(".")[0] for info in place.store().list()}
