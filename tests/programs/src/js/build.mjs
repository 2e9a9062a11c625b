// node build.mjs SOURCE WIT OUT: makes a component of a JavaScript module, for the world `command`.
import { readFile, writeFile } from "node:fs/promises";
import { componentize } from "@bytecodealliance/componentize-js";

const [source, witPath, out] = process.argv.slice(2);
const { component } = await componentize(await readFile(source, "utf8"), {
  witPath,
  worldName: "command",
  disableFeatures: ["http", "fetch-event"],
});
await writeFile(out, component);
