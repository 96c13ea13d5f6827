"""asyncpg: a query is canceled while it waits for a server. Port and database come from the command
line."""

import asyncio
import sys

import asyncpg

PORT, DATABASE = sys.argv[1:]


async def main():
    connection = await asyncpg.connect(
        host="127.0.0.1", port=int(PORT), database=DATABASE, user="trusty", timeout=30,
        statement_cache_size=0,
    )
    for run in [lambda: connection.execute("SELECT 1"), lambda: connection.fetch("SELECT $1::int", 1)]:
        # When the time is over asyncpg sends a cancel request and waits for the answer to the query.
        try:
            await asyncio.wait_for(run(), 1)
            print("no error")
        except asyncio.TimeoutError:
            print("timeout")
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    print(await connection.fetchval("SELECT 42"))
    await connection.close()


asyncio.run(main())
