"""Ports, the limit of open files, systemd's socket, and bundles that changed."""

import asyncio
import os
import resource
import shutil
import socket

import pytest

from kpl_engine.data import demo_bundle
from kpl_engine.errors import ConfigError
from kpl_engine.server.listening import address_of, notify_systemd, open_listener, raise_open_files
from kpl_engine.server.reload import ChangedBundles


def test_a_free_port_is_found_and_accepts():
    (listener,) = open_listener("127.0.0.1", 0, "http_port")
    with listener:
        place = listener.getsockname()
        assert address_of("http", listener) == f"http://127.0.0.1:{place[1]}"
        socket.create_connection(place, timeout=5).close()


def test_small_replies_are_not_held_back():
    """Nagle's algorithm made a reply in two writes wait 40 ms for the client's delayed acknowledgement."""
    (listener,) = open_listener("127.0.0.1", 0, "http_port")

    async def accepted_option():
        option = asyncio.get_running_loop().create_future()

        def accept(_reader, writer):
            option.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(accept, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            found = await asyncio.wait_for(option, 10)
            writer.close()
            await writer.wait_closed()
        return found

    assert asyncio.run(accepted_option()) != 0


def test_a_name_of_several_addresses_listens_at_one_port(monkeypatch):
    both = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.1", 0)),  # of the documentation, no machine has it
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    listeners = open_listener("viewer", 0, "http_port")
    ports = {each.getsockname()[1] for each in listeners}
    for each in listeners:
        each.close()
    assert len(listeners) == 2
    assert len(ports) == 1


def test_a_port_that_is_taken_is_named_with_its_flag():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} at 127.0.0.1 is taken.*--metrics-port"):
            open_listener("127.0.0.1", port, "metrics_port")


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid"])
def test_an_address_of_elsewhere_is_told(host):
    with pytest.raises(ConfigError, match="--host"):
        open_listener(host, 0, "http_port")


def test_open_files_are_lifted_to_the_hard_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        assert raise_open_files() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_told_where_it_asked(tmp_path, is_abstract):
    name = f"@kpl-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind("\0" + name[1:] if is_abstract else name)
        inbox.settimeout(5)
        notify_systemd(name, "READY=1")
        assert inbox.recv(64) == b"READY=1"
    notify_systemd(name, "READY=1")  # it has left: no error
    notify_systemd("", "READY=1")


def test_bundles_are_told_once_when_they_changed(tmp_path):
    bundle = tmp_path / "lung.kpl"
    shutil.copytree(demo_bundle(), bundle)
    changed = ChangedBundles([bundle, tmp_path / "missing.kpl"])
    assert changed.names() == []
    shutil.copytree(bundle, tmp_path / "new")
    os.rename(bundle, tmp_path / "old")
    assert changed.names() == []  # gone is not changed
    os.rename(tmp_path / "new", bundle)
    assert changed.names() == ["lung"]
    assert changed.names() == []


def test_a_bundle_that_could_not_be_loaded_is_tried_again(tmp_path):
    bundle = tmp_path / "lung.kpl"
    shutil.copytree(demo_bundle(), bundle)
    changed = ChangedBundles([bundle])
    changed.not_taken("lung")  # its graph was cut off, and is put right without a change of the manifest
    assert changed.names() == ["lung"]
    assert changed.names() == []
