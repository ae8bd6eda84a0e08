"""The examples in the docstrings do what they say."""

import doctest
import importlib

import fsspec
import pytest

import ckpt_remote

WITH_EXAMPLES = ["ckpt_remote.manager"]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run_as_shown(name):
    fsspec.filesystem("memory").store.clear()
    results = doctest.testmod(importlib.import_module(name))

    assert results.attempted
    assert not results.failed


def test_every_public_class_that_users_make_has_an_example():
    made_by_users = [
        public
        for public in map(vars(ckpt_remote).get, ckpt_remote.__all__)
        if public is not None and not issubclass(public, Exception)
    ]

    assert all(">>>" in public.__doc__ for public in (*made_by_users, ckpt_remote.CheckpointManager))
