"""asyncpg at the console: port and database come from the command line; rows go to standard output."""

import asyncio
import sys
from decimal import Decimal

import asyncpg

PORT, DATABASE = sys.argv[1:]


def shown(value):
    match value:
        case None:
            return "NULL"
        case Decimal():
            return format(value, "f")
        case _:
            return str(value)


def write(way, topic, rows):
    for row in rows:
        if row["database"] == DATABASE:
            cells = (f"{name}={shown(value)}" for name, value in row.items())
            print(way, topic, *cells, sep="|")


async def main():
    connection = await asyncpg.connect(
        host="127.0.0.1", port=int(PORT), database="pgbouncer", user="admin", timeout=30
    )
    for topic in ["POOLS", "CLIENTS", "STATS"]:
        write("fetch", topic, await connection.fetch(f"SHOW {topic}"))
        statement = await connection.prepare(f"SHOW {topic}")
        write("prepared", topic, await statement.fetch())
    pools = await connection.fetch("SHOW POOLS")
    assert all(type(row["sv_idle"]) is int for row in pools), pools
    try:
        await connection.fetch("NONSENSE")
    except asyncpg.PostgresError as error:
        print("fetch", "error", error.sqlstate, error.message, sep="|")
    for command in ["PAUSE", "RESUME"]:
        statement = await connection.prepare(f"{command} {DATABASE}")
        await statement.fetch()
        print("fetch", "tag", statement.get_statusmsg(), sep="|")
        for row in await connection.fetch("SHOW DATABASES"):
            if row["name"] == DATABASE:
                print("fetch", "paused", row["paused"], sep="|")
    await connection.close()


asyncio.run(main())
