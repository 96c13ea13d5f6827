"""psycopg 3 with named statements from the first execution on: port and database come from the command line."""

import sys
import threading

import psycopg

PORT, DATABASE = sys.argv[1:]
failures = []


def work(number):
    conninfo = f"host=127.0.0.1 port={PORT} user=trusty dbname={DATABASE}"
    with psycopg.connect(conninfo, prepare_threshold=0, autocommit=True) as connection:
        for _ in range(30):
            for kind in range(6):
                row = connection.execute(f"select %s::int4 + {number * 100 + kind}", (1000,)).fetchone()
                if row != (1000 + number * 100 + kind,):
                    failures.append((number, kind, row))
        with connection.transaction():
            for kind in range(6):
                row = connection.execute(f"select %s::int4 + {number * 100 + kind}", (1,)).fetchone()
                if row != (1 + number * 100 + kind,):
                    failures.append((number, kind, row))
        with connection.pipeline():
            cursors = [connection.execute("select %s::int4", (n,)) for n in range(50)]
            for n, cursor in enumerate(cursors):
                if cursor.fetchone() != (n,):
                    failures.append((number, n))


threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(failures or "done")
