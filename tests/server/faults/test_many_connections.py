"""A thousand connections at once, and requests answered all the same."""

import asyncio
import contextlib
import resource

import pytest

from tests.server.faults.wire import Line

CONNECTIONS = 1000


@pytest.fixture
def room():
    """File descriptors for the test's own ends of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * CONNECTIONS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this machine allows {hard} open files, the test needs {wanted}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("room", "unharmed")
def test_a_thousand_idle_ones_and_the_work_goes_on(server, pictures):
    expected = server.classify(pictures[1])
    with contextlib.ExitStack() as held:
        for _ in range(CONNECTIONS):
            held.enter_context(server.connect())
        assert server.classify(pictures[1]) == expected


@pytest.mark.usefixtures("room", "unharmed")
def test_a_thousand_at_once_are_answered_or_told_to_come_again(server, whole_requests):
    request = next(each for each in whole_requests if each.name == "json").wire()

    async def one(line):
        try:
            return await line.ask(request, 60.0)
        finally:
            await line.close()

    async def everyone():
        return await asyncio.gather(*(one(Line(server.http)) for _ in range(CONNECTIONS)))

    replies = asyncio.run(everyone())
    told = [0 if reply is None else reply.status for reply in replies]
    assert set(told) <= {200, 429, 503}, set(told)
    assert told.count(200) > 0
    assert all("retry-after" in reply.headers for reply in replies if reply.status == 429)
