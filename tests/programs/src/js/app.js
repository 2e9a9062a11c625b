// A component whose run evaluates the JavaScript that stdin has: console.log writes to stdout, an exception fails.
import { getStdin } from "wasi:cli/stdin@0.2.12";

function program() {
  const stream = getStdin();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    try {
      text += decoder.decode(stream.blockingRead(65536n), { stream: true });
    } catch (end) {
      if (end.payload?.tag !== "closed") throw end;
      return text + decoder.decode();
    }
  }
}

export const run = {
  run() {
    try {
      (0, eval)(program());
    } catch (error) {
      console.error(String(error));
      throw undefined;
    }
  },
};
