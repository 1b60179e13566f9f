// Tar archives of a few files as Blobs, without copying their content.

const BLOCK = 512;

const FILES = ["0", "\0"];
const EXTENDED = ["x", "g", "L"]; // they describe the next member

/** Make a tar of `files`, a list of `{name, blob}`. Names have at most 100 bytes. */
export function tar(files) {
  return new Blob([...members(files), new Uint8Array(2 * BLOCK)], { type: "application/x-tar" });
}

/** Put files at the top level of a tar, in place of those with their names. */
export async function replaced(archive, files) {
  const kept = [];
  let end = 0;
  for await (const member of listed(archive)) {
    if (!files.some(({ name }) => name === member.path)) kept.push(archive.slice(member.begin, member.end));
    end = member.end;
  }
  const rest = archive.slice(end); // the end of the archive, or what the server will refuse
  return new Blob([...kept, ...members(files), rest], { type: "application/x-tar" });
}

/** Read a file of a tar's top level, or else of a folder there, as text; null if there is none. */
export async function readText(archive, name) {
  let found = null;
  for await (const member of listed(archive)) {
    const isIt = member.path === name || member.path.slice(member.path.indexOf("/") + 1) === name;
    if (isIt && (!found || member.path === name)) found = member;
  }
  return found && archive.slice(found.data, found.data + found.size).text();
}

/** All members up to the first that is not one. Long names are not read: no file of ours has one. */
async function* listed(archive) {
  let begin = 0;
  let at = 0;
  while (at + BLOCK <= archive.size) {
    const block = new Uint8Array(await archive.slice(at, at + BLOCK).arrayBuffer());
    const text = (from, to) => new TextDecoder().decode(block.slice(from, to)).split("\0")[0];
    const size = Number.parseInt(text(124, 136).trim(), 8);
    if (text(257, 262) !== "ustar" || !(size >= 0)) return;
    const kind = String.fromCharCode(block[156]);
    const data = at + BLOCK;
    at = data + Math.ceil(size / BLOCK) * BLOCK;
    if (EXTENDED.includes(kind)) continue;
    const path = FILES.includes(kind) ? text(0, 100).split("/").filter((part) => part && part !== ".").join("/") : "";
    yield { path, begin, data, size, end: at };
    begin = at;
  }
}

function members(files) {
  return files.flatMap(({ name, blob }) => [header(name, blob.size), blob, new Uint8Array(-blob.size & (BLOCK - 1))]);
}

/** A POSIX ustar header. */
function header(name, size) {
  const block = new Uint8Array(BLOCK);
  const write = (at, text) => block.set(new TextEncoder().encode(text), at);
  const octal = (number, width) => number.toString(8).padStart(width, "0");
  write(0, name);
  write(100, "0000644\0");
  write(108, "0000000\0");
  write(116, "0000000\0");
  write(124, `${octal(size, 11)}\0`);
  write(136, "00000000000\0");
  write(148, "        ");
  write(156, "0");
  write(257, "ustar\x0000");
  write(148, `${octal(block.reduce((sum, byte) => sum + byte, 0), 6)}\0 `);
  return block;
}
