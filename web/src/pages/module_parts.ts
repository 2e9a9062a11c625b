// What the list of modules and the page of one have in common.

import type { Daemon } from '../api/client.js';
import { type ModuleInfo, ModuleKind } from '../gen/ringfence/v1/module_pb.js';
import { formatBytes, shortDigest } from '../model/format.js';
import { moduleName } from '../model/module_list.js';
import { printable } from '../model/printable.js';
import { confirm } from '../ui/confirm.js';
import { tell, tellFailure } from '../ui/toast.js';

const PAGE_BYTES = 65_536n;

/** Says whether a module is a core module or a component. */
export function kindOf(module: ModuleInfo): string {
  return module.kind === ModuleKind.COMPONENT ? 'component' : 'core module';
}

/** Says how much memory a module begins with. */
export function memoryOf(module: ModuleInfo): string {
  return module.memoryMinimumPages === 0n ? 'none' : formatBytes(module.memoryMinimumPages * PAGE_BYTES);
}

/** Asks the reader, deletes a module, and returns whether it is gone. */
export async function askAndDelete(daemon: Daemon, module: ModuleInfo): Promise<boolean> {
  const { digest } = module;
  const name = printable(moduleName(module)) || shortDigest(digest);
  const isSure = await confirm({
    title: 'Delete this module?',
    text: [`${name}, ${digest}`, 'Runs that use it go on. Nobody can start it again until it is stored again.'],
    action: 'Delete',
    isDanger: true,
  });
  if (!isSure) return false;
  try {
    const { deleted } = await daemon.modules.deleteModule({ digest });
    tell(deleted ? `Deleted ${name}` : `${name} was gone already`);
    return true;
  } catch (error) {
    tellFailure(`${name} is not deleted`, error);
    return false;
  }
}
