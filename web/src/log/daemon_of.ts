// The daemons that components in the pages of others show.

import { Daemon } from '../api/client.js';
import { TokenStore } from '../api/token.js';

const daemons = new Map<string, Daemon>();

/** Returns the daemon at an address as a caller with a token. Components that share it share its streams. */
export function daemonOf(server: string, token: string): Daemon {
  const key = JSON.stringify([server, token]);
  const daemon = daemons.get(key) ?? new Daemon(new URL(server, document.baseURI).href, new TokenStore(token));
  daemons.set(key, daemon);
  return daemon;
}
