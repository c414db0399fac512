// The request as code that works when pasted.

// Control, format and separator characters are written as escapes: terminals act on some of them, and none can be seen.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;

/** Returns a literal that JSON and Python read alike. */
function literal(text) {
  return JSON.stringify(text).replace(UNSEEN, (character) =>
    Array.from({ length: character.length }, (_, i) =>
      "\\u" + character.charCodeAt(i).toString(16).padStart(4, "0")).join(""));
}

/** Returns the request's object, indented by so much a level; JSON and Python read it alike too. */
function object(request, indent) {
  const fields = Object.entries(request).map(([name, value]) => {
    if (!Array.isArray(value)) return `${indent}"${name}": ${literal(value)}`;
    const items = value.map((text) => `${indent}${indent}${literal(text)}`).join(",\n");
    return `${indent}"${name}": ${items ? `[\n${items}\n${indent}]` : "[]"}`;
  });
  return `{\n${fields.join(",\n")}\n}`;
}

/** Returns a word of a POSIX shell: nothing is special between single quotes but the quote itself. */
function shellWord(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Returns the curl command; the key is left to the environment. */
export function curl(url, request, withKey) {
  return [
    `curl -sS ${shellWord(url)} \\`,
    ...(withKey ? [`  -H "authorization: Bearer $CROSSRANK_API_KEY" \\`] : []),
    `  -H 'content-type: application/json' \\`,
    `  -d ${shellWord(object(request, "  "))}`,
  ].join("\n");
}

/** Returns a Python program that prints the ranking; it uses the standard library only. */
export function python(url, request, withKey) {
  const headers = withKey
    ? `{\n    "authorization": f"Bearer {os.environ['CROSSRANK_API_KEY']}",\n    "content-type": "application/json",\n}`
    : `{"content-type": "application/json"}`;
  return `import json
${withKey ? "import os\n" : ""}import urllib.request

body = ${object(request, "    ")}
headers = ${headers}
request = urllib.request.Request(${literal(url)}, json.dumps(body).encode(), headers)
with urllib.request.urlopen(request) as response:
    answer = json.load(response)
for result in answer["results"]:
    print(result["index"], f"{result['relevance_score']:.4f}", body["documents"][result["index"]])
`;
}
