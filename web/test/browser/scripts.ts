// What scripts/ has for tests. It is imported from where it stands: bundled into a test, it would take itself for the
// program that is run.

import type http from 'node:http';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

import { WEB } from './guests.js';

interface Dev {
  servePage(options: {
    daemon: string;
    port?: number;
    files?: () => Promise<Map<string, Buffer>>;
  }): Promise<{ url: string; close: () => Promise<void> }>;
  passOn(request: http.IncomingMessage, response: http.ServerResponse, upstream: URL, path?: string): void;
}

interface Build {
  build(options?: { dev?: boolean }): Promise<Map<string, Buffer>>;
}

async function imported<T>(name: string): Promise<T> {
  return (await import(pathToFileURL(path.join(WEB, 'scripts', name)).href)) as T;
}

export const { servePage, passOn } = await imported<Dev>('dev.mjs');
export const { build } = await imported<Build>('build.mjs');
