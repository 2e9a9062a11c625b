// Serves the page from its sources, and passes calls on to a daemon: dev.mjs [DAEMON [PORT]], by default the admin
// listener at http://127.0.0.1:9090. Each reload of the page builds it anew.

import http from 'node:http';
import { build } from './build.mjs';

const types = { html: 'text/html', js: 'text/javascript', css: 'text/css', svg: 'image/svg+xml' };
const csp = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "font-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  'trusted-types lit-html',
].join('; ');

/**
 * Serves the page at a port of loopback (0: any that is free), and passes on to `daemon`, the address of an admin
 * listener, whatever is none of the page's files. `files` gives these by name, and is asked again with each reload.
 */
export async function servePage({ daemon, port = 0, files = () => build({ dev: true }) }) {
  const upstream = new URL(daemon);
  let served = await files();
  const server = http.createServer(async (request, response) => {
    const { pathname } = new URL(request.url, 'http://localhost');
    const name = pathname === '/' ? 'index.html' : pathname.slice(1);
    try {
      if (name === 'index.html') served = await files();
    } catch (error) {
      response.writeHead(500, { 'content-type': 'text/plain' }).end(String(error));
      return;
    }
    const file = served.get(name);
    if (file === undefined) {
      passOn(request, response, upstream);
      return;
    }
    const type = `${types[name.split('.').pop()]}; charset=utf-8`;
    response.writeHead(200, { 'content-type': type, 'content-security-policy': csp, 'cache-control': 'no-store' });
    response.end(file);
  });
  await new Promise((resolve, reject) => server.once('error', reject).listen(port, '127.0.0.1', resolve));
  const close = () => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  };
  return { url: `http://127.0.0.1:${server.address().port}/`, close };
}

/** Sends a request to a server as if it had been addressed to it, and streams the answer back. */
export function passOn(request, response, upstream, path = request.url) {
  // The daemon refuses requests that are addressed to others, or that the page of another origin sends.
  const headers = { ...request.headers, host: upstream.host };
  if (headers.origin !== undefined) headers.origin = upstream.origin;
  const passed = http.request(new URL(path, upstream), { method: request.method, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    // A stream may say nothing for long, and its reader is to know that it has begun.
    response.flushHeaders();
    answer.on('error', () => response.destroy());
    answer.on('aborted', () => response.destroy());
    answer.pipe(response);
  });
  passed.on('error', (error) => {
    if (response.headersSent) response.destroy();
    else response.writeHead(502, { 'content-type': 'text/plain' }).end(String(error));
  });
  response.on('close', () => passed.destroy());
  request.pipe(passed);
}

if (process.argv[1] === import.meta.filename) {
  const daemon = process.argv[2] ?? 'http://127.0.0.1:9090';
  const { url } = await servePage({ daemon, port: Number(process.argv[3] ?? 5173) });
  console.log(`${url} of ${daemon}`);
}
