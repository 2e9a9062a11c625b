// Serves the page from its sources, and passes calls on to a daemon: dev.mjs [DAEMON [PORT]], by default the admin
// listener at http://127.0.0.1:9090. Each reload of the page builds it anew.

import http from 'node:http';
import { build } from './build.mjs';

const daemon = new URL(process.argv[2] ?? 'http://127.0.0.1:9090');
const port = Number(process.argv[3] ?? 5173);
const types = { html: 'text/html', js: 'text/javascript', css: 'text/css', svg: 'image/svg+xml' };
const csp = [
  "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "font-src 'self'", "connect-src 'self'",
  "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
  'trusted-types lit-html',
].join('; ');
let files = await build({ dev: true });

http.createServer(async (request, response) => {
  const { pathname } = new URL(request.url, 'http://localhost');
  const name = pathname === '/' ? 'index.html' : pathname.slice(1);
  try {
    if (name === 'index.html') files = await build({ dev: true });
  } catch (error) {
    response.writeHead(500, { 'content-type': 'text/plain' }).end(String(error));
    return;
  }
  const file = files.get(name);
  if (file !== undefined) {
    const type = `${types[name.split('.').pop()]}; charset=utf-8`;
    response.writeHead(200, { 'content-type': type, 'content-security-policy': csp, 'cache-control': 'no-store' });
    response.end(file);
    return;
  }
  // The daemon refuses requests that are addressed to others.
  const headers = { ...request.headers, host: daemon.host };
  if (headers.origin !== undefined) headers.origin = daemon.origin;
  const passed = http.request(new URL(request.url, daemon), { method: request.method, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
  });
  passed.on('error', (error) => response.writeHead(502, { 'content-type': 'text/plain' }).end(String(error)));
  response.on('close', () => passed.destroy());
  request.pipe(passed);
}).listen(port, '127.0.0.1', () => console.log(`http://127.0.0.1:${port}/ of ${daemon}`));
