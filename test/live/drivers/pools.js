// node-postgres at the console: port and database come from the command line; rows go to standard output.

const { Client } = require("pg");

const [port, database] = process.argv.slice(2);

// How a query is sent: simply, as a named prepared statement, with a binary result.
const ways = {
  default: (text) => ({ text }),
  prepared: (text) => ({ text, name: text }),
  binary: (text) => ({ text, values: [], binary: true }),
};

function print(way, topic, result) {
  for (const row of result.rows.filter((row) => row.database === database)) {
    const cells = result.fields.map(({ name }) => `${name}=${row[name] === null ? "NULL" : row[name]}`);
    console.log([way, topic, ...cells].join("|"));
  }
}

async function main() {
  const client = new Client({ host: "127.0.0.1", port: Number(port), database: "pgbouncer", user: "admin" });
  await client.connect();
  for (const [way, query] of Object.entries(ways)) {
    for (const topic of ["POOLS", "CLIENTS", "STATS"]) {
      print(way, topic, await client.query(query(`SHOW ${topic}`)));
      print(way, topic, await client.query(query(`SHOW ${topic}`)));
    }
  }
  for (const [way, query] of Object.entries(ways)) {
    await client.query(query("NONSENSE")).catch((error) => {
      console.log([way, "error", error.code, error.message].join("|"));
    });
    for (const command of ["PAUSE", "RESUME"]) {
      const result = await client.query(query(`${command} ${database}`));
      console.log([way, "tag", result.command].join("|"));
      const { rows } = await client.query(query("SHOW DATABASES"));
      console.log([way, "paused", rows.find((row) => row.name === database).paused].join("|"));
    }
  }
  await client.end();
}

main();
