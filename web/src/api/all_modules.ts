// All stored modules, page by page.

import type { ModuleInfo } from '../gen/ringfence/v1/module_pb.js';
import type { Daemon } from './client.js';

const PAGE_SIZE = 1_000;

/** Lists the stored modules. Each step has those of all pages so far, and whether there are no others. */
export async function* allModules(
  daemon: Pick<Daemon, 'modules'>,
  signal: AbortSignal,
): AsyncGenerator<{ modules: readonly ModuleInfo[]; isComplete: boolean }> {
  let modules: readonly ModuleInfo[] = [];
  let pageToken = '';
  do {
    const page = await daemon.modules.listModules({ pageSize: PAGE_SIZE, pageToken }, { signal });
    modules = [...modules, ...page.modules];
    pageToken = page.nextPageToken;
    yield { modules, isComplete: pageToken === '' };
  } while (pageToken !== '');
}
