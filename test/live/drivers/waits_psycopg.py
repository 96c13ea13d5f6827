"""psycopg 3: a query is canceled while it waits for a server. Port and database come from the
command line."""

import sys
import threading

import psycopg

PORT, DATABASE = sys.argv[1:]

with psycopg.connect(
    host="127.0.0.1", port=PORT, dbname=DATABASE, user="trusty", autocommit=True
) as connection:
    for parameters in [None, (1,)]:
        threading.Timer(1.0, connection.cancel).start()
        try:
            connection.execute("SELECT 1" if parameters is None else "SELECT %s", parameters)
            print("no error")
        except psycopg.errors.QueryCanceled as error:
            print(error.diag.sqlstate, error.diag.message_primary, connection.info.transaction_status.name)
    print("ready", flush=True)
    sys.stdin.readline()
    print(connection.execute("SELECT %s + 1", (41,)).fetchone()[0])
