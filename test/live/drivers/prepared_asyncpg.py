"""asyncpg, which prepares everything: port and database come from the command line."""

import asyncio
import sys

import asyncpg

PORT, DATABASE = sys.argv[1:]


async def work(number):
    connection = await asyncpg.connect(host="127.0.0.1", port=int(PORT), user="trusty", database=DATABASE)
    # The cache of statements is smaller than what is used: they are closed and made again.
    for _ in range(20):
        for kind in range(6):
            value = await connection.fetchval(f"select $1::int4 + {number * 100 + kind}", 1000)
            assert value == 1000 + number * 100 + kind, (number, kind, value)
    statement = await connection.prepare(f"select generate_series(1, $1::int4) + {number}")
    async with connection.transaction():
        values = [row[0] async for row in statement.cursor(200)]
    assert values == [n + number for n in range(1, 201)], values
    await connection.executemany("select $1::int4", [(n,) for n in range(20)])
    try:
        await connection.fetchval("select 1 / $1::int4", 0)
    except asyncpg.DivisionByZeroError:
        pass
    assert await connection.fetchval("select 1 / $1::int4", 1) == 1
    await connection.close()


async def main():
    await asyncio.gather(*(work(number) for number in range(6)))
    print("done")


asyncio.run(main())
