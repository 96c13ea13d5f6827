"""psycopg 3 at the console: port and database come from the command line; rows go to standard output."""

import sys

import psycopg

PORT, DATABASE = sys.argv[1:]
# How a query is sent: simply, as a named prepared statement, with a binary result.
WAYS = {
    "default": {},
    "prepared": {"prepare": True},
    "binary": {"binary": True},
}


def show(connection, way, topic):
    cursor = connection.execute(f"SHOW {topic}", **WAYS[way])
    names = [column.name for column in cursor.description]
    for row in cursor:
        values = dict(zip(names, row))
        if values["database"] == DATABASE:
            cells = (f"{name}={'NULL' if value is None else value}" for name, value in values.items())
            print(way, topic, *cells, sep="|")


def paused(connection, way):
    rows = connection.execute("SHOW DATABASES", **WAYS[way]).fetchall()
    for row in rows:
        if row[0] == DATABASE:
            print(way, "paused", row[15], sep="|")


with psycopg.connect(
    host="127.0.0.1", port=PORT, dbname="pgbouncer", user="admin", autocommit=True
) as connection:
    for way in WAYS:
        for topic in ["POOLS", "CLIENTS", "STATS"]:
            show(connection, way, topic)
    for way in WAYS:
        try:
            connection.execute("NONSENSE", **WAYS[way])
        except psycopg.Error as error:
            print(way, "error", error.diag.sqlstate, error.diag.message_primary, sep="|")
        for command in ["PAUSE", "RESUME"]:
            cursor = connection.execute(f"{command} {DATABASE}", **WAYS[way])
            print(way, "tag", cursor.statusmessage, sep="|")
            paused(connection, way)
