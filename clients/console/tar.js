// A tar archive of a few files as a Blob, without copying their content.

const BLOCK = 512;

/** Make a tar of `files`, a list of `{name, blob}`. Names have at most 100 bytes. */
export function tar(files) {
  const parts = files.flatMap(({ name, blob }) => [header(name, blob.size), blob, new Uint8Array(-blob.size & (BLOCK - 1))]);
  return new Blob([...parts, new Uint8Array(2 * BLOCK)], { type: "application/x-tar" });
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
