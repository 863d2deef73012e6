"""Times the calls of one ZEO client. Used by `measure`, which starts the server.

    zeo_calls.py version                        versions of ZEO and ZODB
    zeo_calls.py PORT DIR seed SOURCE COUNT     stores what the other commands load; prints nothing
    zeo_calls.py PORT DIR load-large            seconds, seconds with fdatasync, path
    zeo_calls.py PORT DIR store-large SOURCE    seconds, seconds with fdatasync, path
    zeo_calls.py PORT DIR load-records COUNT    loads a second
    zeo_calls.py PORT DIR load-blobs COUNT      loads a second
    zeo_calls.py PORT DIR commit-records COUNT  commits a second
    zeo_calls.py PORT DIR commit-blobs COUNT    commits a second

The calls use the storage interface directly, without pickling or an object cache. Each command is a separate client
with empty caches, connected before the clock starts. DIR/blobs is the server's directory of blobs. Small objects are
compared with what was stored after the clock has stopped. The caller compares the large file at the printed path.
"""

import os
import random
import sys
import tempfile
import time
from importlib.metadata import version

from ZEO.ClientStorage import ClientStorage
from ZODB.blob import FilesystemHelper
from ZODB.Connection import TransactionMetaData
from ZODB.utils import p64, z64

OBJECT = 10 << 10
LARGE = p64(1)
RECORDS = 1 << 20  # the oid of the first record to load
BLOBS = 2 << 20  # the oid of the first blob to load
BLOB_RECORD = b'a blob'  # the record of an object with a blob


def content(number):
    """Returns 10 KiB of incompressible bytes that depend only on the number."""
    return random.Random(number).randbytes(OBJECT)


class Client:
    def __init__(self, port, work):
        self.dir = tempfile.mkdtemp(prefix='zeo-client-', dir=work)
        self.server_blobs = FilesystemHelper(os.path.join(work, 'blobs'))
        blobs = os.path.join(self.dir, 'blobs')
        self.storage = ClientStorage(('127.0.0.1', port), blob_dir=blobs, wait=True, wait_timeout=30)

    def commit(self, records=(), blobs=()):
        """Stores new objects, pairs of an oid and data or a file, in one transaction; returns its tid."""
        txn = TransactionMetaData()
        self.storage.tpc_begin(txn)
        for oid, data in records:
            self.storage.store(oid, z64, data, '', txn)
        for oid, path in blobs:
            self.storage.storeBlob(oid, z64, BLOB_RECORD, path, '', txn)
        self.storage.tpc_vote(txn)
        return self.storage.tpc_finish(txn)

    def new_oids(self, count):
        return [self.storage.new_oid() for _ in range(count)]

    def file(self, name, data):
        """Writes a file to store as a blob; storing moves it away."""
        path = os.path.join(self.dir, str(name))
        with open(path, 'wb') as file:
            file.write(data)
        return path

    def link(self, source):
        """Links an existing large file to store as a blob."""
        path = os.path.join(self.dir, 'source')
        os.link(source, path)
        return path


def seed(client, source, count):
    numbers = range(int(count))
    client.commit(blobs=[(LARGE, client.link(source))])
    client.commit(records=[(p64(RECORDS + n), content(n)) for n in numbers])
    client.commit(blobs=[(p64(BLOBS + n), client.file(n, content(n))) for n in numbers])


def print_durations(path, begun):
    """Prints the time from `begun` to now, and to the end of a sync of the file."""
    written = time.monotonic()
    with open(path, 'rb') as file:
        os.fdatasync(file)
    print(written - begun, time.monotonic() - begun, path)


def load_large(client):
    tid = client.storage.getTid(LARGE)
    begun = time.monotonic()
    path = client.storage.loadBlob(LARGE, tid)
    print_durations(path, begun)


def store_large(client, source):
    blob = client.new_oids(1)[0], client.link(source)
    begun = time.monotonic()
    tid = client.commit(blobs=[blob])
    # The client has its answer, but the server has not synced the file. Sync it on the server's behalf.
    print_durations(client.server_blobs.getBlobFilename(blob[0], tid), begun)


def timed(call, arguments):
    """Makes calls one after the other; prints the number a second and returns the results."""
    begun = time.monotonic()
    results = [call(argument) for argument in arguments]
    print(len(results) / (time.monotonic() - begun))
    return results


def check(number, data):
    if data != content(number):
        sys.exit(f'ZEO gave something else than object {number}')


def load_records(client, count):
    loaded = timed(client.storage.load, [p64(RECORDS + n) for n in range(int(count))])
    for number, (data, _tid) in enumerate(loaded):
        check(number, data)


def load_blobs(client, count):
    tid = client.storage.getTid(p64(BLOBS))
    loaded = timed(lambda oid: client.storage.loadBlob(oid, tid), [p64(BLOBS + n) for n in range(int(count))])
    for number, path in enumerate(loaded):
        with open(path, 'rb') as file:
            check(number, file.read())


def commit_records(client, count):
    records = [(oid, content(n)) for n, oid in enumerate(client.new_oids(int(count)))]
    timed(lambda record: client.commit(records=[record]), records)


def commit_blobs(client, count):
    blobs = [(oid, client.file(n, content(n))) for n, oid in enumerate(client.new_oids(int(count)))]
    tids = timed(lambda blob: client.commit(blobs=[blob]), blobs)
    for number, ((oid, _path), tid) in enumerate(zip(blobs, tids)):
        with open(client.server_blobs.getBlobFilename(oid, tid), 'rb') as file:
            check(number, file.read())


COMMANDS = {
    'seed': seed,
    'load-large': load_large,
    'store-large': store_large,
    'load-records': load_records,
    'load-blobs': load_blobs,
    'commit-records': commit_records,
    'commit-blobs': commit_blobs,
}


def main():
    if sys.argv[1:] == ['version']:
        print(f'{version("ZEO")} + ZODB {version("ZODB")}')
        return
    port, work, command, *arguments = sys.argv[1:]
    client = Client(int(port), work)
    try:
        COMMANDS[command](client, *arguments)
    finally:
        client.storage.close()


if __name__ == '__main__':
    main()
