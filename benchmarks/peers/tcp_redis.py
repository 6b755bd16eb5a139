"""``tcp.py`` with state in a Redis Cluster, by redis-py with hiredis: how often each user has asked is cached here, and
stored before C is asked.

A command of its own for each would cost twice as much: what comes while PIPELINES of them are under way leaves with the
next one.

Usage: tcp_redis.py LISTEN_PORT C_PORT SIZE REDIS_PORT
"""

import asyncio
import sys

import msgspec
import redis.asyncio
import uvloop
from tcp import FromA, serve

PIPELINES, USERS = 4, 10_000


class User(msgspec.Struct, frozen=True, array_like=True):
    asked: int = 0


class Stateful(FromA):
    def request(self, request):
        number = int.from_bytes(request[:8], "big") % USERS
        user = users[number] = User(users[number].asked + 1)
        waiting.append((number, encode(user), self, request))
        wake.set()

    def stored(self, request):
        super().request(request)


async def store(client):
    while True:
        while not waiting:
            wake.clear()
            await wake.wait()
        batch = waiting[:]
        waiting.clear()
        pipeline = client.pipeline()
        for number, packed, _, _ in batch:
            pipeline.set(f"user:{number}", packed)
        await pipeline.execute()
        for _, _, connection, request in batch:
            if not connection.transport.is_closing():
                connection.stored(request)


async def main():
    global wake
    wake = asyncio.Event()
    client = await redis.asyncio.RedisCluster(host="127.0.0.1", port=int(sys.argv[4])).initialize()
    pipeline = client.pipeline()
    for number in range(USERS):
        pipeline.get(f"user:{number}")
    for number, packed in enumerate(await pipeline.execute()):
        users[number] = decode(packed) if packed else User()
    async with asyncio.TaskGroup() as group:
        for _ in range(PIPELINES):
            group.create_task(store(client))
        await serve(Stateful)


encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(User).decode
users, waiting = {}, []
uvloop.run(main())
