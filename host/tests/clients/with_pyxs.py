"""pyxs, a xenstore client in pure Python, against `ferrostored --domains 2`; scripts/test-clients runs it.

Arguments: the socket of the privileged domain, and that of domain 1. Fails with the first result that is another.
"""

import errno
import sys

from pyxs import Client
from pyxs.exceptions import PyXSError

DOM0, GUEST = sys.argv[1:]


# pyxs asks the kernel whether it runs in dom0 and refuses to ask the store what only dom0 may. Here the store decides.
Client.SU = True


def main():
    for part in nodes, permissions, transactions, watches, domains, guest:
        part()
        print(f"ok   pyxs: {part.__name__}")


def nodes():
    with Client(DOM0) as client:
        client.write(b"/t/a", b"one")
        client.write(b"/t/b/c", b"\x00two ")
        expect(client.read(b"/t/a"), b"one")
        expect(client.read(b"/t/b/c"), b"\x00two ")
        expect(client.read(b"/t/b"), b"")
        expect(client.read(b"/t/nope", b"instead"), b"instead")
        expect(refusal(client.read, b"/t/nope"), errno.ENOENT)
        client.mkdir(b"/t/d")
        expect(client.list(b"/t"), [b"a", b"b", b"d"])
        expect(client.list(b"/t/d"), [])
        expect(client.exists(b"/t/d"), True)
        client.delete(b"/t/b")
        client.delete(b"/t/b")
        expect(client.exists(b"/t/b/c"), False)
        expect(refusal(client.delete, b"/t/b/c"), errno.ENOENT)
        expect(list(client.walk(b"/t"))[1], (b"/t/a", b"one", []))
        value = b"v" * (4096 - len(b"/t/big\0"))
        client.write(b"/t/big", value)
        expect(client.read(b"/t/big"), value)
        client.delete(b"/t")


def permissions():
    with Client(DOM0) as client:
        client.write(b"/t/a", b"x")
        client.set_perms(b"/t/a", [b"r0", b"b1", b"n2"])
        expect(client.get_perms(b"/t/a"), [b"r0", b"b1", b"n2"])
        expect(refusal(client.set_perms, b"/t/a", [b"n77"]), errno.ENOENT)
        expect(refusal(client.get_perms, b"/t/nope"), errno.ENOENT)
        client.delete(b"/t")


def transactions():
    with Client(DOM0) as client, Client(DOM0) as other:
        client.write(b"/t/a", b"old")
        client.transaction()
        client.write(b"/t/a", b"new")
        expect(client.read(b"/t/a"), b"new")
        expect(other.read(b"/t/a"), b"old")
        expect(client.commit(), True)
        expect(other.read(b"/t/a"), b"new")

        client.transaction()
        client.write(b"/t/a", b"never")
        client.rollback()
        expect(client.read(b"/t/a"), b"new")

        client.transaction()
        expect(client.read(b"/t/a"), b"new")
        other.write(b"/t/a", b"between")
        expect(client.read(b"/t/a"), b"new")
        client.write(b"/t/b", b"x")
        expect(client.commit(), False)
        expect(client.exists(b"/t/b"), False)
        client.delete(b"/t")


def watches():
    with Client(DOM0) as client, Client(DOM0) as other:
        with client.monitor() as monitor:
            monitor.watch(b"/t", b"token")
            events = monitor.wait()
            expect(tuple(next(events)), (b"/t", b"token"))
            other.write(b"/t/a/b", b"x")
            expect(tuple(next(events)), (b"/t/a/b", b"token"))
            other.transaction()
            other.write(b"/t/c", b"x")
            other.commit()
            expect(tuple(next(events)), (b"/t/c", b"token"))
            expect(refusal(monitor.watch, b"/t", b"token"), errno.EEXIST)
            monitor.watch(b"@releaseDomain", b"special")
            expect(tuple(next(events)), (b"@releaseDomain", b"special"))
            other.delete(b"/t")
            expect(tuple(next(events)), (b"/t", b"token"))
        expect(monitor.watched, set())


def domains():
    with Client(DOM0) as client:
        expect(client.get_domain_path(7), b"/local/domain/7")
        expect(client.is_domain_introduced(1), True)
        expect(client.is_domain_introduced(77), False)
        client.release_domain(2)
        expect(client.is_domain_introduced(2), False)
        client.introduce_domain(2, 1, 1)
        expect(client.is_domain_introduced(2), True)
        client.set_target(1, 2)
        client.resume_domain(1)
        expect(refusal(client.introduce_domain, 77, 1, 1), errno.EINVAL)


def guest():
    with Client(DOM0) as client, Client(GUEST) as guest:
        client.write(b"/private", b"secret")
        guest.write(b"data/hello", b"hi")
        expect(guest.read(b"/local/domain/1/data/hello"), b"hi")
        expect(client.read(b"/local/domain/1/data/hello"), b"hi")
        expect(guest.get_perms(b"data"), [b"n1"])
        expect(refusal(guest.read, b"/private"), errno.EACCES)
        expect(refusal(guest.write, b"/private", b"x"), errno.EACCES)
        expect(refusal(guest.introduce_domain, 2, 1, 1), errno.EACCES)
        expect(refusal(guest.set_perms, b"data", [b"n2"]), errno.EPERM)
        with guest.monitor() as monitor:
            monitor.watch(b"data", b"token")
            events = monitor.wait()
            expect(tuple(next(events)), (b"data", b"token"))
            client.write(b"/local/domain/1/data/reply", b"x")
            expect(tuple(next(events)), (b"data/reply", b"token"))


def refusal(call, *arguments):
    """The errno that `call` is answered with; none if it succeeds."""
    try:
        call(*arguments)
    except PyXSError as error:
        return error.args[0]
    return None


def expect(came, expected):
    if came != expected:
        raise AssertionError(f"{came!r} came where {expected!r} was expected")


main()
