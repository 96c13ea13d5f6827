// node-postgres with named statements: port and database come from the command line.

const { Client } = require("pg");

const [port, database] = process.argv.slice(2);

async function work(number) {
  const client = new Client({ host: "127.0.0.1", port: Number(port), database, user: "trusty" });
  await client.connect();
  for (let round = 0; round < 20; round++) {
    for (let kind = 0; kind < 6; kind++) {
      const text = `select $1::int4 + ${number * 100 + kind} as n`;
      const result = await client.query({ name: `s${kind}`, text, values: [1000] });
      const unnamed = await client.query(text, [2000]);
      const want = number * 100 + kind;
      if (result.rows[0].n !== 1000 + want || unnamed.rows[0].n !== 2000 + want) {
        throw new Error(`${number} ${kind}: ${JSON.stringify(result.rows)}`);
      }
    }
  }
  await client.end();
}

Promise.all([0, 1, 2, 3, 4, 5].map(work)).then(
  () => console.log("done"),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
