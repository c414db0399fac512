// Posts each file to an address, by node's fetch and by node:http over one connection. A line for each answer.
import { readFileSync } from "node:fs";
import { Agent, request } from "node:http";

const [url, ...files] = process.argv.slice(2);
const headers = { "Content-Type": "application/json" };
const agent = new Agent({ keepAlive: true, maxSockets: 1 });

function post(body) {
  return new Promise((resolve, reject) => {
    const sent = request(url, { method: "POST", headers, agent }, async (answer) => {
      let text = "";
      for await (const part of answer) text += part;
      resolve([answer.statusCode, text]);
    });
    sent.on("error", reject);
    // Without a length, and so in chunks.
    sent.write(body.subarray(0, 10));
    sent.end(body.subarray(10));
  });
}

for (const file of files) {
  const body = readFileSync(file);
  const answer = await fetch(url, { method: "POST", headers, body });
  console.log(answer.status, await answer.text());
  console.log(...(await post(body)));
}
agent.destroy();
